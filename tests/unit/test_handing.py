"""Aligned models that mergekit combines, and moves of a merge that are known before."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.errors import DependencyError, IsobasinError

MODEL = tiny("llama", "handing", config={"tie_word_embeddings": False})


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two fine-tunes of it, and both in another gauge."""
    home = tmp_path_factory.mktemp("ends")
    base = MODEL.save(home / "base", 0, dtype=torch.float32)
    found = {"base": base}
    for seed, name in enumerate(("one", "two")):
        generator = torch.Generator().manual_seed(seed)
        folder = MODEL.save(home / name, 0, dtype=torch.float32)
        noisy = {k: x + 0.02 * torch.randn(x.shape, generator=generator) for k, x in load(base).items()}
        save_file(noisy, folder / "model.safetensors", {"format": "pt"})
        isobasin.scramble(folder, home / f"{name}-moved", seed=seed, condition=2, scope="block", verify=False)
        found |= {name: folder, f"{name}-moved": home / f"{name}-moved"}
    return found


def load(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def run_merge(config: dict[str, Any], out: str, options: Any) -> None:
    """What mergekit does, of methods without thresholds."""
    assert (options.write_model_card, options.copy_tokenizer) == (False, False)
    base = load(Path(config["base_model"]))
    models = [(load(Path(m["model"])), m.get("parameters", {})) for m in config["models"]]
    if config["merge_method"] == "slerp":
        t = config["parameters"]["t"]
        made = {k: (1 - t) * models[0][0][k] + t * models[1][0][k] for k in base}  # near the arc for near models
    else:
        made = {k: x + sum(p["weight"] * (m[k] - x) for m, p in models) for k, x in base.items()}
    Path(out).mkdir()
    save_file(made, Path(out) / "model.safetensors", {"format": "pt"})
    (Path(out) / "config.json").write_text((Path(config["base_model"]) / "config.json").read_text())
    (Path(out) / "told.json").write_text(json.dumps(config))


@pytest.fixture
def mergekit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for mergekit."""
    modules = {
        "mergekit": SimpleNamespace(),
        "mergekit.merge": SimpleNamespace(run_merge=run_merge),
        "mergekit.config": SimpleNamespace(MergeConfiguration=SimpleNamespace(model_validate=lambda config: config)),
        "mergekit.options": SimpleNamespace(MergeOptions=SimpleNamespace),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def assert_combined(ends: dict[str, Path], home: Path, way: str, tolerance: float = 1e-5) -> None:
    """The aligned fine-tunes are combined as the method says, whatever gauge they were in."""
    names, shares = (["one"], [0.25]) if way == "slerp" else (["one", "two"], [0.5, 0.25])
    made: list[dict[str, torch.Tensor]] = []
    for more in ("-moved", ""):
        models, out = [ends["base"], *(ends[name + more] for name in names)], home / f"out{more}"
        found = isobasin.merge(models, out, t=shares, merge_method=way, scope="block")
        base, made = load(ends["base"]), [*made, load(out)]
        aligned = []
        for index, (move, model) in enumerate(zip(found.alignments, models[1:], strict=True)):
            move.apply(model, home / f"{index}{more}", verify=False)
            aligned.append(load(home / f"{index}{more}"))
        assert made[-1].keys() == base.keys()
        for name, x in base.items():
            expected = x + sum(share * (one[name] - x) for share, one in zip(shares, aligned, strict=True))
            assert torch.allclose(made[-1][name], expected, atol=tolerance), name
    assert all(torch.allclose(made[0][name], made[1][name], atol=1e-5) for name in made[0])


@pytest.mark.parametrize("way", ["slerp", "task-arithmetic"])
def test_what_is_handed_over_is_aligned(way: str, ends: dict[str, Path], mergekit: None, tmp_path: Path) -> None:
    assert_combined(ends, tmp_path, way)
    assert (tmp_path / "out" / "recipe.yaml").exists()
    assert not (tmp_path / "out" / "told.json").exists()


@pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit isn't installed")
@pytest.mark.parametrize("way", ["slerp", "task-arithmetic"])
def test_mergekit_itself_makes_of_them_what_it_should(way: str, ends: dict[str, Path], tmp_path: Path) -> None:
    assert_combined(ends, tmp_path, way, 5e-3 if way == "slerp" else 1e-5)  # an arc is not a line
    models = [ends["base"], ends["one-moved"], ends["two-moved"]]
    found = isobasin.merge(models, tmp_path / "ties", merge_method="ties", density=0.5, scope="block")
    assert found.checked is not None


def test_without_mergekit_the_extra_is_named(
    ends: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mergekit.merge", None)
    with pytest.raises(DependencyError, match=r'pip install "isobasin\[mergekit\]"'):
        isobasin.merge([ends["base"], ends["one"]], tmp_path / "out", merge_method="ties")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"merge_method": "slerp"}, "slerp is about the arc between two models, not 3"),
        ({"merge_method": "task-arithmetic", "t": 0.5}, "t has 1 weights for 2 models beyond the first"),
        ({"merge_method": "ties", "density": 2}, "density is 2"),
        ({"density": 0.5}, "--density is about the changes that ties keeps"),
        ({"merge_method": "ties", "space": "circuit"}, "leave out --space circuit"),
        ({"merge_method": "tie"}, "did you mean 'ties'"),
        ({"alignments": []}, "0 alignments for 3 models"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    options: dict[str, Any], problem: str, ends: dict[str, Path], mergekit: None, tmp_path: Path
) -> None:
    with pytest.raises(IsobasinError, match=problem):
        isobasin.merge([ends["base"], ends["one"], ends["two"]], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_mergekit_refuses_is_a_line(
    ends: dict[str, Path], mergekit: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> None:
        raise RuntimeError("no such architecture\nmore")

    monkeypatch.setattr(sys.modules["mergekit.merge"], "run_merge", failing)
    with pytest.raises(IsobasinError, match=r"mergekit's slerp failed \(RuntimeError: no such architecture\)"):
        isobasin.merge([ends["base"], ends["one"]], tmp_path / "out", merge_method="slerp")
    assert not (tmp_path / "out").exists()


def test_moves_that_are_known_are_made(ends: dict[str, Path], tmp_path: Path) -> None:
    known = isobasin.align(ends["one"], ends["one-moved"], scope="block", verify=False)
    found = isobasin.merge([ends["one"], ends["one-moved"]], tmp_path / "out", t=0.5, alignments=[known])
    assert found.alignments == (known,)
    made, one = load(tmp_path / "out"), load(ends["one"])
    for name, tensor in one.items():
        assert torch.allclose(made[name], tensor, atol=1e-5), name
