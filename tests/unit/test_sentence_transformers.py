"""Folders of sentence-transformers: modules behind the model read its hidden states, which are no inner values then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.errors import IsobasinError
from isobasin.testing.assertions import assert_function_preserved

_PLACE = "sentence_transformers.models."


def _embedder(folder: Path, model: str = "", kind: str = "Transformer", seed: int = 0) -> Path:
    """A language model with its head whose hidden states a dense layer reads, in the folder `model` of a folder."""
    tiny("qwen2").save(folder / model, seed)
    kinds = {model: kind, "1_Pooling": "Pooling", "2_Dense": "Dense"} if kind == "Transformer" else {model: kind}
    modules = [{"idx": i, "path": path, "type": _PLACE + name} for i, (path, name) in enumerate(kinds.items())]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir(exist_ok=True)
    save_file({"linear.weight": torch.randn(4, 32)}, folder / "2_Dense" / "model.safetensors")
    return folder


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    return _embedder(tmp_path / "embedder")


_MOVES: dict[str, Callable[[Path, Path, Path], object]] = {
    "scramble": lambda plain, model, out: isobasin.scramble(model, out, scope="model"),
    "align": lambda plain, model, out: isobasin.align(plain, model, scope="model"),
    "apply": lambda plain, model, out: isobasin.align(plain, plain, scope="model").apply(model, out),
    "merge": lambda plain, model, out: isobasin.merge([model, plain], out, scope="model"),
    "refine": lambda plain, model, out: isobasin.refine(plain, model, data="generated", output=out),
}


@pytest.mark.parametrize("verb", _MOVES)
def test_hidden_states_that_are_read_stay_in_their_basis(verb: str, embedder: Path, tmp_path: Path) -> None:
    plain = tiny("qwen2").save(tmp_path / "plain", 1)
    with pytest.raises(IsobasinError, match=r"sentence-transformers reads its hidden states \(modules.json\)"):
        _MOVES[verb](plain, embedder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_in_a_folder_of_its_own_is_known_by_the_list_above(tmp_path: Path) -> None:
    folder = _embedder(tmp_path / "embedder", "0_Transformer")
    with pytest.raises(IsobasinError, match="sentence-transformers reads its hidden states"):
        isobasin.scramble(folder / "0_Transformer", tmp_path / "out", scope="model")


def test_what_reads_predictions_lets_hidden_states_move(tmp_path: Path) -> None:
    folder = _embedder(tmp_path / "sparse", kind="MLMTransformer")
    isobasin.scramble(folder, tmp_path / "out", scope="model")


def test_blocks_move_and_the_hidden_states_stay(embedder: Path, tmp_path: Path) -> None:
    isobasin.scramble(embedder, tmp_path / "out", scope="block")
    assert_function_preserved(embedder, tmp_path / "out", 1e-6)
    dense = Path("2_Dense", "model.safetensors")
    assert (tmp_path / "out" / dense).read_bytes() == (embedder / dense).read_bytes()


def test_modules_that_differ_make_two_models_unlike(embedder: Path, tmp_path: Path) -> None:
    other, dense = Path(shutil.copytree(embedder, tmp_path / "other")), Path("2_Dense", "model.safetensors")
    assert isobasin.verify(embedder, other).equal
    assert isobasin.equivalent(embedder, other).equivalent
    assert isobasin.diagnose(embedder, other).sound
    save_file({"linear.weight": torch.zeros(4, 32)}, other / dense)
    verified = isobasin.verify(embedder, other)
    assert (verified.equal, verified.unequal) == (False, (dense.as_posix(),))
    assert isobasin.equivalent(embedder, other).other_tensors == (dense.as_posix(),)
    assert [*isobasin.diagnose(embedder, other).left] == [dense.as_posix()]
    assert not isobasin.diagnose(embedder, other).sound
    out = tmp_path / "out"
    with pytest.raises(IsobasinError, match=r"2_Dense/model.safetensors, a module of .*: --take-config takes A's"):
        isobasin.interpolate(embedder, other, 0.5, out)
    isobasin.interpolate(embedder, other, 0.5, out, take_config=True)
    assert torch.equal(load_file(out / dense)["linear.weight"], load_file(embedder / dense)["linear.weight"])
