"""How heads lie in stored tensors, and which features a rotary position turns together.

Each order that occurs in checkpoints is written once here; family files say only which one is theirs. Names
are templates: `{layer}` stands for the layer's index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from isobasin.architectures.schema import Layout, Projection
from isobasin.errors import ArchitectureError

Plane = tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the attention blocks of one model.

    Attributes:
        width: Width of the residual stream.
        heads: Number of query heads.
        groups: Number of key/value heads; query head `i` reads key/value head `i // queries`.
        features: Width of a head.
    """

    width: int
    heads: int
    groups: int
    features: int

    @property
    def queries(self) -> int:
        """Query heads of each key/value head."""
        return self.heads // self.groups


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
    """Feature `2j` turns with `2j + 1` (GPT-J and RoFormer)."""
    return tuple((2 * j, 2 * j + 1) for j in range(_half(rotated)))


def _half(rotated: int) -> int:
    if rotated < 0 or rotated % 2:
        raise ArchitectureError(f"rotary positions turn {rotated} features of a head: an even number is needed")
    return rotated // 2


def separate(
    sizes: Sizes,
    query: str,
    key: str,
    value: str,
    output: str,
    *,
    bias: bool,
    output_bias: bool,
    key_bias: bool = True,
) -> Projections:
    """Four `nn.Linear` modules; `bias` is that of the queries, the values and, unless `key_bias` is False, the keys."""
    return Projections(
        query=_projection(query, "(head feature) width", sizes, heads=sizes.heads, bias=bias),
        key=_projection(key, "(head feature) width", sizes, heads=sizes.groups, bias=bias and key_bias),
        value=_projection(value, "(head feature) width", sizes, heads=sizes.groups, bias=bias),
        output=_projection(output, "width (head feature)", sizes, heads=sizes.heads, bias=output_bias),
    )


def fused_blocks(sizes: Sizes, fused: str, output: str, *, bias: bool) -> Projections:
    """One `Conv1D` with columns `[Q | K | V]`, and a `Conv1D` output.

    `Conv1D` stores the transpose of what `nn.Linear` stores: inputs first.
    """
    query, key, value = (_part(fused, "width (part head feature)", sizes, part, bias=bias) for part in range(3))
    return Projections(
        query, key, value, _projection(output, "(head feature) width", sizes, heads=sizes.heads, bias=bias)
    )


def fused_heads(sizes: Sizes, fused: str, output: str, *, bias: bool) -> Projections:
    """One `nn.Linear` whose rows are `[Q | K | V]` of each head in turn, and an `nn.Linear` output."""
    query, key, value = (_part(fused, "(head part feature) width", sizes, part, bias=bias) for part in range(3))
    return Projections(
        query, key, value, _projection(output, "width (head feature)", sizes, heads=sizes.heads, bias=bias)
    )


def fused_groups(sizes: Sizes, fused: str, output: str, *, bias: bool) -> Projections:
    """One `nn.Linear` whose rows are all heads of Q, then those of K, then those of V, and an `nn.Linear` output."""
    heads, groups = sizes.heads, sizes.groups
    axes = (("head", heads + 2 * groups), ("feature", sizes.features), ("width", sizes.width))

    def part(first: int, count: int) -> Projection:
        layout = Layout("(head feature) width", axes, ("head", first, count))
        return Projection(f"{fused}.weight", f"{fused}.bias" if bias else None, layout)

    return Projections(
        part(0, heads),
        part(heads, groups),
        part(heads + groups, groups),
        _projection(output, "width (head feature)", sizes, heads=heads, bias=bias),
    )


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


def fused_gate(width: int, units: int, fused: str, down: str, *, bias: bool) -> FeedForwardProjections:
    """One `nn.Linear` whose rows are those of the gate, then those of up, and an `nn.Linear` into the stream."""
    plain = linears(width, units, fused, down, bias=bias)
    axes = (("part", 2), *plain.up.layout.sizes)
    gate, up = (replace(plain.up, layout=Layout("(part feature) width", axes, ("part", i, 1))) for i in range(2))
    return FeedForwardProjections(up, gate, plain.down)


def transposed_linears(width: int, units: int, up: str, down: str, *, bias: bool) -> FeedForwardProjections:
    """Two `Conv1D` modules of a feed-forward block without gate, stored inputs first."""
    return FeedForwardProjections(
        up=_units(up, "width feature", width, units, bias=bias),
        gate=None,
        down=_units(down, "feature width", width, units, bias=bias),
    )


def _units(module: str, pattern: str, width: int, units: int, *, bias: bool) -> Projection:
    if units < 1:
        raise ArchitectureError(f"a feed-forward block of {units} units: there must be at least one")
    layout = Layout(pattern, (("width", width), ("feature", units)))
    return Projection(f"{module}.weight", f"{module}.bias" if bias else None, layout)


def _projection(module: str, pattern: str, sizes: Sizes, *, heads: int, bias: bool) -> Projection:
    layout = Layout(pattern, (("head", heads), ("feature", sizes.features), ("width", sizes.width)))
    return Projection(f"{module}.weight", f"{module}.bias" if bias else None, layout)


def _part(module: str, pattern: str, sizes: Sizes, part: int, *, bias: bool) -> Projection:
    axes = (("part", 3), ("head", sizes.heads), ("feature", sizes.features), ("width", sizes.width))
    return Projection(f"{module}.weight", f"{module}.bias" if bias else None, Layout(pattern, axes, ("part", part, 1)))
