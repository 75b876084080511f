"""What rounding costs a model, differentiable by the coordinates of its gauge.

Each is a line from the model as it is to its rounded copy in another gauge, of which only the far end is looked at: so
`isobasin.refinement.descent` lowers it as it lowers any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.choices import Costs, TaskKind
from isobasin.errors import IsobasinError
from isobasin.model import Model
from isobasin.plain import Plain
from isobasin.quantisation.linears import Linear, linears, rounded
from isobasin.quantisation.quantiser import Rounds
from isobasin.refinement.calibration import moments_within
from isobasin.refinement.ends import End, type_of
from isobasin.refinement.line import At, ModuleLine, MovingLine, Sample, batches_of
from isobasin.refinement.names import names_in_memory, parameters
from isobasin.tasks.examples import Indices
from isobasin.tasks.kind import load_model

Batch = dict[str, Tensor]

# Examples that run at once where nothing is learned from them, and how many moments are taken of at most.
_BATCH, _SEEN = 32, 512


@dataclass(frozen=True)
class Nothing:
    """Examples of what needs none: one to learn from and one to hold out."""

    count: int = 2

    def __len__(self) -> int:
        return self.count

    def fetch(self, indices: Indices) -> Batch:
        """No inputs."""
        return {}

    def subset(self, indices: Indices) -> Nothing:
        """So many."""
        return Nothing(len(indices))


@dataclass(frozen=True)
class RoundingCost(Plain):
    """What rounding costs.

    Attributes:
        error: Of all weights together beside their size, in the gauge that they have.
        loss: The task's; NaN without data.
        divergence: KL(p | q) of what the model predicts and what it predicts once rounded; NaN without data.
    """

    error: float
    loss: float = math.nan
    divergence: float = math.nan


@dataclass
class RoundedWeights(MovingLine[Batch]):
    """The mean over weights of `E|[x, 1] (W - W')|² / E|[x, 1] W|²`, with W' the rounded weight moved back.

    W is the weight in the gauge where learning began, its normalisation folded in; its inputs there have the moments
    that are given, or are as large and independent of one another.

    Attributes:
        weights: What is rounded.
        rounds: How.
        moments: `E[[x, 1]^T [x, 1]]` of inputs by their weight, in that gauge; empty for the identity.
    """

    looks: ClassVar[tuple[float, ...]] = (1.0,)
    predicts: ClassVar[bool] = True
    weights: tuple[Linear, ...]
    rounds: Rounds
    moments: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def loss(self, t: At, batch: Batch) -> Tensor:
        """The same as `divergence`."""
        return self.divergence(t, batch)

    def divergence(self, t: At, batch: Batch) -> Tensor:
        """What rounding costs at the far end."""
        end = self.ends[1]
        assert end.chart is not None
        tensors = rounded(end.tensors(), self.weights, self.rounds)
        back = {**tensors, **end.chart.returned(tensors)}
        errors = [
            self._size(one, one.affine(back) - affine) / size
            for one, (affine, size) in zip(self.weights, self._own, strict=True)
        ]
        return torch.stack(errors).mean()

    @cached_property
    def _own(self) -> list[tuple[Tensor, Tensor]]:
        """The weights where learning began, and how large their outputs are; coordinates are 0 when this is asked."""
        with torch.no_grad():
            own = bare(self.ends[1])
            return [(affine, self._size(one, affine)) for one in self.weights for affine in [one.affine(own)]]

    def _size(self, one: Linear, affine: Tensor) -> Tensor:
        """`E|[x, 1] W|²` of a weight with its biases as the last column."""
        moments = self.moments.get(one.weight)
        return (affine.square() if moments is None else (affine @ moments) * affine).sum().clamp(min=1e-30)


def bare(end: End) -> dict[str, Tensor]:
    """All tensors of an end, its normalisations folded as far as its chart moves them."""
    assert end.chart is not None
    return {**end.start, **end.chart.bare()}


@dataclass
class RoundedModel(ModuleLine):
    """KL(p | q) of what a model predicts, p, and what it predicts once rounded in another gauge.

    Attributes:
        weights: What is rounded.
        rounds: How.
    """

    looks: ClassVar[tuple[float, ...]] = (1.0,)
    predicting: ClassVar[int] = 1
    weights: tuple[Linear, ...] = ()
    rounds: Rounds = field(default=torch.clone)

    def at(self, t: At) -> dict[str, Tensor]:
        """The module's parameters: once rounded, but at the number 0, where they are as they were."""
        if isinstance(t, float) and not t:
            return self._fixed[0]
        return self._named(rounded(self.ends[1].tensors(), self.weights, self.rounds))

    def divergence(self, t: At, batch: Batch) -> Tensor:
        """The mean over what is labelled."""
        (own,) = self._own(batch)
        found = self._logits(self.at(t), batch)[self._rows(batch)].log_softmax(-1)
        return (own.exp() * (own - found)).sum(-1).mean()

    @torch.no_grad()
    def inputs(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The moments of what each weight reads where the chart begins and its normalisations are bare."""
        parameters = self._named(bare(self.ends[1]))
        owners = {one.weight: self.names[0][one.weight][0].module for one in self.weights}

        def run(batch: Batch) -> None:
            self._logits(parameters, batch)

        found = moments_within(self.module, set(owners.values()), batches, run)
        dtype = next(iter(parameters.values())).dtype
        return {weight: found[owner].to(self.device, dtype) for weight, owner in owners.items()}

    def _named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return parameters((tensors[name], places) for name, places in self.names[0].items())


@dataclass(frozen=True)
class Cost:
    """What rounding costs one model: makes the lines on which its gauge is found.

    Attributes:
        model: The model.
        rounds: How its weights are rounded.
        by: What counts.
        device: Where that is measured.
        examples: Data to learn from; None without.
        kind: What the model does with them.
    """

    model: Model
    rounds: Rounds
    by: Costs
    device: str
    examples: Sample[Batch] | None = None
    kind: TaskKind | None = None

    def line(self, start: Alignment, stretching: float = 1.0) -> MovingLine[Batch]:
        """The line to the model, rounded, in gauges around that where a move brings it; `stretching` as of `Chart`."""
        ends = self._own, self.end(self.model, start, movable=True, stretching=stretching)
        if self.by is Costs.predictions:
            return replace(self._module, ends=ends)
        moments: Mapping[str, Tensor] = {}
        if self.by is Costs.layers and self.examples is not None:
            if experts := [one.weight for one in self._weights if "expert" in dict(one.layout.sizes)]:
                raise IsobasinError(f"{experts[0]}: layers can't weigh experts, use --by weights")
            seen = (batch for batch, _ in batches_of(self.examples, _SEEN, _BATCH))
            moments = replace(self._module, ends=ends).inputs(seen)
        return RoundedWeights(ends, self.device, self._weights, self.rounds, moments)

    @torch.no_grad()
    def measured(self, end: End, test: Sample[Batch] | None) -> RoundingCost:
        """What rounding costs at one end, on data that nothing was learned from."""
        tensors = end.tensors()
        matrices = [one.matrix(tensors[one.weight]) for one in self._weights]
        lost = sum(float((matrix - self.rounds(matrix)).square().sum()) for matrix in matrices)
        error = math.sqrt(lost / max(sum(float(matrix.square().sum()) for matrix in matrices), 1e-300))
        if test is None:
            return RoundingCost(error)
        line, batches = replace(self._module, ends=(self._own, end)), self._placed(test)
        loss, divergence = (line.means(measure, batches, (1.0,))[0] for measure in (line.loss, line.divergence))
        return RoundingCost(error, loss, divergence)

    def loss(self, test: Sample[Batch]) -> float:
        """The loss of the model as it is."""
        return self._module.means(self._module.loss, self._placed(test), (0.0,))[0]

    def _placed(self, test: Sample[Batch]) -> list[tuple[Batch, int]]:
        return [(self._module.placed(batch), size) for batch, size in batches_of(test, len(test), _BATCH)]

    def end(self, model: Model, start: Alignment, *, movable: bool = False, stretching: float = 1.0) -> End:
        """A model after a move as an end of the line."""
        dtype = type_of(model)
        return End.of(model, start, moved=True, movable=movable, device=self.device, dtype=dtype, stretching=stretching)

    @cached_property
    def _own(self) -> End:
        return End.of(self.model, Alignment("", (), {}), moved=False, device=self.device, dtype=type_of(self.model))

    @cached_property
    def _weights(self) -> tuple[Linear, ...]:
        return linears(self.model)

    @cached_property
    def _module(self) -> RoundedModel:
        assert self.kind is not None
        module = load_model(self.model.checkpoint, self.kind, self.device)
        used = {name: places for name, places in names_in_memory(self.model, self.kind).items() if places}
        ends, weights = (self._own, self._own), self._weights
        return RoundedModel(ends, self.device, module, (used, used), self.kind, weights=weights, rounds=self.rounds)
