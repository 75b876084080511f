"""Two checkpoints as the ends of a line, the second one after any move, and the losses between them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isobasin.alignment import Alignment
from isobasin.bounds import LARGEST_BATCH, check_number
from isobasin.checkpoints import Checkpoint, calling, temporary_folder
from isobasin.choices import WAYS, HeadCost, Method, Scope, Way
from isobasin.errors import IsobasinError
from isobasin.lines.path import MOST_POINTS, POINTS, LinearPath, points
from isobasin.model import Model, open_pair
from isobasin.records.curves import NAIVE, errors, height
from isobasin.tasks.examples import Examples
from isobasin.tasks.kind import load_model
from isobasin.tasks.losses import Evaluation, evaluate
from isobasin.tasks.processes import Group
from isobasin.verbs.align import match_models
from isobasin.verbs.apply import write_moved
from isobasin.verbs.settings import Calibration, Matching, Progress, Running, chosen_device, silent

Folder = str | os.PathLike[str]
End = Folder | Checkpoint

# Losses of more examples are kept in groups of equal size.
_MOST_GROUPS = 1024


@dataclass(frozen=True)
class Measuring:
    """How lines are measured.

    Attributes:
        methods: Ways that B is moved.
        points: Of every line, both ends included.
        batch_size: Examples of one forward pass.
        device: Where the losses are computed.
        head_cost: What stage 1 compares.
        scope: What of the models is matched.
        temperature: Calibrate the softmax temperature at every point, as a control.
        take_config: Measure with the first model's configuration where others mean something else.
        untie: Take tied tensors of all models apart; without it only where those of another model are.
    """

    methods: tuple[Way, ...] = WAYS
    points: int = POINTS
    batch_size: int = 32
    device: str = "cpu"
    head_cost: HeadCost = HeadCost.rotary
    scope: Scope = Scope.attention
    temperature: bool = True
    take_config: bool = False
    untie: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", chosen_device(self.device))
        object.__setattr__(self, "methods", tuple(map(Way, self.methods)))
        if not self.methods:
            raise IsobasinError("methods: name at least one, such as none or gauss-newton")
        check_number("points", self.points, 2, MOST_POINTS)
        check_number("batch size", self.batch_size, 1, LARGEST_BATCH)

    @property
    def moves(self) -> bool:
        """Whether any method moves B."""
        return any(method != NAIVE for method in self.methods)

    def matching(self, method: str = Method.gauss_newton) -> Matching:
        """What a method of `align` matches, and how."""
        return Matching(Method(method), self.head_cost, scope=self.scope)


@dataclass(frozen=True, eq=False)
class Losses:
    """The losses of models on examples, and along the lines between them: one way for all that is measured.

    Attributes:
        examples: What they are computed on.
        how: With which batches, where, and whether temperatures are calibrated.
        accelerator: An `accelerate.Accelerator` whose processes share the batches; its device is used.
        group: How many consecutive examples the losses of groups are means of; 0 for as many as leave 1 024 groups.
    """

    examples: Examples
    how: Measuring
    accelerator: Any = None
    group: int = 0

    @property
    def device(self) -> str:
        """Where they are computed."""
        return Group(self.accelerator).device(self.how.device)

    def load(self, end: End) -> nn.Module:
        """A checkpoint's model, in float64 if it is stored so, in float32 otherwise."""
        return load_model(end, self.examples.kind, self.device)

    def of(self, module: nn.Module) -> Evaluation:
        """How well a model does."""
        return evaluate(
            module,
            self.examples,
            batch_size=self.how.batch_size,
            device=self.device,
            accelerator=self.accelerator,
            temperature=self.how.temperature,
            group=self.group or math.ceil(len(self.examples) / _MOST_GROUPS),
        )

    def means(self, first: End, last: End, t: Sequence[float]) -> list[float]:
        """The losses of the models on the line between two checkpoints, and nothing else of them."""
        return [found.loss for _, found, _ in self.along(first, last, t)]

    def along(self, first: End, last: End, t: Sequence[float]) -> Iterator[tuple[float, Evaluation, float]]:
        """How well the models on the line between two checkpoints do, and the seconds that setting weights took."""
        path = LinearPath.between(self.load(first), self.load(last))
        for at in t:
            started = time.perf_counter()
            module = path.at(at)
            passed = time.perf_counter() - started
            yield at, self.of(module), passed


@dataclass(frozen=True, eq=False)
class OpenPair:
    """Two open models and the losses between them after any move of the second one.

    Attributes:
        a: The reference.
        b: The model that is moved.
        losses: On which examples, and how.
        exact: Whether moves keep the function, which is verified.
        progress: Called while B is matched and moved.
    """

    a: Model
    b: Model
    losses: Losses
    exact: bool = True
    progress: Progress = silent

    @classmethod
    @contextmanager
    def open(cls, a: Folder, b: Folder, losses: Losses) -> Generator[OpenPair]:
        """Open both.

        Raises:
            ArchitectureError: They are no pair.
        """
        with open_pair(a, b, untie=losses.how.untie) as (one, other):
            yield cls(one, other, losses)

    def match(self, matching: Matching, calibration: Calibration | None = None) -> Alignment:
        """The alignment of B to A; the moved model is verified as a whole, so its blocks need no check of their own."""
        return match_models(self.a, self.b, matching, self._running(verify=False), calibration)

    @contextmanager
    def moved(self, alignment: Alignment) -> Generator[Path]:
        """B's folder after a move."""
        with temporary_folder() as scratch:
            folder = Path(scratch) / "moved"
            write_moved(alignment, self.b, folder, self._running(verify=self.exact))
            with calling(folder, self.b.name):
                yield folder

    def curve(self, alignment: Alignment | None) -> dict[str, Any]:
        """The losses from A to B after a move, or to B as it is."""
        if alignment is None:
            return self.line(self.a.checkpoint, self.b.checkpoint)
        with self.moved(alignment) as end:
            return self.line(self.a.checkpoint, end)

    def line(self, first: End, last: End) -> dict[str, Any]:
        """The losses on the line between two checkpoints, its barrier, and the standard errors of both."""
        t = points(self.losses.how.points)
        found = [found for _, found, _ in self.losses.along(first, last, t)]
        losses = [one.loss for one in found]
        barrier, scatter = height(losses, t), errors(t, found[0].group_weights, [one.group_losses for one in found])
        return {
            "barrier": barrier.height,
            "barrier_error": scatter.barrier,
            "worst_t": barrier.t,
            "t": list(t),
            "losses": losses,
            "loss_errors": list(scatter.losses),
        }

    def loss(self, end: End) -> float:
        """The loss of one checkpoint."""
        return self.losses.of(self.losses.load(end)).loss

    def _running(self, verify: bool) -> Running:
        return Running(torch.device(self.losses.device).type, verify=verify, progress=self.progress)
