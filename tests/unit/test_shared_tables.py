"""Tables of relative position biases that several blocks read: their heads move together, and they move once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import isobasin
from isobasin import model
from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.examples import variant
from isobasin.architectures.layouts import position_table
from isobasin.architectures.projection import Layout, Projection
from isobasin.architectures.schema import Specification
from isobasin.errors import AlignmentError
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup
from isobasin.verbs import blocks as matching_blocks, merge as merging

SHARED = ("t5", "mpnet", "beit-shared")
each_model = pytest.mark.parametrize("name", SHARED)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in models too large for several layers at a time."""
    for module in (matching_blocks, merging):
        monkeypatch.setattr(module, "batches", lambda blocks: model.batches(blocks, 1))


def changed(original: Path, name: str, folder: Path, shift: torch.Tensor) -> Path:
    """A copy with something added to a table, by entries."""
    tensors = load_file(original / "model.safetensors")
    folder.mkdir()
    (folder / "config.json").write_text((original / "config.json").read_text())
    tensors[name] = tensors[name] + shift.to(tensors[name]).unsqueeze(-1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@each_model
def test_unrelated_models_are_aligned_with_one_order_of_heads(name, tmp_path, monkeypatch):
    one_by_one(monkeypatch)
    a, b = (variant(name).save(tmp_path / str(seed), seed) for seed in (0, 1))
    found = isobasin.align(a, b, tmp_path / "out")
    elements = [layer.element for layer in found.layers]
    assert torch.equal(elements[0].head_permutation(), elements[1].head_permutation())
    assert torch.equal(elements[0].parts["table_shift"], elements[1].parts["table_shift"])
    assert found.verified is not None
    assert found.verified.equal


@each_model
def test_an_alignment_that_moves_one_table_in_two_ways_is_refused(name, tmp_path):
    original = variant(name).save(tmp_path / "original")
    found = isobasin.random_alignment(original)
    first = found.layers[0].element
    for part in (first.outer.roll(1), first.parts["table_shift"] + 1):
        field = "outer" if part.ndim == 1 else "table_shift"
        layers = (replace(found.layers[0], element=first.having({field: part})), *found.layers[1:])
        with pytest.raises(AlignmentError, match=r"layers 0 and 1 of .* read one table of position biases"):
            isobasin.apply(replace(found, moves=layers), original, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("space", ["weights", "circuit"])
@each_model
def test_a_scrambled_copy_merges_to_the_model(name, space, tmp_path, monkeypatch):
    one_by_one(monkeypatch)
    original = variant(name).save(tmp_path / "original")
    isobasin.scramble(original, tmp_path / "scrambled", verify=False)
    isobasin.merge([original, tmp_path / "scrambled"], tmp_path / "merged", space=space)
    ours, merged = (load_file(folder / "model.safetensors") for folder in (original, tmp_path / "merged"))
    assert all(float((merged[n] - x).abs().max()) < 1e-7 for n, x in ours.items())


@pytest.mark.parametrize("name", [*SHARED, "beit", "swin"])
def test_only_constants_of_a_table_are_free(name, tmp_path):
    """Shifted by them alone it is the same model; with another number in one entry it isn't."""
    original = variant(name).save(tmp_path / "original")
    with model.open_model(original) as opened:
        block = opened.specification.attention[0]
    assert block.table is not None
    numbers, table = torch.tensor(block.group.table), block.table.weight
    free = changed(original, table, tmp_path / "free", 1.5 * numbers - 0.7)
    assert isobasin.equivalent(original, free).equivalent
    assert isobasin.verify(original, free).equal
    other = changed(original, table, tmp_path / "other", torch.arange(len(numbers)) == 1)
    assert not isobasin.equivalent(original, other).equivalent
    assert not isobasin.verify(original, other).equal


def test_a_shared_table_counts_once():
    shared, own = (isobasin.symmetry(variant(name).build()) for name in ("beit-shared", "beit"))
    assert own.dimension - shared.dimension == 4 * 2
    assert [layer.group for layer in shared.layers] == [layer.group for layer in own.layers]


def described(*tables: str, permuted: bool) -> Specification:
    """Layers of two heads, each of which reads the table of this name."""
    group = AttentionGroup(2, 1, BilinearGroup(3), BilinearGroup(3), table=(0, 0, 0, 0), permuted=permuted)
    linear = Layout("head width feature", (("head", 2), ("width", 8), ("feature", 3)))
    blocks: list[AttentionBlock] = []
    for layer, table in enumerate(tables):
        query, key, value, output = (Projection(f"{layer}.{x}", None, linear) for x in "QKVO")
        position = position_table(table, 4, 2)
        blocks.append(AttentionBlock(layer, f"{layer}", query, key, value, output, group, table=position))
    return Specification("toy", tuple(blocks))


@pytest.mark.parametrize("permuted", [True, False])
def test_a_layer_with_a_table_of_its_own_beside_those_that_share_one(permuted):
    specification = described("shared", "shared", "own", permuted=permuted)
    shapes = {name: shape for block in specification.attention for name, shape in block.shapes().items()}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    a, b = ({n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()} for g in generators)
    found = isobasin.align_tensors(a, b, specification)
    assert found.verified is not None
    assert found.verified.equal
    orders = [layer.element.outer.tolist() for layer in found.layers]
    assert orders == ([[1, 0], [1, 0], [0, 1]] if permuted else [[0, 1]] * 3)
