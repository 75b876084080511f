"""`refine_tensors`: learned alignment of tensors in memory, by a loss that their owner writes as a function of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.architectures.schema import Specification
from isobasin.choices import Scope
from isobasin.errors import ArchitectureError, IsobasinError, VerificationError
from isobasin.lines.path import check_line
from isobasin.memory import carried
from isobasin.model import Blocks
from isobasin.refinement.descent import descend
from isobasin.refinement.ends import ends_of
from isobasin.refinement.line import At, MovingLine, batches_of, between
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import Refinement, learned
from isobasin.tasks.examples import Indices, as_index
from isobasin.tensor_blocks import TensorBlocks
from isobasin.verbs.align import described, match_models
from isobasin.verbs.settings import Matching, Running, chosen_device
from isobasin.verification import Verification

Loss = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""The mean loss of a model's tensors on the examples of these indices, differentiable by the tensors."""

# How many examples choose among starts, and how many, one by one, are verified.
_EXAMPLES = 128
_VERIFIED = 32
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Rows:
    """Examples by their indices."""

    indices: Tensor

    @classmethod
    def shuffled(cls, count: int, seed: int = 0) -> Rows:
        """So many examples in a random order: theirs may mean something, and the first ones are looked at most."""
        if count < 2:
            raise IsobasinError(f"examples: {count}; give at least two, one to learn from and one to hold out")
        return cls(torch.randperm(count, generator=torch.Generator().manual_seed(seed)))

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, indices: Indices) -> Tensor:
        """The indices of some of them."""
        return self.indices[as_index(indices)]

    def subset(self, indices: Indices) -> Rows:
        """Some of them, in that order."""
        return Rows(self.fetch(indices))


@dataclass
class TensorLine(MovingLine[Tensor]):
    """The line as a function of tensors computes it.

    Attributes:
        function: The loss.
    """

    function: Loss

    def at(self, t: At) -> dict[str, Tensor]:
        """The tensors at a point, in the reference's types."""
        a, b = (end.tensors() for end in self.ends)
        return {name: between(x, b[name], t).to(self.ends[0].types[name]) for name, x in a.items()}

    def loss(self, t: At, batch: Tensor) -> Tensor:
        """The loss of the tensors there."""
        return self.function(self.at(t), batch)


class TensorCalibration:
    """Chooses among alignments of tensors by the loss half-way, from starts that may be given."""

    def __init__(
        self, loss: Loss, examples: int, starts: Mapping[str, Tensor] | None = None, device: str = "cpu"
    ) -> None:
        """What choices are made by.

        Args:
            loss: The loss.
            examples: How many there are.
            starts: Further maps of the stream to start from, `(d, d)` by name.
            device: Where to compute.
        """
        self._loss, self._rows, self._starts = loss, Rows.shuffled(examples), dict(starts or {})
        self._device = chosen_device(device)

    def moments(self, model: Blocks, names: Collection[str]) -> dict[str, Tensor]:
        """Refused: a loss doesn't say what its weights multiply."""
        raise ArchitectureError("objective activations needs a checkpoint: a loss alone doesn't show a block's inputs")

    def starts(self, a: Blocks, b: Blocks, stream: Any) -> dict[str, Tensor]:
        """Those that were given."""
        return self._starts

    def scores(self, a: Blocks, b: Blocks, alignments: Sequence[Alignment]) -> list[float]:
        """The loss half-way between a and the moved b, for each alignment."""
        ends = (ends_of(a, b, found, moves=(False, False), device=self._device) for found in alignments)
        lines = (TensorLine(both, self._device, self._loss) for both in ends)
        batches = list(batches_of(self._rows, _EXAMPLES, _EXAMPLES))
        return [line.means(line.loss, batches, (0.5,))[0] for line in lines]


def refine_tensors(
    reference: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    specification: Specification,
    loss: Loss,
    examples: int,
    *,
    how: Refining | None = None,
    matching: Matching | None = None,
    running: Running | None = None,
    start: Alignment | None = None,
) -> Refinement:
    """`refine` for tensors in memory and an architecture of your own.

    Minimises `E_t L((1 - t) A(θ) + t B(θ))` by Adam over coordinates θ of the group around the matched start: `exp(X)`
    for every invertible map, that of a residual stream without normalisation included.

    Args:
        reference: Tensors by name.
        model: Tensors of the same names and shapes.
        specification: Where the blocks' projections lie and which group each has, as for `align_tensors`.
        loss: `loss(tensors, indices)`: the mean loss on the examples of these indices, differentiable by the tensors,
            which come in the reference's types.
        examples: How many there are to learn from; indices are below it.
        how: The recipe.
        matching: How the start is matched, and which factors are learned.
        running: Where; nothing is written.
        start: An alignment to start from instead.

    Returns:
        What was found; `alignment.moved_tensors` moves the model and, where it moves, `reference.moved_tensors` the
        reference.

    Raises:
        TensorError: A tensor is missing, misshapen or not finite.
        ArchitectureError: The specification names no feed-forward blocks or no stream, and they are to be moved.
        VerificationError: The loss sees a move, so the specification doesn't fit it.
    """
    how, running = how or Refining(), running or Running()
    matching = matching or Matching(scope=Scope.model)
    a, b = described(reference, model, specification, matching.scope)
    check_line(reference, model)
    rows = Rows.shuffled(examples, how.seed)
    if start is None:
        calibration = TensorCalibration(loss, examples, device=running.device)
        start = match_models(a, b, matching, replace(running, verify=False), calibration)
    line = TensorLine(ends_of(a, b, start, moves=(how.both, True), device=running.device), running.device, loss)
    found = descend(line, rows, how, progress=running.progress)
    total, other = learned(line, start, {"examples": str(examples), "seed": str(how.seed)})
    checks: list[Verification | None] = []
    for blocks, move in ((b, total), (a, other)):
        if move is not None:
            checks.append(_verified(blocks, move, loss, rows, found.before, running.device) if running.verify else None)
    return Refinement(total, other, found, tuple(checks))


@torch.no_grad()
def _verified(model: TensorBlocks, move: Alignment, loss: Loss, rows: Rows, height: float, device: str) -> Verification:
    """The losses of single examples before and after a move, in float64; small beside them, or the line's height."""
    tensors = {n: carried(t, device, torch.float64) if t.is_floating_point() else t for n, t in model.tensors.items()}
    moved = dict(tensors)
    for changed in move.moved(replace(model, tensors=tensors), device):
        moved |= changed
    before, after = (
        torch.stack([loss(w, rows.fetch([row])).double() for row in range(min(len(rows), _VERIFIED))])
        for w in (tensors, moved)
    )
    apart, size = float((after - before).abs().max()), max(float(before.abs().max()), abs(height))
    found = Verification(apart, apart / max(size, 1e-300), _TOLERANCE, "losses of single examples")
    if not found.equal:
        raise VerificationError(
            f"{model.name}: losses differ by {found.max_rel:.2g} relative after the move: the loss isn't that of the "
            "specification's architecture"
        )
    return found
