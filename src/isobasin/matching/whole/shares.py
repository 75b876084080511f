"""How much every tensor counts where whole models are compared.

Tensors of one model differ in size by an order of magnitude, and the large ones would decide the stream's map alone. So
each counts by its share of the reference's: what blocks read, and embeddings, heads and gains, in units of their own
norm; what a block writes in units that make it as large as what it reads. Moves commute with all these factors, and
the writers' are the same for weights and biases, so that a free shift of a value bias still passes from one to the
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from isobasin.architectures.blocks import Block
from isobasin.model import Blocks


@dataclass(frozen=True)
class Shares:
    """Factors of the tensors of two folded models.

    Attributes:
        written: What every block's writers are multiplied by before blocks are matched.
        weights: What every tensor of the reference counts with after that, by name.
    """

    written: tuple[float, ...]
    weights: dict[str, float]

    @classmethod
    def of(cls, reference: Blocks, squares: Mapping[str, float]) -> Shares:
        """The shares of a reference's tensors, from the squared norms of those that are compared."""

        def norm(names: Iterable[str]) -> float:
            return math.sqrt(math.fsum(squares[name] for name in names))

        weights = {name: _ratio(1.0, norm([name])) for name in squares}
        factors: list[float] = []
        for block in reference.blocks():
            read = norm({projection.weight for projection in block.readers.values()})
            factors.append(_ratio(read, norm({projection.weight for projection in block.writers})))
            weights |= dict.fromkeys(weights.keys() & block.shapes().keys(), _ratio(1.0, read))
        return cls(tuple(factors), weights)

    def factors(self, blocks: Blocks) -> dict[str, float]:
        """What the writers of either model are multiplied by, by name."""
        return {n: f for block, f in zip(blocks.blocks(), self.written, strict=True) for n in _writing(block)}


def _writing(block: Block) -> set[str]:
    """The weights and biases of what a block writes."""
    return {name for p in block.writers for name in (p.weight, p.bias) if name is not None}


def _ratio(size: float, to: float) -> float:
    """How much larger a size is than another; 1 where either is 0."""
    return size / to if size > 0 and to > 0 else 1.0
