"""How an alignment is learned: what a user may choose."""

from __future__ import annotations

from dataclasses import dataclass

from isobasin.bounds import LARGEST_BATCH, MANY, check_number, check_seed
from isobasin.choices import Targets


@dataclass(frozen=True)
class Refining:
    """How an alignment is learned.

    Attributes:
        steps: At most.
        batch_size: Examples of a step.
        rate: Adam's highest; it rises over `warmup` steps and falls by a cosine to 5 %. The residual stream turns by
            three times as many radians in a step, and its gains move three times as fast.
        warmup: Steps.
        both: Move the reference too; its function stays the same as well.
        seed: Of batches, of points on the line and of noise.
        held_out: Share of the examples that the best coordinates are chosen by.
        every: Steps between two such looks.
        patience: Looks without a better one after which it ends; None: those of a third of the steps, 10 at
            least. While rates are high looks hardly get better: what was learned shows once they fall.
        mixed_precision: Forward passes in bfloat16; None: where that is quicker, for what the device multiplies and how
            wide the model is.
        targets: What it learns from; None: the ends' predictions, or labels where only a loss is known.
        noise: Standard deviation of what is added to inputs that are real numbers, images for example, in units of
            theirs; only where it learns from the ends' predictions. Held-out examples get it once.
        minutes: How long to learn, at most: from the first steps is found how many that holds. 0: as long as it takes.

    Raises:
        IsobasinError: A number is out of range.
    """

    steps: int = 6000
    batch_size: int = 32
    rate: float = 1e-2
    warmup: int = 20
    both: bool = True
    seed: int = 0
    held_out: float = 0.1
    every: int = 50
    patience: int | None = None
    mixed_precision: bool | None = None
    targets: Targets | None = None
    noise: float = 0.2
    minutes: float = 30

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("warmup", 0), ("every", 1)):
            check_number(name, getattr(self, name), least, MANY)
        if self.patience is not None:
            check_number("patience", self.patience, 1, MANY)
        check_number("batch size", self.batch_size, 1, LARGEST_BATCH)
        for name in ("rate", "noise", "minutes"):
            check_number(name, getattr(self, name), 0, MANY)
        check_number("held out", self.held_out, 0, 1)
        check_seed(self.seed)
