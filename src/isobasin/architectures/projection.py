"""How a projection lies in a stored tensor: one einops pattern, from which reading and writing follow."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import torch
from einops import rearrange
from torch import Tensor

_CANONICAL = ("part", "expert", "group", "slot", "head")


@dataclass(frozen=True)
class Layout:
    """How the heads of one projection lie in a stored tensor.

    `pattern` names the axes of the stored weight in einops notation, from `part`, `expert`, `group`, `slot`, `head`,
    `feature` and `width`; `pick` narrows one of them, but for the last, to the projection at hand. Examples:

    * `nn.Linear` query: `"(head feature) width"`; output: `"width (head feature)"`
    * GPT-2's fused `Conv1D`: `"width (part head feature)"`, pick `("part", 1, 1)` for the keys
    * GPT-NeoX and Falcon: `"(group slot feature) width"`, pick `("slot", s + 1, 1)` for the values after s queries
    * fused `[Q | K | V]` with grouped queries: `"(head feature) width"`, pick `("head", h, g)` for the keys
    * `[K | V]` of n and m features, head by head: `"(head feature) width"`, pick `("feature", n, m)` for the values
    * TransformerLens: `"head width feature"`

    A feed-forward projection has no heads, and its units are the features: `"feature width"` for an `nn.Linear` into
    them, `"expert feature width"` for those of all experts in one tensor.

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
        return tensor.narrow(-1 if axis == "feature" else self._outer.index(axis), start, length)

    @cache  # noqa: B019 - layouts are few and small
    def shape(self, bias: bool = False) -> tuple[int, ...]:
        """The shape that the stored tensor must have."""
        stored, canonical = self._patterns(bias)
        whole = torch.empty([dict(self.sizes)[name] for name in canonical.split()], device="meta")
        return tuple(rearrange(whole, f"{canonical} -> {stored}").shape)

    @property
    def width_axis(self) -> int:
        """The axis of the stored weight that runs along the residual stream."""
        tokens = re.sub(r"\([^)]*\)", "()", self.pattern).split()
        return tokens.index("width")

    def matrix(self, writes: bool) -> tuple[str, str]:
        """The einops patterns of the stored weight and of a matrix of it, outputs first, behind an axis of experts.

        Args:
            writes: Whether the width is that of its outputs; it is that of its inputs otherwise.
        """
        others = [name for name in re.findall(r"\w+", self.pattern) if name not in ("expert", "width")]
        other = f"({' '.join(others)})"
        rows = ["width", other] if writes else [other, "width"]
        return self.pattern, " ".join([*(["expert"] if "expert" in dict(self.sizes) else []), *rows])

    def _sizes(self, bias: bool) -> dict[str, int]:
        return {name: size for name, size in self.sizes if not (bias and name == "width")}

    def read(self, stored: Tensor, bias: bool = False) -> Tensor:
        """The picked heads, `(heads, width, feature)`, or `(heads, feature)` of a bias."""
        source, target = self._patterns(bias)
        picked = self._narrow(rearrange(stored, f"{source} -> {target}", **self._sizes(bias)))
        return picked.reshape(-1, *picked.shape[len(self._outer) :])

    def put(self, stored: Tensor, heads: Tensor, bias: bool = False) -> None:
        """Replace the picked heads of a contiguous tensor, cast to its type once."""
        source, target = self._patterns(bias)
        # Axes of a contiguous tensor are split and reordered without a copy.
        part = self._narrow(rearrange(stored, f"{source} -> {target}", **self._sizes(bias)))
        part.copy_(heads.reshape(part.shape))


@dataclass(frozen=True)
class Projection:
    """One projection: the names of its stored tensors and how its heads lie in them.

    The bias of a projection into the residual stream has no heads: it is stored as it is.
    """

    weight: str
    bias: str | None
    layout: Layout


Gains = Projection | tuple[Projection, ...]
"""Where gains of normalised queries or keys lie: all together, or those of each head by themselves."""
