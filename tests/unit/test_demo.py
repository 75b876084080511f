import builtins
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isobasin import demo, verify
from isobasin.alignment import Alignment
from isobasin.cli.program import app
from isobasin.errors import DependencyError, OutputError
from isobasin.experiments import data

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

WAYS = ["naive", "heads only", "aligned"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str, str]:
    """A quick demo: its folder, figures, and what it printed on stdout and stderr."""
    folder = tmp_path_factory.mktemp("demo") / "out put"
    result = CliRunner().invoke(app, ["demo", "--quick", "-o", str(folder)])
    assert result.exit_code == 0, result.stderr
    return folder, json.loads((folder / "figures.json").read_text()), result.stdout, result.stderr


def test_figures_cover_every_pair_and_every_way(ran: tuple[Path, dict[str, Any], str, str]):
    _, figures, _, _ = ran
    assert [model["name"] for model in figures["models"]] == ["base", "model-1", "model-2", "model-3"]
    assert [pair["models"] for pair in figures["pairs"]] == [[1, 2], [1, 3], [2, 3]]
    for pair in figures["pairs"]:
        assert list(pair["curves"]) == WAYS
        assert pair["distance"]["after"] < pair["distance"]["before"]
        for curve in pair["curves"].values():
            assert len(curve["losses"]) == len(pair["t"]) == figures["recipe"]["points"]
            assert curve["barrier"] >= 0


def test_all_three_lines_join_the_same_two_functions(ran: tuple[Path, dict[str, Any], str, str]):
    _, figures, _, _ = ran
    losses = {model["name"]: model["test_loss"] for model in figures["models"]}
    for pair in figures["pairs"]:
        for curve in pair["curves"].values():
            assert curve["losses"][0] == pytest.approx(losses[f"model-{pair['models'][0]}"], rel=1e-5)
            assert curve["losses"][-1] == pytest.approx(losses[f"model-{pair['models'][1]}"], rel=1e-5)
        middles = [pair["curves"][way]["losses"][2] for way in WAYS]
        assert len(set(middles)) == 3


def test_scrambling_is_exact_and_align_undoes_it(ran: tuple[Path, dict[str, Any], str, str]):
    folder, figures, _, _ = ran
    found = figures["scramble"]
    assert found["condition"] == 100
    assert found["function_difference"] <= 1e-9
    assert found["distance_before"] > 1
    assert found["distance_after"] <= 1e-9 * found["distance_before"]
    assert found["heads_restored"] == found["heads"] == 8
    planted = Alignment.load(folder / demo.SCRAMBLED)
    assert any(list(layer.element.head_permutation()) != [0, 1, 2, 3] for layer in planted.layers)
    assert verify(folder / "model-1", folder / demo.RESTORED).max_rel <= 1e-9


def test_output_is_printed_and_saved(ran: tuple[Path, dict[str, Any], str, str]):
    _, figures, printed, progress = ran
    for part in ("model-3", "1 and 2", "2 and 3", "heads only", "8 of 8", "Plot: "):
        assert part in printed
    assert progress.count("done in") == 7
    assert [Path(path).suffix for path in figures["plots"]] == [".png", ".svg"]
    assert all(Path(path).stat().st_size > 10_000 for path in figures["plots"])
    assert "Figure" not in progress + printed


def test_printed_commands_name_what_is_there(ran: tuple[Path, dict[str, Any], str, str]):
    folder, _, printed, _ = ran
    lines = [shlex.split(line) for line in printed.splitlines() if line.startswith("  ") and str(folder) in line]
    verbs = ["align", "verify", "interpolate", "equivalent", "symmetry"]
    assert [word for line in lines for word in line if word in verbs] == verbs
    for line in lines:
        for word in line:
            if word.startswith(str(folder)):
                assert Path(word).exists() or Path(word).name.startswith("try-")


def test_an_earlier_demo_is_replaced_and_other_files_stay(ran: tuple[Path, dict[str, Any], str, str], tmp_path: Path):
    (tmp_path / demo.MARKER).touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "model-1").mkdir()
    (tmp_path / "model-1" / "stale").touch()
    demo.prepare(tmp_path, (1, 2, 3), force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [demo.MARKER, "mine"]
    # Everything that a demo writes is known to be its own.
    assert sorted(path.name for path in ran[0].iterdir()) == sorted([demo.MARKER, *demo.own_names((1, 2, 3))])


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path):
    (tmp_path / "model-1").mkdir()
    with pytest.raises(OutputError, match="--force"):
        demo.run_demo(tmp_path, quick=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model-1"]
    demo.prepare(tmp_path, (1, 2, 3), force=True)
    assert [path.name for path in tmp_path.iterdir()] == [demo.MARKER]


def test_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        demo.prepare(tmp_path / "file", (1, 2, 3), force=True)


@pytest.mark.parametrize(("package", "named"), [("sklearn", "experiment"), ("matplotlib", "demo")])
def test_a_missing_extra_is_named(package: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    data._rows.cache_clear()
    with pytest.raises(DependencyError, match=rf'pip install "isobasin\[{named}\]"'):
        demo.run_demo(tmp_path / "out", quick=True)
    assert not (tmp_path / "out").exists()
