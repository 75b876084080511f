"""How heads lie in stored tensors, and which features a rotary position turns together.

Each order that occurs in checkpoints is written once here; family files say only which one is theirs. Names
are templates: `{layer}` stands for the layer's index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch

from isobasin.architectures.projection import Layout, Projection
from isobasin.errors import ArchitectureError

Plane = tuple[int, int]
_Axes = tuple[tuple[str, int], ...]
_Pick = tuple[str, int, int]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the attention blocks of one model.

    Attributes:
        width: Width of the residual stream.
        heads: Number of query heads.
        kv_heads: Number of key/value heads; query head `i` reads key/value head `i // queries`.
        features: Width of a head.
    """

    width: int
    heads: int
    kv_heads: int
    features: int

    @property
    def queries_per_kv(self) -> int:
        """Query heads of each key/value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Projections:
    """The four projections of a block."""

    query: Projection
    key: Projection
    value: Projection
    output: Projection

    def __iter__(self) -> Iterator[Projection]:
        return iter((self.query, self.key, self.value, self.output))


@dataclass(frozen=True)
class FeedForwardProjections:
    """The projections of a feed-forward block; `gate` is None where there is none."""

    up: Projection
    gate: Projection | None
    down: Projection


def half_planes(rotated: int) -> tuple[Plane, ...]:
    """Feature `j` turns with `j + rotated/2` (most Hugging Face models, their `rotate_half`)."""
    half = _half(rotated)
    return tuple((j, j + half) for j in range(half))


def interleaved_planes(rotated: int) -> tuple[Plane, ...]:
    """Feature `2j` turns with `2j + 1` (GPT-J, RoFormer, Cohere and GLM)."""
    return tuple((2 * j, 2 * j + 1) for j in range(_half(rotated)))


def alike_planes(planes: int, together: int) -> tuple[tuple[int, ...], ...]:
    """Plane `j` turns like `j + 1`, … `j + together - 1`: every frequency serves that many planes in a row."""
    return tuple(tuple(range(j, j + together)) for j in range(0, planes, together))


def _half(rotated: int) -> int:
    if rotated < 0 or rotated % 2:
        raise ArchitectureError(f"rotary positions turn {rotated} features of a head: an even number is needed")
    return rotated // 2


def separate(
    sizes: Sizes, query: str, key: str, value: str, output: str, *, bias: bool, output_bias: bool, key_bias: bool = True
) -> Projections:
    """Four `nn.Linear` modules; `bias` is that of the queries, the values and, unless `key_bias` is False, the keys."""
    return Projections(
        query=_projection(query, "(head feature) width", sizes, heads=sizes.heads, bias=bias),
        key=_projection(key, "(head feature) width", sizes, heads=sizes.kv_heads, bias=bias and key_bias),
        value=_projection(value, "(head feature) width", sizes, heads=sizes.kv_heads, bias=bias),
        output=into_stream(output, sizes, bias=output_bias),
    )


def fused_blocks(sizes: Sizes, fused: str, output: str, *, bias: bool) -> Projections:
    """One `Conv1D` with columns `[Q | K | V]`, and a `Conv1D` output.

    `Conv1D` stores the transpose of what `nn.Linear` stores: inputs first.
    """
    axes = (("part", 3), ("head", sizes.heads), ("feature", sizes.features), ("width", sizes.width))
    picks = (("part", 0, 1), ("part", 1, 1), ("part", 2, 1))
    query, key, value = _parts(fused, "width (part head feature)", axes, picks, bias=bias)
    return Projections(
        query, key, value, _projection(output, "(head feature) width", sizes, heads=sizes.heads, bias=bias)
    )


def fused_heads(sizes: Sizes, fused: str, output: str, *, bias: bool) -> Projections:
    """One `nn.Linear` whose rows are `[its queries | K | V]` of each key/value head, and an `nn.Linear` output."""
    s = sizes.queries_per_kv
    axes = (("group", sizes.kv_heads), ("slot", s + 2), ("feature", sizes.features), ("width", sizes.width))
    picks = (("slot", 0, s), ("slot", s, 1), ("slot", s + 1, 1))
    return _fused_linear(sizes, fused, "(group slot feature) width", axes, picks, output, bias=bias)


def fused_rows(sizes: Sizes, fused: str, output: str, *, bias: bool) -> Projections:
    """One `nn.Linear` with rows `[Q | K | V]`, of all heads each, and an `nn.Linear` output."""
    h, g = sizes.heads, sizes.kv_heads
    axes = (("head", h + 2 * g), ("feature", sizes.features), ("width", sizes.width))
    picks = (("head", 0, h), ("head", h, g), ("head", h + g, g))
    return _fused_linear(sizes, fused, "(head feature) width", axes, picks, output, bias=bias)


def sliced(
    module: str, width: int, features: Mapping[str, int], *, heads: int = 1, bias: bool = False
) -> dict[str, Projection]:
    """One `nn.Linear` in whose rows several projections follow each other, head by head: features by role."""
    axes = (("head", heads), ("feature", sum(features.values())), ("width", width))
    starts = accumulate(features.values(), initial=0)
    picks = tuple(("feature", start, count) for start, count in zip(starts, features.values(), strict=False))
    return dict(zip(features, _parts(module, "(head feature) width", axes, picks, bias=bias), strict=True))


def into_stream(module: str, sizes: Sizes, *, bias: bool) -> Projection:
    """The `nn.Linear` that writes what heads read into the residual stream."""
    return _projection(module, "width (head feature)", sizes, heads=sizes.heads, bias=bias)


def gains(name: str, features: int, heads: int = 1, pattern: str = "(head feature)") -> Projection:
    """Gains of normalised queries or keys: one vector for all heads, or the heads' in turn."""
    return Projection(name, None, Layout(pattern, (("head", heads), ("feature", features))))


def position_table(name: str, entries: int, heads: int) -> Projection:
    """Relative position biases, `(entries, heads)`."""
    return Projection(name, None, Layout("feature head", (("feature", entries), ("head", heads))))


def bucket_constants(buckets: int, farthest: int, *, bidirectional: bool) -> tuple[int, ...]:
    """The constants of a table of T5's kind (`AttentionGroup.table`), in which far distances share buckets.

    Each direction has half of the entries, or the backward one all of them. All that some distance reads share constant
    0. What none reads, as the forward half's entry of distance 0, is a constant by itself.

    Args:
        buckets: Entries of the table.
        farthest: From this distance on all share the last bucket.
        bidirectional: Whether later positions are read too.
    """
    own = buckets // 2 if bidirectional else buckets
    exact = own // 2
    if not 1 <= exact < farthest:
        raise ArchitectureError(f"{buckets} buckets for relative positions up to {farthest}: there is none for some")
    # In float32, as transformers computes them.
    distance = torch.arange(exact, farthest + 1, dtype=torch.float32)
    shares = (distance / exact).log() / math.log(farthest / exact)
    far = (exact + (shares * (own - exact)).long()).clamp(max=own - 1)
    backward = {*range(exact), *far.tolist()}
    forward = {own + bucket for bucket in backward - {0}} if bidirectional else set[int]()
    unread = [entry for entry in range(buckets) if entry not in backward | forward]
    return tuple(1 + unread.index(entry) if entry in unread else 0 for entry in range(buckets))


def sinks(name: str, heads: int) -> Projection:
    """A score of no token for every head."""
    return Projection(name, None, Layout("(head feature)", (("head", heads), ("feature", 1))))


def linears(
    width: int, units: int, up: str, down: str, gate: str | None = None, *, bias: bool
) -> FeedForwardProjections:
    """The `nn.Linear` modules of a feed-forward block; `bias` is about all of them."""

    def projection(module: str, pattern: str) -> Projection:
        return _units(module, pattern, width, units, bias=bias)

    into = "feature width"
    return FeedForwardProjections(
        up=projection(up, into),
        gate=None if gate is None else projection(gate, into),
        down=projection(down, "width feature"),
    )


def transposed_linears(width: int, units: int, up: str, down: str, *, bias: bool) -> FeedForwardProjections:
    """Two `Conv1D` modules of a feed-forward block without gate, stored inputs first."""
    return FeedForwardProjections(
        up=_units(up, "width feature", width, units, bias=bias),
        gate=None,
        down=_units(down, "feature width", width, units, bias=bias),
    )


def fused_gate(width: int, units: int, fused: str, down: str, *, bias: bool) -> FeedForwardProjections:
    """One `nn.Linear` with rows `[gate | up]`, and an `nn.Linear` down; `bias` is about both."""
    axes = (("part", 2), ("feature", units), ("width", width))
    gate, up = _parts(fused, "(part feature) width", axes, (("part", 0, 1), ("part", 1, 1)), bias=bias)
    return FeedForwardProjections(up, gate, _units(down, "width feature", width, units, bias=bias))


def router(width: int, experts: int, module: str, *, bias: bool = False) -> Projection:
    """The rows that score experts."""
    return _units(module, "feature width", width, experts, bias=bias)


def correction(experts: int, name: str) -> Projection:
    """What is added to every expert's score where experts are chosen."""
    return Projection(name, None, Layout("feature", (("feature", experts),)))


def separate_experts(
    width: int, units: int, experts: int, up: str, down: str, gate: str | None = None
) -> list[FeedForwardProjections]:
    """The `nn.Linear` modules of experts, without biases; `{expert}` in the names becomes the expert's index."""

    def named(template: str, expert: int) -> str:
        return template.replace("{expert}", str(expert))

    return [
        linears(width, units, named(up, i), named(down, i), None if gate is None else named(gate, i), bias=False)
        for i in range(experts)
    ]


def interleaved_experts(width: int, units: int, experts: int, fused: str, down: str) -> list[FeedForwardProjections]:
    """Two tensors of all experts, inputs first, with biases; one has gate and up of each unit side by side."""
    sizes = (("expert", experts), ("feature", units), ("width", width))
    axes = (*sizes, ("part", 2))
    gate, up = (
        Projection(fused, f"{fused}_bias", Layout("expert width (feature part)", axes, ("part", part, 1)))
        for part in (0, 1)
    )
    return [FeedForwardProjections(up, gate, Projection(down, f"{down}_bias", Layout("expert feature width", sizes)))]


def _units(module: str, pattern: str, width: int, units: int, *, bias: bool) -> Projection:
    if units < 1:
        raise ArchitectureError(f"a feed-forward block of {units} units: there must be at least one")
    layout = Layout(pattern, (("width", width), ("feature", units)))
    return Projection(f"{module}.weight", f"{module}.bias" if bias else None, layout)


def _projection(module: str, pattern: str, sizes: Sizes, *, heads: int, bias: bool) -> Projection:
    layout = Layout(pattern, (("head", heads), ("feature", sizes.features), ("width", sizes.width)))
    return Projection(f"{module}.weight", f"{module}.bias" if bias else None, layout)


def _fused_linear(
    sizes: Sizes, fused: str, pattern: str, axes: _Axes, picks: tuple[_Pick, ...], output: str, *, bias: bool
) -> Projections:
    query, key, value = _parts(fused, pattern, axes, picks, bias=bias)
    return Projections(query, key, value, into_stream(output, sizes, bias=bias))


def _parts(module: str, pattern: str, axes: _Axes, picks: tuple[_Pick, ...], *, bias: bool) -> list[Projection]:
    """Several projections in one module, one for each pick."""
    return [
        Projection(f"{module}.weight", f"{module}.bias" if bias else None, Layout(pattern, axes, pick))
        for pick in picks
    ]
