"""Layouts by hand: which number of a stored tensor belongs to which head."""

from __future__ import annotations

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from isobasin.architectures.building import attention_blocks, attention_group
from isobasin.architectures.layouts import (
    Sizes,
    bucket_constants,
    fused_blocks,
    fused_heads,
    half_planes,
    interleaved_planes,
    separate,
)
from isobasin.architectures.projection import Layout
from isobasin.errors import ArchitectureError

SIZES = Sizes(width=5, heads=4, kv_heads=2, features=3)


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def test_planes():
    assert half_planes(6) == ((0, 3), (1, 4), (2, 5))
    assert interleaved_planes(6) == ((0, 1), (2, 3), (4, 5))
    assert half_planes(0) == interleaved_planes(0) == ()


@pytest.mark.parametrize("planes", [half_planes, interleaved_planes])
@pytest.mark.parametrize("rotated", [3, -2])
def test_odd_or_negative_number_of_rotated_features_is_refused(planes, rotated):
    with pytest.raises(ArchitectureError, match=f"{rotated} features"):
        planes(rotated)


def test_separate():
    projections = separate(SIZES, "q", "k", "v", "o", bias=True, output_bias=False)
    query, key, output = numbers(12, 5), numbers(6, 5), numbers(5, 12)
    for head in range(4):
        rows = slice(3 * head, 3 * head + 3)
        assert torch.equal(projections.query.layout.read(query)[head], query[rows].T)
        assert torch.equal(projections.output.layout.read(output)[head], output[:, rows])
    for head in range(2):
        assert torch.equal(projections.key.layout.read(key)[head], key[3 * head : 3 * head + 3].T)
        assert torch.equal(projections.value.layout.read(key)[head], key[3 * head : 3 * head + 3].T)
    bias = numbers(12)
    assert torch.equal(projections.query.layout.read(bias, bias=True), bias.reshape(4, 3))
    assert [p.bias for p in projections] == ["q.bias", "k.bias", "v.bias", None]


@pytest.mark.parametrize("part", range(3))
def test_fused_blocks(part):
    sizes = Sizes(width=5, heads=2, kv_heads=2, features=3)
    projections = fused_blocks(sizes, "c", "o", bias=True)
    projection, weight, bias = list(projections)[part], numbers(5, 18), numbers(18)
    for head in range(2):
        columns = slice(6 * part + 3 * head, 6 * part + 3 * head + 3)
        assert torch.equal(projection.layout.read(weight)[head], weight[:, columns])
        assert torch.equal(projection.layout.read(bias, bias=True)[head], bias[columns])
        rows = slice(3 * head, 3 * head + 3)
        assert torch.equal(projections.output.layout.read(weight[:, :6].T)[head], weight[:, rows])
    assert projection.layout.shape() == (5, 18)
    assert projection.layout.shape(bias=True) == (18,)
    assert projections.output.layout.shape() == (6, 5)


@pytest.mark.parametrize("part", range(3))
def test_fused_heads(part):
    sizes = Sizes(width=5, heads=2, kv_heads=2, features=3)
    projections = fused_heads(sizes, "c", "o", bias=True)
    projection, weight, bias = list(projections)[part], numbers(18, 5), numbers(18)
    for head in range(2):
        rows = slice(9 * head + 3 * part, 9 * head + 3 * part + 3)
        assert torch.equal(projection.layout.read(weight)[head], weight[rows].T)
        assert torch.equal(projection.layout.read(bias, bias=True)[head], bias[rows])
    assert projection.layout.shape() == (18, 5)
    assert projections.output.layout.shape() == (5, 6)


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        ("(head feature) width", (12, 5)),
        ("width (head feature)", (5, 12)),
        ("(part head feature) width", (36, 5)),
        ("width (part head feature)", (5, 36)),
        ("(head part feature) width", (36, 5)),
        ("(group slot feature) width", (24, 5)),
        ("head width feature", (4, 5, 3)),
        ("part head width feature", (3, 4, 5, 3)),
    ],
)
def test_putting_inverts_reading_and_leaves_the_rest(pattern, shape):
    axes = {"part": 3, "group": 2, "slot": 4, "head": 4, "feature": 3, "width": 5}
    sizes = tuple((name, size) for name, size in axes.items() if name in pattern)
    picks = [None, *(("part", part, 1) for part in range(3) if "part" in pattern)]
    picks += [("slot", 1, 2)] if "slot" in pattern else [("head", 1, 2)]
    for pick in picks:
        layout = Layout(pattern, sizes, pick)
        stored = numbers(*shape)
        assert layout.shape() == shape
        heads = layout.read(stored)
        written = stored.clone()
        layout.put(written, heads)
        assert torch.equal(written, stored)
        layout.put(written, -1 - heads)
        assert torch.equal(layout.read(written), -1 - heads)
        assert (written != stored).sum() == heads.numel()


@pytest.mark.parametrize(
    ("bias", "output_bias", "rotated", "rotary_value", "key_shift", "value_shift"),
    [
        (True, True, 0, False, True, True),
        (False, True, 0, False, False, False),
        (True, False, 0, False, True, False),
        (False, False, 0, False, False, False),
        (True, True, 2, False, True, True),
        (True, True, 4, False, False, True),
        (True, True, 2, True, True, False),
        (False, False, 4, True, False, False),
    ],
)
def test_which_biases_are_free(bias, output_bias, rotated, rotary_value, key_shift, value_shift):
    sizes = Sizes(width=8, heads=4, kv_heads=2, features=4)
    projections = separate(sizes, "q", "k", "v", "o", bias=bias, output_bias=output_bias)
    group = attention_group(sizes, projections, half_planes(rotated), rotary_value=rotary_value)
    assert (group.key_shift, group.value_shift) == (key_shift, value_shift)
    assert (group.kv_heads, group.queries_per_kv) == (2, 2)
    assert group.query_key.planes == half_planes(rotated)
    assert group.value_output.planes == (half_planes(rotated) if rotary_value else ())


def test_more_rotated_features_than_a_head_has_are_refused():
    projections = separate(SIZES, "q", "k", "v", "o", bias=False, output_bias=False)
    with pytest.raises(ArchitectureError, match="4 features, but a head has only 3"):
        attention_group(SIZES, projections, half_planes(4))


def test_names_of_every_layer():
    module = "h.{layer}.attn"
    projections = separate(SIZES, *(f"{module}.{name}" for name in "qkvo"), bias=True, output_bias=True)
    blocks = attention_blocks(11, module, SIZES, projections)
    assert [block.layer for block in blocks] == list(range(11))
    assert blocks[10].name == "h.10.attn"
    assert blocks[10].shapes() == {
        "h.10.attn.q.weight": (12, 5),
        "h.10.attn.q.bias": (12,),
        "h.10.attn.k.weight": (6, 5),
        "h.10.attn.k.bias": (6,),
        "h.10.attn.v.weight": (6, 5),
        "h.10.attn.v.bias": (6,),
        "h.10.attn.o.weight": (5, 12),
        "h.10.attn.o.bias": (5,),
    }


@pytest.mark.parametrize(
    ("arguments", "unread"),
    [
        ((32, 128, True), [16]),
        ((32, 128, False), []),
        ((33, 128, True), [16, 32]),
        # Distances 8, 9 and 10 are spread over 8 buckets.
        ((32, 10, True), [9, 10, 11, 13, 14, 16, 25, 26, 27, 29, 30]),
    ],
)
def test_a_bucket_that_no_distance_reads_is_a_constant_by_itself(arguments, unread):
    buckets, farthest, bidirectional = arguments
    found = bucket_constants(buckets, farthest, bidirectional=bidirectional)
    distance = torch.arange(-300, 301)
    read = set(T5Attention._relative_position_bucket(distance, bidirectional, buckets, farthest).tolist())
    assert [entry for entry in range(buckets) if entry not in read] == unread
    assert [entry for entry in range(buckets) if found[entry]] == unread
    assert sorted(number for number in found if number) == list(range(1, len(unread) + 1))
