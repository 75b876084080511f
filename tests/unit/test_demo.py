import builtins
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from isobasin import demo, verify
from isobasin.alignment import Alignment
from isobasin.demo import place
from isobasin.errors import DependencyError, OutputError

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

WAYS = ["naive", "heads only", "aligned"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str, str]:
    """A quick demo: its folder, figures, and what it printed on both consoles."""
    folder = tmp_path_factory.mktemp("demo") / "out put"
    consoles = [Console(file=io.StringIO(), width=100) for _ in range(2)]
    figures = demo.run_demo(folder, quick=True, console=consoles[0], progress=consoles[1])
    printed = [console.file.getvalue() for console in consoles]  # pyright: ignore[reportAttributeAccessIssue]
    return folder, figures, printed[0], printed[1]


def test_figures_cover_every_pair_and_every_way(ran: tuple[Path, dict[str, Any], str, str]):
    folder, figures, _, _ = ran
    assert json.loads((folder / "figures.json").read_text()) == json.loads(json.dumps(figures))
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
    planted = Alignment.load(folder / place.SCRAMBLED)
    assert any(list(layer.element.head_permutation()) != [0, 1, 2, 3] for layer in planted.layers)
    assert verify(folder / "model-1", folder / place.RESTORED).max_rel <= 1e-9


def test_output_is_printed_and_saved(ran: tuple[Path, dict[str, Any], str, str]):
    _, figures, printed, progress = ran
    for part in ("model-3", "1 and 2", "2 and 3", "heads only", "8 of 8"):
        assert part in printed
    assert progress.count("training a new first attention layer") == 3
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
    (tmp_path / place.MARKER).touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "model-1").mkdir()
    (tmp_path / "model-1" / "stale").touch()
    place.prepare(tmp_path, 3, force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [place.MARKER, "mine"]
    # Everything that a demo writes is known to be its own.
    assert sorted(path.name for path in ran[0].iterdir()) == sorted([place.MARKER, *place.own_names(3)])


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path):
    (tmp_path / "model-1").mkdir()
    with pytest.raises(OutputError, match="--force"):
        demo.run_demo(tmp_path, quick=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model-1"]
    place.prepare(tmp_path, 3, force=True)
    assert [path.name for path in tmp_path.iterdir()] == [place.MARKER]


def test_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        place.prepare(tmp_path / "file", 3, force=True)


@pytest.mark.parametrize(("package", "named"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")])
def test_a_missing_extra_is_named(package: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=rf'{named}: pip install "isobasin\[demo\]"'):
        demo.run_demo(tmp_path / "out", quick=True)
    assert not (tmp_path / "out").exists()


def test_importing_the_demo_imports_no_torch():
    code = "import sys, isobasin.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
