"""What a checkpoint means: where each attention projection lies, and which symmetry group it has.

A specification states facts only. Reading and writing follow from them: the stored form of a projection is
one einops pattern (`Layout`), and the inverse is derived from the same pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights

_CANONICAL = ("part", "group", "slot", "head")


@dataclass(frozen=True)
class Layout:
    """How the heads of one projection lie in a stored tensor.

    `pattern` names the axes of the stored weight in einops notation, from `part`, `group`, `slot`, `head`,
    `feature` and `width`; `pick` narrows one of the first four to the projection at hand. Examples:

    * `nn.Linear` query: `"(head feature) width"`; output: `"width (head feature)"`
    * GPT-2's fused `Conv1D`: `"width (part head feature)"`, pick `("part", 1, 1)` for the keys
    * GPT-NeoX: `"(head part feature) width"`, pick `("part", 2, 1)` for the values
    * fused `[Q | K | V]` with grouped queries: `"(head feature) width"`, pick `("head", h, g)` for the keys
    * TransformerLens: `"head width feature"`

    Attributes:
        pattern: The stored axes.
        sizes: Size of every axis that the pattern names.
        pick: `(axis, start, length)` of the part of a fused tensor, or None for all of it.
    """

    pattern: str
    sizes: tuple[tuple[str, int], ...]
    pick: tuple[str, int, int] | None = None

    @property
    def _outer(self) -> list[str]:
        """The axes before `width` and `feature` in the canonical order."""
        return [name for name in _CANONICAL if name in dict(self.sizes)]

    def _patterns(self, bias: bool) -> tuple[str, str]:
        """The stored and the canonical einops patterns of the weight, or of the bias."""
        stored = " ".join(self.pattern.replace("width", "").split()) if bias else self.pattern
        canonical = [*self._outer, *([] if bias else ["width"]), "feature"]
        return stored, " ".join(canonical)

    def _narrow(self, tensor: Tensor) -> Tensor:
        """The picked part of a tensor in canonical axes; a view."""
        if self.pick is None:
            return tensor
        axis, start, length = self.pick
        return tensor.narrow(self._outer.index(axis), start, length)

    def shape(self, bias: bool = False) -> tuple[int, ...]:
        """The shape that the stored tensor must have."""
        sizes = dict(self.sizes)
        stored, _ = self._patterns(bias)
        shape: list[int] = []
        product: int | None = None
        for token in stored.replace("(", " ( ").replace(")", " ) ").split():
            if token == "(":
                product = 1
            elif token == ")":
                shape.append(product or 1)
                product = None
            elif product is not None:
                product *= sizes[token]
            else:
                shape.append(sizes[token])
        return tuple(shape)

    def _sizes(self, bias: bool) -> dict[str, int]:
        return {name: size for name, size in self.sizes if not (bias and name == "width")}

    def read(self, stored: Tensor, bias: bool = False) -> Tensor:
        """The picked heads, `(heads, width, feature)`, or `(heads, feature)` of a bias."""
        source, target = self._patterns(bias)
        picked = self._narrow(rearrange(stored, f"{source} -> {target}", **self._sizes(bias)))
        return picked.reshape(-1, *picked.shape[len(self._outer) :])

    def write(self, stored: Tensor, heads: Tensor, bias: bool = False) -> Tensor:
        """A copy of `stored` in which the picked heads are replaced, cast to its type once."""
        source, target = self._patterns(bias)
        canonical = rearrange(stored, f"{source} -> {target}", **self._sizes(bias)).clone()
        part = self._narrow(canonical)
        part.copy_(heads.reshape(part.shape))
        return rearrange(canonical, f"{target} -> {source}", **self._sizes(bias)).contiguous()


@dataclass(frozen=True)
class Projection:
    """One projection: the names of its stored tensors and how its heads lie in them.

    The bias of an output projection has no heads: it is stored as it is.
    """

    weight: str
    bias: str | None
    layout: Layout


@dataclass(frozen=True)
class AttentionSite:
    """One attention block of a checkpoint.

    Attributes:
        layer: Index of the layer, from 0.
        name: The module's path in the checkpoint, for messages.
        query, key, value, output: The projections.
        group: The block's symmetry group.
    """

    layer: int
    name: str
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    group: AttentionGroup

    @property
    def projections(self) -> dict[str, Projection]:
        """The projections by their role."""
        return {"query": self.query, "key": self.key, "value": self.value, "output": self.output}

    @property
    def width(self) -> int:
        """Width of the residual stream that the block reads and writes."""
        return dict(self.query.layout.sizes)["width"]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every stored tensor of the block and the shape it must have."""
        shapes: dict[str, tuple[int, ...]] = {}
        for projection in self.projections.values():
            shapes[projection.weight] = projection.layout.shape()
            if projection.bias is not None:
                bias = (self.width,) if projection is self.output else projection.layout.shape(bias=True)
                shapes[projection.bias] = bias
        return shapes

    def read(self, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu") -> AttentionWeights:
        """The block's weights in float64, without leading dimensions."""
        g, s = self.group.groups, self.group.queries
        double = {name: tensors[name].to(device, torch.float64) for name in self.shapes()}

        def pick(projection: Projection, *heads: int) -> tuple[Tensor, Tensor | None]:
            weight = projection.layout.read(double[projection.weight])
            bias = None
            if projection.bias is not None and projection is not self.output:
                bias = projection.layout.read(double[projection.bias], bias=True)
                bias = bias.reshape(*heads, *bias.shape[1:])
            return weight.reshape(*heads, *weight.shape[1:]), bias

        query, query_bias = pick(self.query, g, s)
        key, key_bias = pick(self.key, g)
        value, value_bias = pick(self.value, g)
        output, _ = pick(self.output, g, s)
        output_bias = None if self.output.bias is None else double[self.output.bias]
        return AttentionWeights(query, key, value, output, query_bias, key_bias, value_bias, output_bias)

    def write(self, tensors: Mapping[str, Tensor], weights: AttentionWeights) -> dict[str, Tensor]:
        """New stored tensors of the block, with `tensors`' types and layout and `weights`' values."""
        new = {name: tensors[name] for name in self.shapes()}
        for role, projection in self.projections.items():
            if (projection.bias is None) != (getattr(weights, f"{role}_bias") is None):
                raise ValueError(f"{self.name}: the {role} bias must be given if, and only if, the block has one")
        rows = {
            self.query: (weights.query, weights.query_bias),
            self.key: (weights.key, weights.key_bias),
            self.value: (weights.value, weights.value_bias),
            self.output: (weights.output, None),
        }
        for projection, (weight, bias) in rows.items():
            new[projection.weight] = projection.layout.write(new[projection.weight], weight)
            if projection.bias is not None and bias is not None:  # an output bias has no heads
                new[projection.bias] = projection.layout.write(new[projection.bias], bias, bias=True)
        if self.output.bias is not None and weights.output_bias is not None:
            new[self.output.bias] = weights.output_bias.to(tensors[self.output.bias])
        return new


@dataclass(frozen=True)
class Specification:
    """A checkpoint's architecture: its attention blocks in order.

    Attributes:
        model_type: As in the configuration, or any name for a home-made architecture.
        sites: The attention blocks.
    """

    model_type: str
    sites: tuple[AttentionSite, ...]

    def renamed(self, prefix: str) -> Specification:
        """The same facts with `prefix` before every tensor name (a head model's base-model prefix)."""

        def name(projection: Projection) -> Projection:
            bias = None if projection.bias is None else prefix + projection.bias
            return replace(projection, weight=prefix + projection.weight, bias=bias)

        sites = tuple(
            replace(
                site,
                name=prefix + site.name,
                query=name(site.query),
                key=name(site.key),
                value=name(site.value),
                output=name(site.output),
            )
            for site in self.sites
        )
        return replace(self, sites=sites)
