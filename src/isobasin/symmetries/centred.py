"""What is left of a head's Q-K group where LayerNorm normalises queries and keys, else as `isobasin.symmetries.normed`.

LayerNorm lets only one sign pass, of all features of a head. A quarter turn is one of the gains, `a_p <- i a_p`,
`b_p <- i b_p`, while the plane's two features change places in Q and K; two of them are a trade of -1. The complex
numbers are then ±1 and ±i with the head's sign. A head's query, or its key, changes its sign with all of its gains.
Nor does it see what is added to all features of a head's queries, or of its keys (`isobasin.symmetries.means`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.bilinear import join, linear_part, plane_part
from isobasin.symmetries.factor import Parts
from isobasin.symmetries.loose import Loose
from isobasin.symmetries.normed import MATRIX, PLANES, SIGNS, TRADES, Normed, swapped, turned


@dataclass(frozen=True)
class Centred(Normed):
    """The same of heads with LayerNorm, which has gains for every head."""

    @property
    def signs(self) -> int:
        """One: the mean mixes all features."""
        return 1

    def _sample_signs(self, signs: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        rows = signs(self.kv_heads, 1)
        return rows, rows

    def _carried_signs(self, element: Parts, signs: Parts) -> Parts:
        return {name: signs[name] for name in SIGNS.values()}

    def _settled(self, found: Parts, *factors: Parts) -> Parts:
        """One sign for all planes: that of the factors; planes of the other one were turned twice, theirs is traded."""
        left = _plane_signs(found) * torch.stack([_head_sign(x) for x in factors]).prod(0).unsqueeze(-1)
        planes, linear = found[TRADES].split([len(self.pair.planes), len(self.pair.linear)], -1)
        return {**found, PLANES: found[PLANES] * left, TRADES: torch.cat([planes * left, linear], -1)}

    def contains(self, element: Parts) -> bool:
        """Whether all features of a head have one sign too."""
        sign = _head_sign(element).unsqueeze(-1)
        alike = bool((_plane_signs(element) == sign).all() and (element[MATRIX].sum(-1) == sign).all())
        return alike and super().contains(element)

    def _moved(self, element: Parts, rows: Tensor) -> Tensor:
        """Q or K: the head's sign, a permutation, and planes whose features change places."""
        planes = plane_part(self.pair, rows)
        moved = torch.where(turned(element[PLANES]).unsqueeze(-2), swapped(planes), planes)
        linear = linear_part(self.pair, rows) @ element[MATRIX].mT
        return join(self.pair, linear, moved * _head_sign(element)[..., None, None])

    def _turned_gains(self, planes: Tensor) -> Tensor:
        return 1j * planes

    def deciding(self, weights: Parts) -> tuple[Tensor, Tensor]:
        """Of queries `Σ a b`, which no trade changes; a key's sign is made of trades and of its queries' signs."""
        products = (weights["query_gain"] * weights["key_gain"].unsqueeze(-2)).sum(-1, keepdim=True)
        return products, torch.ones_like(weights["key_gain"][..., :1])

    def _canonical_signs(self, columns: tuple[Tensor, Tensor], turns: Tensor, moves: Tensor, loose: Loose) -> Parts:
        """The same, with one sign of all features."""
        planes = [part for x in columns for part in torch.view_as_real(plane_part(self.pair, x)).unbind(-1)]
        parts = [*planes, *(linear_part(self.pair, x) for x in columns)]
        sign = loose.phase(*(x.flatten(-2).unsqueeze(-1) for x in parts))
        return {MATRIX: moves * sign.unsqueeze(-1), PLANES: turns * sign}

    @property
    def maps(self) -> str:
        """Signs of queries, from which with trades those of keys follow, and of keys."""
        return f"{{±1}}^{self.columns}"

    def __str__(self) -> str:
        return f"(R*)^{self.trades} (gains)"


def _plane_signs(element: Parts) -> Tensor:
    """Of every plane, turned or not, `(..., p)`."""
    return element[PLANES].real + element[PLANES].imag


def _head_sign(element: Parts) -> Tensor:
    """That of all features of a head with LayerNorm, `(...)`."""
    return _plane_signs(element)[..., 0]
