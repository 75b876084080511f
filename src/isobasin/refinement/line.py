"""The straight line between two models, differentiable by what moves its ends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from isobasin.alignment import Alignment
from isobasin.choices import TaskKind
from isobasin.errors import ArchitectureError, TensorError
from isobasin.model import Model
from isobasin.refinement.ends import End, ends_of, type_of
from isobasin.refinement.names import Places, names_in_memory, parameters
from isobasin.refinement.predictions import LARGEST, Predictions, gathered
from isobasin.tasks.examples import IGNORED, Indices, chosen
from isobasin.tasks.kind import load_model
from isobasin.tasks.losses import model_inputs, passing, targets
from isobasin.tasks.precision import ShortAttention, quicker_in_bfloat16
from isobasin.tasks.processes import Group
from isobasin.verbs.settings import Progress

Batch = TypeVar("Batch")
Fetched = TypeVar("Fetched", covariant=True)
At = float | Tensor
"""A point of the line; a tensor where no number of it is on the CPU."""
Measure = Callable[[At, Batch], Tensor]
"""Of a point of the line, on a batch."""

# What a placed batch has beside the model's inputs and labels: the numbers of its labelled rows, and what the ends
# predict there, if that is known.
_ROWS, _PREDICTED = "labelled rows", "predicted"
# The seed by which some of many examples are drawn.
_DRAW = 0


class Sample(Protocol[Fetched]):
    """Examples in some form: `isobasin.tasks.examples.Examples`, or one's own."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def fetch(self, indices: Indices) -> Fetched:
        """What a loss is given for some of them."""
        ...

    def subset(self, indices: Indices) -> Sample[Fetched]:
        """Some of them, in that order."""
        ...


@dataclass
class MovingLine(ABC, Generic[Batch]):
    """The line between two ends that a descent moves.

    Attributes:
        ends: Reference and model.
        device: Where it is.
        group: The processes that share its batches.
    """

    ends: tuple[End, End]
    device: str
    group: Group = field(default_factory=Group, kw_only=True)

    def coordinates(self) -> list[Tensor]:
        """Everything that gradient descent moves."""
        return [x for end in self.ends if end.chart is not None for x in end.chart.coordinates.values()]

    looks: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75)
    """Points at which held-out examples are looked at."""

    predicts: ClassVar[bool] = False
    """Whether `divergence` is known."""

    @abstractmethod
    def loss(self, t: At, batch: Batch) -> Tensor:
        """The loss at `(1 - t) A + t B` on a batch."""

    def divergence(self, t: At, batch: Batch) -> Tensor:
        """How much more the cross-entropy of predictions there is than that of the ends' own, on a batch.

        `E_y[(1 - t) log p_A + t log p_B - log p_t]`, with y drawn from `(1 - t) p_A + t p_B`: the loss above the
        straight line between the ends' losses, were labels drawn from what both predict. Its slopes are those of
        `KL((1 - t) p_A + t p_B || p_t)`.

        Raises:
            ArchitectureError: Of the models, only a loss is known.
        """
        raise ArchitectureError("targets 'ends' needs predictions, a loss alone has none: use targets 'labels'")

    recordable: ClassVar[bool] = False
    """Whether a measure of a placed batch asks for no values, so that a CUDA graph can replay it."""

    def placed(self, batch: Batch, known: tuple[Predictions, Tensor] | None = None) -> Batch:
        """This process's share of a batch, where it is computed with; here all of it stays.

        Args:
            batch: The batch.
            known: What the ends predict of examples, and the numbers of those that the batch has.
        """
        return batch

    def predictions(self, sample: Sample[Batch], size: int, progress: Progress) -> Predictions | None:
        """What the ends predict of all examples, `size` at a time; None if that isn't known or too large."""
        return None

    def knowing(self, batches: Sequence[tuple[Batch, int]]) -> list[tuple[Batch, int]]:
        """Placed batches with what the ends predict of them, if that isn't too large; here they stay."""
        return list(batches)

    def weight(self, batch: Batch) -> float:
        """How much a placed batch counts among those of the other processes."""
        return 1.0

    def takes_noise(self, batch: Batch) -> bool:
        """Whether a batch has real numbers that may get noise; here not."""
        return False

    def noisy(self, batch: Batch, noise: float, generator: torch.Generator) -> Batch:
        """A batch with noise on what it has of real numbers, in units of their standard deviation; here nothing."""
        return batch

    @torch.no_grad()
    def means(
        self, measure: Measure[Batch], batches: Sequence[tuple[Batch, int]], at: Sequence[float]
    ) -> tuple[float, ...]:
        """The mean of `loss` or `divergence` over placed batches, at some points."""
        count = sum(size for _, size in batches)
        return tuple(math.fsum(self._mean(measure, t, batch) * size for batch, size in batches) / count for t in at)

    def _mean(self, measure: Measure[Batch], t: float, batch: Batch) -> float:
        """A measure on a batch that the processes share."""
        found = measure(t, batch)
        self.group.average([found], self.weight(batch))
        return float(found)


def batches_of(examples: Sample[Batch], limit: int, size: int) -> Iterator[tuple[Batch, int]]:
    """At most `limit` examples in batches, each with how many they are: the same ones every time, drawn at random.

    The first ones would be of one class where data are sorted, as folders of images are.
    """
    drawn = chosen(len(examples), limit, _DRAW)
    for rows in (torch.arange(len(examples)) if drawn is None else drawn).split(size):
        yield examples.fetch(rows), len(rows)


@dataclass
class ModuleLine(MovingLine[dict[str, Tensor]]):
    """The line as a module computes it.

    Attributes:
        module: Whose parameters the line's points replace.
        names: Where stored tensors are in the module; of either end, in one order.
        kind: What the module is for.
        mixed_precision: Whether forward passes are in bfloat16.
    """

    predicts: ClassVar[bool] = True
    predicting: ClassVar[int] = 2
    """How many of the ends, from the first, are asked what they predict."""
    module: nn.Module
    names: tuple[Places, Places]
    kind: TaskKind
    mixed_precision: bool = False

    def at(self, t: At) -> dict[str, Tensor]:
        """The module's parameters at a point."""
        a, b = (end.tensors() for end in self.ends)
        pairs = zip(self.names[0].items(), self.names[1], strict=True)
        return parameters((between(a[one], b[other], t), places) for (one, places), other in pairs)

    def loss(self, t: At, batch: dict[str, Tensor]) -> Tensor:
        """The task's loss."""
        return functional.cross_entropy(self._logits(self.at(t), batch), self._labels(batch), ignore_index=IGNORED)

    def divergence(self, t: At, batch: dict[str, Tensor]) -> Tensor:
        """The loss there above that of the ends, to what both predict: the mean over what is labelled."""
        a, b = self._own(batch)
        with torch.no_grad():
            drawn, own = between(a.exp(), b.exp(), t), between(a, b, t)
        found = self._logits(self.at(t), batch)[self._rows(batch)].log_softmax(-1)
        return (drawn * (own - found)).sum(-1).mean()

    recordable: ClassVar[bool] = True

    def placed(self, batch: dict[str, Tensor], known: tuple[Predictions, Tensor] | None = None) -> dict[str, Tensor]:
        """Its share on the device, with the numbers of labelled rows, which are asked for where labels are."""
        share = range(self.group.rank, len(batch["labels"]), self.group.count)
        # Where there are more processes than examples, one computes what then doesn't count.
        mine = {name: x[list(share) or [0]] for name, x in batch.items()} if self.group.count > 1 else batch
        rows = self._rows(mine) if share else torch.zeros(0, dtype=torch.long, device=self.device)
        found = {**{name: x.to(self.device, non_blocking=True) for name, x in mine.items()}, _ROWS: rows}
        if known is not None:
            predictions, numbers = known
            found[_PREDICTED] = predictions.of(numbers[list(share)])
        return found

    def predictions(self, sample: Sample[dict[str, Tensor]], size: int, progress: Progress) -> Predictions | None:
        """What the ends predict of all examples, in half precision."""
        count = len(sample)

        def parts() -> Iterator[tuple[Sequence[Tensor], Tensor]]:
            for done, (batch, many) in enumerate(batches_of(sample, count, size)):
                labelled = targets(self.kind, batch["labels"]).reshape(many, -1) != IGNORED
                yield self._own(batch), labelled.sum(-1)
                progress("predicting", min(count, (done + 1) * size), count)

        return gathered(parts(), count)

    def knowing(self, batches: Sequence[tuple[dict[str, Tensor], int]]) -> list[tuple[dict[str, Tensor], int]]:
        """Placed batches with what the ends predict of them, as exactly as it is computed, if that isn't too large."""
        found: list[tuple[dict[str, Tensor], int]] = []
        for batch, size in batches:
            own = torch.stack(list(self._own(batch)))
            if own.nbytes * len(batches) > LARGEST // 4:
                return list(batches)
            found.append(({**batch, _PREDICTED: own}, size))
        return found

    def weight(self, batch: dict[str, Tensor]) -> float:
        """The number of its labelled rows, which measures are means over."""
        return float(len(self._rows(batch)))

    def takes_noise(self, batch: dict[str, Tensor]) -> bool:
        """Whether anything but token numbers and labels is in it."""
        return any(x.is_floating_point() for x in batch.values())

    def noisy(self, batch: dict[str, Tensor], noise: float, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch with noise on its real numbers; token numbers and labels stay."""

        def new(x: Tensor) -> Tensor:
            return x + noise * x.std() * torch.randn(x.shape, generator=generator, dtype=x.dtype)

        return {name: new(x) if x.is_floating_point() else x for name, x in batch.items()}

    @cached_property
    def _fixed(self) -> tuple[dict[str, Tensor], ...]:
        """The ends' parameters where they began: at all coordinates they predict the same, up to rounding."""
        ends = tuple(zip(self.ends, self.names, strict=True))[: self.predicting]
        return tuple(parameters((end.start[name], places) for name, places in names.items()) for end, names in ends)

    @cached_property
    def _attention(self) -> ShortAttention | None:
        """What chooses the module's attention; None where there is nothing to choose."""
        chooses = self.mixed_precision and torch.device(self.device).type == "cpu"
        return ShortAttention(self.module) if chooses else None

    @torch.no_grad()
    def _own(self, batch: dict[str, Tensor]) -> Sequence[Tensor]:
        """Log-probabilities of the ends where there are labels: looked up, if they are known."""
        if _PREDICTED in batch:
            return batch[_PREDICTED].unbind()
        rows = self._rows(batch)
        return [self._logits(end, batch)[rows].log_softmax(-1) for end in self._fixed]

    def _rows(self, batch: dict[str, Tensor]) -> Tensor:
        """The numbers of a batch's labelled rows, on the device; known of a placed one."""
        if _ROWS in batch:
            return batch[_ROWS]
        labelled = targets(self.kind, batch["labels"]).reshape(-1) != IGNORED
        return labelled.nonzero().squeeze(-1).to(self.device, non_blocking=True)

    def _labels(self, batch: dict[str, Tensor]) -> Tensor:
        return targets(self.kind, batch["labels"]).to(self.device).reshape(-1)

    def _logits(self, parameters: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        """What the module predicts with some parameters, a row for each label."""
        device = torch.device(self.device)
        given = {name: x for name, x in batch.items() if name not in (_ROWS, _PREDICTED)}
        inputs = model_inputs(self.module, given, device)
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=self.mixed_precision, cache_enabled=False)
        if self._attention is not None:
            self._attention.fit(inputs["input_ids"].shape[-1] if "input_ids" in inputs else 0)
        with passing(self.module), mixed:
            logits = functional_call(self.module, parameters, kwargs=inputs).logits
        logits = logits.reshape(-1, logits.shape[-1])
        return logits if logits.dtype == torch.float64 else logits.float()

    @classmethod
    def between(
        cls,
        a: Model,
        b: Model,
        start: Alignment,
        kind: TaskKind,
        *,
        moves: tuple[bool, bool] = (False, False),
        device: str = "cpu",
        mixed_precision: bool | None = False,
        group: Group | None = None,
    ) -> ModuleLine:
        """The line from a model to another after a move.

        Args:
            a: The reference.
            b: The other model.
            start: Moves it.
            kind: What the models are for.
            moves: Which ends get coordinates.
            device: Where to compute.
            mixed_precision: Forward passes in bfloat16; None: where that is quicker.
            group: The processes that share its batches; None: this one alone.

        Raises:
            TensorError: Their tensors differ in shape, so that there is no line between them.
        """
        module = load_model(a.checkpoint, kind, device)
        if mixed_precision is None:
            single = type_of(a, b) is torch.float32
            mixed_precision = single and quicker_in_bfloat16(module.parameters(), device)
        return cls(
            ends_of(a, b, start, moves=moves, device=device),
            device,
            module,
            _names(a, b, kind),
            kind,
            mixed_precision,
            group=group or Group(),
        )


def between(a: Tensor, b: Tensor, t: At) -> Tensor:
    """`(1 - t) a + t b` in their type; other than real tensors are a's."""
    if not a.is_floating_point():
        return a
    return torch.lerp(a, b, t.to(a.dtype) if isinstance(t, Tensor) else t)


def _names(a: Model, b: Model, kind: TaskKind) -> tuple[Places, Places]:
    """Where the stored tensors of both models are in the module, in one order."""
    ours = names_in_memory(a, kind)
    # The same names of one architecture mean the same.
    theirs = ours if a.view == b.view else names_in_memory(b, kind)
    by_keys = {tuple(keys): name for name, keys in theirs.items() if keys}
    used = {name: keys for name, keys in ours.items() if keys}
    for name, keys in used.items():
        if tuple(keys) not in by_keys:
            raise ArchitectureError(f"{b.name} has no counterpart of {a.name}'s tensor {name!r}")
        shapes = a.checkpoint.shapes[name], b.checkpoint.shapes[by_keys[tuple(keys)]]
        if shapes[0] != shapes[1]:
            raise TensorError(
                f"{a.name}'s tensor {name!r} has shape {shapes[0]}, {b.name}'s {shapes[1]}: there is no line between "
                "the two to measure on data"
            )
    return used, {by_keys[tuple(keys)]: keys for keys in used.values()}
