"""Gradient descent on the group: the coordinates of one or both models that make the line between them low."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from torch import Tensor

from isobasin.choices import Targets
from isobasin.errors import AlignmentError, DataError, TensorError
from isobasin.pictures import inline, line
from isobasin.plain import Plain
from isobasin.records.curves import rise
from isobasin.refinement.chart import GAINS, MATRIX
from isobasin.refinement.gradients import gradients
from isobasin.refinement.line import Batch, MovingLine, Sample, batches_of
from isobasin.refinement.points import Points
from isobasin.refinement.predictions import Predictions
from isobasin.refinement.recipe import Refining
from isobasin.tasks.examples import divided
from isobasin.verbs.settings import Progress

_BETAS = (0.9, 0.95)
_LOWEST_RATE = 0.05
# Highest rates beside that of most coordinates: of the logarithms of the stream's gains, and radians that it turns by.
_GAINS = 3.0
_RADIANS = 3.0
# Steps between which a step is timed, from where steps take as long as they do: the first ones also prepare.
_TIMED_FROM, _TIMED_TO = 8, 18
# What the ends predict is computed once if steps will ask for it that often: it is a third of a step.
_WORTH = 2
# It ends without a better look in the n-th part of all steps, rates being high for half of them, or in so many looks.
_PATIENCE, _FEWEST_LOOKS = 3, 10
# How many held-out examples are looked at, at most.
_LOOKED_AT = 128
# What the move says where coordinates became so large that its maps are not finite, or singular.
_DIVERGED = (TensorError, torch.linalg.LinAlgError)  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class Refined(Plain):
    """How a descent went.

    Attributes:
        steps: Taken.
        best_step: Whose coordinates were kept; 0 is where it began.
        before, after: Height of the line on the held-out examples at the highest of a few points, in nats, at the start
            and at the best step: of the loss above the straight line between its ends', or of the divergence from what
            the ends predict, whichever was learned from.
        history: Step and height at every look.
    """

    steps: int
    best_step: int
    before: float
    after: float
    history: tuple[tuple[int, float], ...]

    def _picture(self) -> str:
        if not self.history:
            return ""
        steps, heights = zip(*self.history, strict=True)
        return inline([line(steps, heights, "step", "height of the line")], "height of the line at every look")


Saved = dict[str, Any]


@dataclass
class State:
    """Where a descent stands; `since` is the step before which it was first known what the ends predict, or 0."""

    planned: int
    step: int = 0
    since: int = 0
    best_step: int = 0
    best: float = math.inf
    history: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    kept: list[Tensor] = field(default_factory=list[Tensor])

    @property
    def known(self) -> bool:
        """Whether it is known what the ends predict, so that steps are quicker."""
        return self.since > 0


class Clock:
    """Seconds between laps, of a GPU too."""

    def __init__(self, device: str) -> None:
        """Start."""
        self._waits = torch.device(device).type == "cuda"
        self._began = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last one."""
        if self._waits:
            torch.cuda.synchronize()
        began, self._began = self._began, time.perf_counter()
        return self._began - began


class Descent(Generic[Batch]):
    """Descent on the coordinates of a line's ends, and all that it needs to go on from where it was saved."""

    def __init__(self, line: MovingLine[Batch], examples: Sample[Batch], how: Refining) -> None:
        self.line, self.how = line, how
        self.coordinates = line.coordinates()
        self.generator = torch.Generator().manual_seed(how.seed)
        targets = how.targets or (Targets.ends if line.predicts else Targets.labels)
        self.measure = line.loss if targets is Targets.labels else line.divergence
        self.gradient = gradients(self.measure, self.coordinates, recordable=line.recordable)
        self.noise = 0.0 if targets is Targets.labels else how.noise
        self.train, held = split(examples, how)
        # The ends may have been trained on held-out examples too; with noise, the same at every look, they weren't.
        looked_at = batches_of(held, _LOOKED_AT, how.batch_size)
        self.looked_at = [(line.placed(self._noisy(batch)), size) for batch, size in looked_at]
        if targets is Targets.ends:
            self.looked_at = line.knowing(self.looked_at)
        self._predictions: Predictions | None = None
        # At the ends nothing diverges from what they predict themselves.
        first, last = line.means(self.measure, self.looked_at, (0.0, 1.0)) if targets is Targets.labels else (0.0, 0.0)
        self.ends = first, last
        self.points = Points(self.ends, line.device)
        self.optimisers = _optimisers(line, how.rate)
        self.state = State(planned=how.steps)
        self._clock, self._looking, self._began = Clock(line.device), 0.0, time.perf_counter()

    def saved(self) -> Saved:
        """All that `restore` takes."""
        return {
            "state": vars(self.state),
            "coordinates": [x.detach().clone() for x in self.coordinates],
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "excess": self.points.excess,
            "generator": self.generator.get_state(),
        }

    def restore(self, saved: Saved) -> None:
        """Go on from there.

        Raises:
            AlignmentError: It isn't what `saved` returns of such a descent.
        """
        try:
            fits = self._fits(saved)
            if fits:
                for optimiser, found in zip(self.optimisers, saved["optimisers"], strict=True):
                    optimiser.load_state_dict(found)
                self.generator.set_state(saved["generator"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            fits = False
        if not fits:
            raise AlignmentError(
                "the state of an interrupted run doesn't fit this one: delete the file .OUT.unfinished beside OUT to "
                "begin anew"
            )
        vars(self.state).update(saved["state"])
        self._set(saved["coordinates"])
        self.points.excess = saved["excess"].to(self.points.t.device)

    def _fits(self, saved: Saved) -> bool:
        """Whether everything has the type and the shape that it has here."""
        own, state = self.saved(), saved["state"]
        shapes = [x.shape for x in self.coordinates]
        moments = zip(self.optimisers, saved["optimisers"], strict=True)
        return (
            all(isinstance(state[name], type(value)) for name, value in own["state"].items())
            and [x.shape for x in (saved["excess"], saved["generator"])]
            == [own[n].shape for n in ("excess", "generator")]
            and all([x.shape for x in part] in (shapes, []) for part in (saved["coordinates"], state["kept"]))
            and all(_like(optimiser, found["state"]) for optimiser, found in moments)
            and all(isinstance(step, int) and isinstance(height, float) for step, height in state["history"])
            and 0 <= state["best_step"] <= state["step"] <= state["planned"]
            and bool(state["history"] and state["kept"] and saved["coordinates"])
        )

    def look(self) -> bool:
        """Measure the line on held-out examples, and keep the coordinates if they are the best; whether it is new."""
        state = self.state
        if state.history and state.history[-1][0] == state.step:
            return False
        self._clock.lap()
        height = self._height()
        self._looking = self._clock.lap()
        state.history.append((state.step, height))
        if height < state.best:
            state.best, state.best_step = height, state.step
            state.kept = [coordinate.detach().clone() for coordinate in self.coordinates]
        return True

    def step(self) -> bool:
        """One step at one point of the line; False where a map has no inverse any more.

        No value is read: where the loss is no number, the next look says so.
        """
        rows = torch.randint(len(self.train), (self.how.batch_size,), generator=self.generator)
        index = self.points.draw(self.generator)
        known = None if self._predictions is None else (self._predictions, rows)
        batch = self.line.placed(self._noisy(self.train.fetch(rows)), known)
        weight = self.line.weight(batch)
        try:
            loss = self.gradient(self.points.t.take(index), batch)
        except _DIVERGED:
            return False
        # Every process has all coordinates, so that what it takes to move them is computed by each.
        self.line.group.average([*(x.grad for x in self.coordinates if x.grad is not None), loss], weight)
        share = _share(self.state.step, self.state.planned, self.how.warmup)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = share * group["highest"]
            optimiser.step()
        self.points.tell(index, loss)
        self.state.step += 1
        self._plan()
        return True

    def _plan(self) -> None:
        """After a few steps of a kind: how many of them what is left of the minutes holds."""
        state, how = self.state, self.how
        taken = state.step - state.since
        if not how.minutes or taken not in (_TIMED_FROM, _TIMED_TO):
            return
        seconds = self._clock.lap()
        if taken == _TIMED_TO:
            each = seconds / (_TIMED_TO - _TIMED_FROM) + self._looking / how.every
            # The first steps of all count as the others do, whatever else they prepare.
            left = 60 * how.minutes - (time.perf_counter() - self._began if state.known else state.step * each)
            fitting = max(state.step, min(how.steps, state.step + int(left / each)))
            state.planned = self.line.group.once(lambda: fitting)

    def patience(self) -> int:
        """Steps without a better look after which it ends: of as many as are planned now."""
        every = self.how.every
        return every * (self.how.patience or max(math.ceil(self.state.planned / _PATIENCE / every), _FEWEST_LOOKS))

    def worth_knowing(self) -> bool:
        """Whether it saves time to compute once what the ends predict of all examples: asked after every step."""
        state = self.state
        if state.known or state.step != _TIMED_TO or self.measure != self.line.divergence:
            return False
        asked = (state.planned - state.step) * self.how.batch_size / self.line.group.count
        noisy = self.noise and self.line.takes_noise(self.train.fetch([0]))
        return asked >= _WORTH * len(self.train) and not noisy

    def know(self, progress: Progress) -> None:
        """Compute what the ends predict of all examples, if it isn't too much to hold."""
        self._predictions = self.line.predictions(self.train, self.how.batch_size, progress)
        if self._predictions is None:
            return
        self.state.since = self.state.since or self.state.step
        # Steps of another kind are recorded anew.
        self.gradient = gradients(self.measure, self.coordinates, recordable=self.line.recordable)

    def finish(self) -> Refined:
        """Put the best coordinates in place.

        Raises:
            AlignmentError: No look was finite.
        """
        self.look()
        state = self.state
        if not state.kept:
            raise AlignmentError(
                "the loss on the line is no finite number where learning begins: check the data, or learn in more bits"
            )
        self._set(state.kept)
        return Refined(state.step, state.best_step, state.history[0][1], state.best, tuple(state.history))

    def _height(self) -> float:
        """How high the line is on held-out examples; infinite where the coordinates ran off."""
        try:
            losses = self.line.means(self.measure, self.looked_at, self.line.looks)
        except _DIVERGED:
            return math.inf
        height = max(rise(loss, t, self.ends) for t, loss in zip(self.line.looks, losses, strict=True))
        return height if math.isfinite(math.fsum(losses)) else math.inf

    def _noisy(self, batch: Batch) -> Batch:
        return self.line.noisy(batch, self.noise, self.generator) if self.noise else batch

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for coordinate, value in zip(self.coordinates, values, strict=True):
            coordinate.copy_(value)


def descend(
    line: MovingLine[Batch],
    examples: Sample[Batch],
    how: Refining,
    *,
    progress: Progress,
    save: Callable[[Saved], None] = lambda saved: None,
    resume: Saved | None = None,
) -> Refined:
    """Train the coordinates of a line's ends; they hold the best ones afterwards.

    Args:
        line: The line.
        examples: Training data, of which a share is held out.
        how: The recipe.
        progress: Called after every step.
        save: Called at every look with all that a resumed descent needs.
        resume: What `save` was given.
    """
    descent = Descent(line, examples, how)
    state = descent.state
    if resume is not None:
        descent.restore(resume)
    if state.known:
        descent.know(progress)
    while state.step < state.planned:
        if state.step % how.every == 0 and descent.look():
            save(descent.saved())
        step, height = state.history[-1]
        if step - state.best_step >= descent.patience():
            break
        if (step and math.isinf(height)) or not descent.step():
            break  # it diverged: what was best until here is kept
        progress("refining", state.step, state.planned)
        if descent.worth_knowing():
            descent.know(progress)
    return descent.finish()


def split(examples: Sample[Batch], how: Refining) -> tuple[Sample[Batch], Sample[Batch]]:
    """What is trained on, and what is held out: at least one example each.

    Raises:
        DataError: There are fewer than two.
    """
    if len(examples) < 2:
        raise DataError(f"{len(examples)} examples: give at least two, one to learn from and one to hold out")
    count = len(examples)
    held, others = divided(count, min(max(1, round(how.held_out * count)), count - 1), how.seed)
    return examples.subset(others), examples.subset(held)


def _optimisers(line: MovingLine[Any], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for rotations of the residual stream, Adam for all else; groups know their highest rate.

    Muon's step is an orthogonal matrix, so that it turns all planes by one angle, at any width. Entries as large as
    Adam's would turn wide streams too far. A rotation is that of `S - S^T`, twice its step.
    """
    rotations: list[Tensor] = []
    groups: dict[float, list[Tensor]] = {}
    for chart in (end.chart for end in line.ends if end.chart is not None):
        for name, x in chart.coordinates.items():
            if name == MATRIX and chart.rotates:
                rotations.append(x)
            else:
                groups.setdefault(rate * (_GAINS if name == GAINS else 1), []).append(x)
    found: list[torch.optim.Optimizer] = []
    if groups:
        parts = [{"params": params, "lr": highest, "highest": highest} for highest, params in groups.items()]
        found.append(torch.optim.Adam(parts, betas=_BETAS, fused=True))
    if rotations:
        highest = rate * _RADIANS / 2
        parts = [{"params": rotations, "lr": highest, "highest": highest}]
        found.append(torch.optim.Muon(parts, weight_decay=0.0))
    return found


def _like(optimiser: torch.optim.Optimizer, saved: Mapping[int, Mapping[str, Tensor]]) -> bool:
    """Whether an optimiser's saved moments have the shapes of what it moves."""
    moved = [x for group in optimiser.param_groups for x in group["params"]]
    return all(not x.ndim or x.shape == moved[index].shape for index, part in saved.items() for x in part.values())


def _share(step: int, steps: int, warmup: int) -> float:
    """The learning rate's share of the highest at a step."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return _LOWEST_RATE + (1 - _LOWEST_RATE) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
