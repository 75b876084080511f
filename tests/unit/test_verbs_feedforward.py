"""Feed-forward blocks through the verbs: what is refused, verified, recognised and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.errors import AlignmentError, ArchitectureError, TensorError, VerificationError
from isobasin.model import open_model
from isobasin.symmetries.feedforward import FeedForwardGroup
from isobasin.verification import models


def edit(folder: Path, change: Any) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def adapted(folder: Path) -> Path:
    """A model with a tensor in a feed-forward module that nobody knows."""
    return edit(
        tiny("llama").save(folder),
        lambda tensors: tensors.update({"model.layers.1.mlp.adapter.weight": torch.ones(3, 3, dtype=torch.float64)}),
    )


def test_unexplained_feedforward_is_refused_only_if_asked_for(tmp_path):
    odd = adapted(tmp_path / "odd")
    usual = tiny("llama").save(tmp_path / "usual")
    for reference, model in ((usual, odd), (odd, usual)):
        assert isobasin.align(reference, model).feedforward == ()
        with pytest.raises(TensorError, match=r"mlp\.adapter\.weight' is unexpected in a feed-forward module"):
            isobasin.align(reference, model, scope="block")
    with pytest.raises(TensorError, match="adapter"):
        isobasin.scramble(odd, tmp_path / "out", scope="block")
    with pytest.raises(TensorError, match="adapter"):
        isobasin.random_alignment(usual, scope="block").apply(odd, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert isobasin.symmetry(odd).feedforward == ()


def test_blocks_of_other_sizes_are_refused_only_if_asked_for(tmp_path):
    a = tiny("bert").save(tmp_path / "a")
    b = tiny("bert", config={"intermediate_size": 40}).save(tmp_path / "b")
    assert isobasin.align(a, b).layers
    with pytest.raises(ArchitectureError, match="48 feed-forward units, model has 40"):
        isobasin.align(a, b, scope="block")
    with pytest.raises(AlignmentError, match="layer 0: the alignment is for S_48"):
        isobasin.random_alignment(a, scope="block").apply(b, tmp_path / "out")


def test_the_fingerprint_covers_what_was_matched(tmp_path):
    a, b = (tiny("gpt2").save(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    changed = tiny("gpt2").save(tmp_path / "changed", seed=1)
    edit(changed, lambda tensors: tensors["transformer.h.1.mlp.c_fc.bias"].add_(1))

    def prints(feedforward: bool) -> list[str]:
        return [
            isobasin.align(a, m, scope="block" if feedforward else "attention").provenance["model_sha256"]
            for m in (b, changed)
        ]

    assert len(set(prints(False))) == 1
    assert len({*prints(True), *prints(False)}) == 3


@pytest.mark.parametrize("model_type", ["vit", "llama", "opt"])
def test_models_that_cannot_run_are_verified_block_by_block(model_type, tmp_path, monkeypatch):
    original = tiny(model_type).save(tmp_path / "original", dtype=torch.float32)
    monkeypatch.setattr(models, "_run_dtype", lambda *models: None)
    moved = isobasin.scramble(original, tmp_path / "out", scope="block")
    assert moved.verified.equal
    assert "blocks one by one" in moved.verified.how
    assert isobasin.verify(original, tmp_path / "out").equal
    names = [n for n in load_file(original / "model.safetensors") if ".1." in n and ("mlp.up" in n or "fc1" in n)]
    names = names or [n for n in load_file(original / "model.safetensors") if "1.intermediate.dense.weight" in n]
    edit(tmp_path / "out", lambda tensors: tensors[names[0]].mul_(1.01))
    assert not isobasin.verify(original, tmp_path / "out").equal


def test_another_activation_is_another_function_even_block_by_block(tmp_path, monkeypatch):
    a = tiny("vit").save(tmp_path / "a")
    b = tiny("vit", config={"hidden_act": "silu"}).save(tmp_path / "b")
    monkeypatch.setattr(models, "_run_dtype", lambda *models: None)
    assert isobasin.verify(a, a).equal
    assert not isobasin.verify(a, b).equal


def test_a_wrong_block_is_refused_block_by_block_too(tmp_path, monkeypatch):
    original = tiny("llama").save(tmp_path / "original")
    monkeypatch.setattr(models, "_run_dtype", lambda *models: None)
    monkeypatch.setattr(FeedForwardGroup, "sample", lambda group, *a, **k: _rescaled(group))
    with pytest.raises(VerificationError):
        isobasin.scramble(original, tmp_path / "out", scope="block")
    assert not (tmp_path / "out").exists()


def _rescaled(group: Any) -> Any:
    """A scale of the gate, which SiLU doesn't let pass."""
    element = group.identity()
    element.parts["gate"].fill_(1.1)
    return element


def test_tensors_in_memory_with_their_own_specification(tmp_path):
    original = tiny("llama").save(tmp_path / "original")
    isobasin.scramble(original, tmp_path / "scrambled", scope="block", condition=5.0, verify=False)
    a, b = (load_file(folder / "model.safetensors") for folder in (original, tmp_path / "scrambled"))
    with open_model(original) as opened:
        described = opened.specification
    found = isobasin.align_tensors(a, b, described, scope="block")
    assert found.verified.equal
    moved = found.moved_tensors(b, described)
    assert all(float((moved[name] - a[name]).abs().max()) < 1e-9 for name in a)
    bare = isobasin.Specification(described.model_type, described.attention)
    with pytest.raises(ArchitectureError, match="names no feed-forward blocks"):
        isobasin.align_tensors(a, b, bare, scope="block")
    assert isobasin.align_tensors(a, b, bare).feedforward == ()


@pytest.mark.parametrize("model_type", ["vit", "llama", "opt"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_equivalence_undoes_moves_of_units(model_type, dtype, tmp_path):
    original = tiny(model_type).save(tmp_path / "original", dtype=dtype)
    isobasin.scramble(original, tmp_path / "scrambled", scope="block", condition=1.0, verify=False)
    found = isobasin.equivalent(original, tmp_path / "scrambled")
    assert found.other_tensors == ()
    assert found.feedforward == (0, 1)
    assert found.to_json()["moved_feedforward"] == [0, 1]
    assert isobasin.equivalent(original, original).feedforward == ()


@pytest.mark.parametrize("model_type", ["vit", "llama", "opt"])
def test_equivalence_is_not_fooled_by_one_changed_weight(model_type, tmp_path):
    """Not even where everything else is a move: one weight of one unit differs by a hundredth."""
    original = tiny(model_type).save(tmp_path / "original")
    isobasin.scramble(original, tmp_path / "scrambled", scope="block", verify=False)
    with open_model(original) as opened:
        block = opened.feedforwards()[1]
    edit(tmp_path / "scrambled", lambda tensors: tensors[block.down.weight][0, 5].mul_(1.01))
    found = isobasin.equivalent(original, tmp_path / "scrambled")
    assert not found.equivalent
    assert found.feedforward == (0,)
    assert set(found.other_tensors) >= {block.up.weight, block.down.weight}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "opt", "mixtral"])
def test_equivalence_allows_units_of_16_bits_their_rounding_and_no_more(model_type, dtype, tmp_path):
    """However small a weight is: in float16 scales make some of them subnormal."""
    original = tiny(model_type).save(tmp_path / "original", 1, dtype=dtype)
    isobasin.scramble(original, tmp_path / "scrambled", seed=8, scope="block", verify=False)
    assert isobasin.equivalent(original, tmp_path / "scrambled").equivalent
    with open_model(original) as opened:
        block = opened.feedforwards()[1]
        name = next(name for name in block.shapes() if "fc2" in name or "down_proj" in name or "w2" in name)
    largest = load_file(tmp_path / "scrambled" / "model.safetensors")[name].abs().argmax()
    edit(tmp_path / "scrambled", lambda tensors: tensors[name].view(-1)[largest].mul_(1.05))
    assert not isobasin.equivalent(original, tmp_path / "scrambled").equivalent


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "dinov2", "gpt_oss"])
def test_equivalence_looks_at_every_row_of_a_moved_model_of_16_bits(model_type, tmp_path):
    """Of one that rounding alone changed none is another; biases may be small sums of large numbers."""
    original = tiny(model_type).save(tmp_path / "original", 1, dtype=torch.bfloat16)
    isobasin.scramble(original, tmp_path / "scrambled", seed=8, scope="model", verify=False)
    assert isobasin.equivalent(original, tmp_path / "scrambled").equivalent
    tensors = load_file(original / "model.safetensors")
    table = next(
        n for n in tensors if n.endswith(("embed_tokens.weight", "wte.weight", "patch_embeddings.projection.weight"))
    )
    row = tensors[table].flatten(1).norm(dim=-1).argmin()
    edit(tmp_path / "scrambled", lambda tensors: tensors[table][row].mul_(1.1))
    assert not isobasin.equivalent(original, tmp_path / "scrambled").equivalent


def test_unrelated_blocks_are_told_apart_without_an_assignment(tmp_path, monkeypatch):
    a, b = (tiny("llama").save(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1)))

    def refuse(*arguments: Any) -> None:
        raise AssertionError("an assignment was solved")

    monkeypatch.setattr("isobasin.matching.units.linear_sum_assignment", refuse)
    assert isobasin.equivalent(a, b).feedforward == ()


def test_a_coarser_type_of_feedforward_sets_the_tolerance(tmp_path):
    """Scales are rounded in the type that the units are stored in, whatever attention is stored in."""
    model = tiny("opt").build(dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "fc" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "original")
    moved = isobasin.scramble(tmp_path / "original", tmp_path / "out", scope="block")
    assert moved.verified.max_rel > 1e-4
    assert moved.verified.equal
    assert moved.verified.rounding.max_rel > 1e-4
