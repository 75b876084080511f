"""Whole models whose tables or heads have other numbers of rows: the common rows are matched, and all of them move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.architectures.tiny import TinyModel
from isobasin.errors import TensorError
from isobasin.symmetries import along
from isobasin.testing.assertions import assert_function_preserved

WEIGHTS = "model.safetensors"


# What is longer, or another, in the second model, and how many tensors along the stream have other shapes then.
ROWS = [
    (tiny("llama"), {"vocab_size": 57}, 2),
    (tiny("llama", config={"tie_word_embeddings": True}), {"vocab_size": 57}, 1),
    (tiny("gpt2"), {"n_positions": 24}, 1),
    (tiny("bert"), {"vocab_size": 57, "max_position_embeddings": 20}, 2),
    (tiny("electra", config={"embedding_size": 16}), {"vocab_size": 57}, 0),
    (tiny("vit", config={"num_labels": 3}), {"num_labels": 5}, 1),
    (tiny("vit"), {"image_size": 12}, 1),
    (tiny("qwen2", head="Qwen2ForSequenceClassification", config={"num_labels": 3}), {"num_labels": 5}, 1),
]


@pytest.mark.parametrize(("model", "more", "unlike"), ROWS, ids=lambda x: str(x))
def test_a_model_with_other_rows_is_found_again(
    model: TinyModel, more: dict[str, Any], unlike: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second is the first with more rows, moved at random: what both have is brought back exactly."""
    monkeypatch.setattr(along, "_VALUES", 100)  # three rows of a table at a time
    longer = tiny(model.model_type, head=model.head, config={**model.config, **more})
    b, a = longer.save(tmp_path / "b", 1), model.save(tmp_path / "a", 2)
    whole, own = load_file(b / WEIGHTS), load_file(a / WEIGHTS)
    cut = {name: whole[name][tuple(map(slice, x.shape))].clone() for name, x in own.items()}
    save_file(cut, a / WEIGHTS, {"format": "pt"})
    isobasin.scramble(b, tmp_path / "moved", scope="model", seed=3, condition=2.0, verify=False)
    found = isobasin.align(a, tmp_path / "moved", tmp_path / "out", scope="model", verify=False)
    assert found.stream is not None
    statistics = found.stream.statistics
    assert statistics.distance_before > 1
    assert statistics.distance_after < 1e-5 * statistics.distance_before
    assert statistics.unlike == unlike
    assert_function_preserved(b, tmp_path / "out", 1e-5, hidden=False)
    compared = isobasin.equivalent(a, b)
    assert set(compared.shapes) <= set(compared.other_tensors)
    assert not compared.equivalent


def test_rows_that_differ_are_said_with_their_shapes(tmp_path: Path):
    a, b = tiny("llama").save(tmp_path / "a"), tiny("llama", config={"vocab_size": 57}).save(tmp_path / "b")
    found = isobasin.equivalent(a, b)
    assert found.shapes == dict.fromkeys(("lm_head.weight", "model.embed_tokens.weight"), ((50, 32), (57, 32)))
    assert found.to_json()["shapes"]["lm_head.weight"] == [[50, 32], [57, 32]]
    with pytest.raises(TensorError, match=r"has shape \[50, 32\] in A and \[57, 32\] in B"):
        isobasin.interpolate(a, b, 0.5, tmp_path / "out")
