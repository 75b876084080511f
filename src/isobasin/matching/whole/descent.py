"""Coordinate descent over two whole models: the residual stream and all blocks in turn.

With the blocks fixed the stream's map is one Procrustes problem, and with the map fixed every block is matched as it is
alone (arXiv 2606.17830, section 3; the residual map is this library's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from isobasin.matching.whole.pair import Pair
from isobasin.model import Blocks
from isobasin.symmetries.turning import Tensors

# A sweep that lowers the squared distance by a smaller share than this is the last.
_FALL = 1e-3
_SWEEPS = 100
# Below this share of the models' squared distance a sweep has only rounding to gain.
_ROUNDING = 1e-15


class Moves(Protocol):
    """What moves all blocks of a model."""

    def moved(self, model: Blocks, device: str = "cpu") -> Iterator[dict[str, Tensor]]:
        """The tensors of every block after its move, a block at a time."""
        ...


Found = TypeVar("Found", bound=Moves)

# Matches all blocks of two models.
Match = Callable[[Blocks, Blocks], Found]


@dataclass(frozen=True)
class Descent(Generic[Found]):
    """Where coordinate descent from one start ended.

    Attributes:
        start: What it is called.
        matrix: The stream's map.
        blocks: The moves of all blocks after it.
        moved: The folded model's tensors after all moves.
        squares: The squared distance.
        sweeps: How often all factors were matched.
    """

    start: str
    matrix: Tensor
    blocks: Found
    moved: Tensors
    squares: float
    sweeps: int


def descend(pair: Pair, start: str, matrix: Tensor, solvers: Sequence[Match[Found]]) -> Descent[Found]:
    """Match blocks and stream in turn until the distance stops falling, with one solver of blocks after the other.

    Args:
        pair: The folded models.
        start: What the start is called.
        matrix: The stream's map to begin with.
        solvers: Each matches all blocks of two models; the last one's blocks are the result's.
    """
    sweeps = 0
    best: Descent[Found] | None = None
    for match in solvers:
        best = None
        while best is None or sweeps < _SWEEPS:
            sweeps += 1
            found = swept(pair, start, matrix, match, sweeps)
            if best is not None and not found.squares < best.squares * (1 - _FALL):
                break
            best = found
            if found.squares <= _ROUNDING * pair.apart:
                break
            matrix = best.matrix @ pair.fitted(pair.along, best.moved)
        matrix = best.matrix
    assert best is not None
    return best


def swept(pair: Pair, start: str, matrix: Tensor, match: Match[Found], sweeps: int = 1) -> Descent[Found]:
    """All blocks matched once, in some basis of the stream."""
    turned = pair.turned(matrix)
    found = match(pair.folded[0], turned)
    moved = dict(turned.tensors)
    for tensors in found.moved(turned, pair.device):
        moved |= tensors
    return Descent(start, matrix, found, moved, pair.squares(moved), sweeps)


def starts(pair: Pair) -> dict[str, Tensor]:
    """Maps of the stream to begin with, by name."""
    identity = torch.eye(pair.group.width, dtype=torch.float64, device=pair.device)
    return {"embeddings": pair.fitted(pair.outer(), pair.folded[1].tensors), "identity": identity}
