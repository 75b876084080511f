"""Losses along the lines between checkpoints, naive and aligned, recorded point by point."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from isobasin.architectures.resolve import check_comparable
from isobasin.beside import ALIGNMENT
from isobasin.bounds import check_several
from isobasin.canonical import Canonical, Source, evened, open_canonical
from isobasin.checkpoints import Checkpoint, check_output
from isobasin.checkpoints.output import sole_writer
from isobasin.errors import IsobasinError, RecordError, warn
from isobasin.lines import moves
from isobasin.lines.aligned import Aligned, open_aligned
from isobasin.lines.ends import End, Losses, Measuring, OpenPair
from isobasin.lines.path import points
from isobasin.model import Model
from isobasin.records.curves import NAIVE, finished_curves
from isobasin.records.file import NAME, Key, Measured, RecordFile
from isobasin.records.provenance import model_sha256, versions
from isobasin.records.schema import AlignmentRecord, DataRecord, ModelRecord, PointRecord, RunRecord
from isobasin.tasks.data import Data, DataOptions, Examples, asked_for, examples_in, keeping_data
from isobasin.tasks.losses import Evaluation
from isobasin.tasks.processes import Group
from isobasin.verbs.conflicts import Option, Taking, refuse_conflicts
from isobasin.verbs.settings import Progress, silent
from isobasin.verbs.whole import advise

# Two runs that differ only in these are one run: it may be continued by a newer library.
_INCIDENTAL = {"versions", "group_weights"}

# Of the losses of examples: single precision has no more.
_DIGITS = 7


def measure(
    models: Sequence[Source],
    data: Data,
    output: str | os.PathLike[str],
    measuring: Measuring | None = None,
    *,
    aligned: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    accelerator: Any = None,
    progress: Progress = silent,
) -> Measured:
    """Measure the loss along the straight line of every pair of models, B moved in every way asked for.

    The line is `θ(t) = (1 - t) A + t B`; what is recorded of it is in `records.schema`. Every point is on the disk
    before the next is begun: a call with the same arguments goes on where an interrupted one stopped.

    Args:
        models: At least two: folders, hub ids, or transformers models, with the same tensors.
        data: What the losses are computed on: a hub id or path, the same with more said of it (`DataOptions`), or
            examples that are prepared for the first model.
        output: Folder that gets `records.jsonl`.
        measuring: Methods, points, and how losses are computed; None for the defaults.
        aligned: Folders that `align` or `refine` wrote of the two models, each of which is another line.
        settings: More to record, besides what is said of the data.
        allow_pickle: Load pickled weights, with `weights_only`.
        force: Drop the records of another run.
        accelerator: An `accelerate.Accelerator` whose processes share the batches; its device is used.
        progress: Called as the work goes on.

    Returns:
        All records.

    Raises:
        IsobasinError: A subclass says what is wrong with the models, the data, or the output.
    """
    how = measuring or Measuring()
    check_several("models", models)
    if len(models) < 2:
        raise IsobasinError("models: give at least two; a line has two ends")
    if aligned and len(models) != 2:
        raise IsobasinError(f"aligned {aligned[0]!r}: it is a line between two models, and {len(models)} are given")
    asked = asked_for(data)
    said = asked.recorded if isinstance(asked, DataOptions) else {}
    with ExitStack() as stack:
        ends = [stack.enter_context(open_canonical(m, allow_pickle=allow_pickle)) for m in models]
        ends, given = _evened(ends, stack.enter_context(open_aligned(aligned, allow_pickle)), how.untie)
        names = [os.fspath(m) if isinstance(m, (str, os.PathLike)) else type(m).__name__ for m in models]
        moved = [end for one in given for end in one.line]
        _check_alike([*ends, *moved], Taking(config=how.take_config))
        understood = _understood(ends, how) if how.moves or given else []
        if how.moves:
            advise(understood[0], how.matching())
        opened = [end.checkpoint for end in ends]
        # Records are added to what is there, which nothing replaces: it may lie beside the data, as a study's does.
        check_output(output, force=True)
        stack.enter_context(keeping_data(asked))
        examples = examples_in(asked, ends[0].name, *opened, device=how.device, progress=progress)
        for one in given:
            one.check(understood[0], understood[1], how.device)
        run = _run_record(names, opened, given, examples, how, {**said, **(settings or {})}, progress)
        lines = _Lines(run, understood, opened, given, Losses(examples, how, accelerator), progress)
        if lines.writes:
            stack.enter_context(sole_writer(Path(output)))
        lines.open(Path(output), force)
        for pair in itertools.combinations(range(len(models)), 2):
            for method in run.methods:
                lines.measure((pair, method))
        return lines.finish()


def _evened(
    models: Sequence[Canonical], given: Sequence[Aligned], untie: bool
) -> tuple[list[Canonical], list[Aligned]]:
    """The same functions in one form, all untied if that is asked for; else it is said whose changes."""
    ends = [*models, *(end for one in given for end in one.ends)]
    found = [end.untied() for end in ends] if untie else evened(ends)
    for end in (one for one, other in zip(ends, found, strict=True) if one is not other and not untie):
        warn(f"{end.name}: measured with its tied tensors apart, as another model has them: the function is the same")
    left, even = iter(found[len(models) :]), found[: len(models)]
    return even, [
        replace(one, form=tuple(even if one.alignment.untied else models), line=tuple(next(left) for _ in one.ends))
        for one in given
    ]


def _check_alike(ends: Sequence[Canonical], taking: Taking) -> None:
    """Refuse models between which there is no line, before any work."""
    first, *others = ends
    for other in others:
        refuse_conflicts(first, other, taking, (Option.config,))


def _understood(ends: Sequence[Canonical], how: Measuring) -> list[Model]:
    """The models, refused where one can't be moved to another."""
    models = [Model.of(end) for end in ends]
    for model in models[1:]:
        check_comparable(models[0].specification, model.specification, feedforward=how.scope.feedforward)
    return models


def _run_record(
    names: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    aligned: Sequence[Aligned],
    examples: Examples,
    how: Measuring,
    settings: Mapping[str, Any],
    progress: Progress,
) -> RunRecord:
    """The first line, but for the weights of groups, which the first evaluation tells."""
    hashes: list[str] = []
    for checkpoint in checkpoints:
        progress("hashing", len(hashes), len(checkpoints))
        hashes.append(model_sha256(checkpoint))
    progress("hashing", len(hashes), len(checkpoints))
    return RunRecord(
        models=tuple(
            ModelRecord(name=name, sha256=sha256, moved=(checkpoint.folder / ALIGNMENT).exists())
            for name, sha256, checkpoint in zip(names, hashes, checkpoints, strict=True)
        ),
        data=DataRecord.model_validate(examples.facts, from_attributes=True),
        t=points(how.points),
        methods=(*how.methods, *(one.method for one in aligned)),
        aligned=tuple(one.record() for one in aligned),
        group_weights=(),
        settings={
            "batch_size": how.batch_size,
            "head_cost": how.head_cost.value,
            "scope": how.scope.value,
            "temperature": how.temperature,
            **{name: True for name in ("take_config", "untie") if getattr(how, name)},
            **settings,
        },
        versions=versions(),
    )


class _Lines:
    """All lines of a run: what is recorded of them, and what the next point needs."""

    def __init__(
        self,
        run: RunRecord,
        models: Sequence[Model],
        checkpoints: Sequence[Checkpoint],
        aligned: Sequence[Aligned],
        losses: Losses,
        progress: Progress,
    ) -> None:
        self._run, self._models, self._checkpoints = run, models, checkpoints
        self._aligned = {one.method: one for one in aligned}
        self._losses, self._how, self._accelerator, self._progress = losses, losses.how, losses.accelerator, progress
        self.writes = Group(self._accelerator).first
        self._points: dict[Key, dict[float, PointRecord]] = {}
        pairs = len(checkpoints) * (len(checkpoints) - 1) // 2
        self._total = pairs * len(run.methods) * self._how.points

    def open(self, output: Path, force: bool) -> None:
        """Continue the records in a folder, or begin them with the first evaluation."""
        if force and self.writes:
            self._drop_other(output)
        self._wait()
        self._file = RecordFile(output)
        found = self._file.measured
        if found is not None:
            self._check_same(found.run)
            self._losses = replace(self._losses, group=_group_size(found.run, self._losses))
            self._points = {key: {point.t: point for point in there} for key, there in found.points.items()}
        self._wait()
        if found is None:
            key: Key = ((0, 1), self._how.methods[0])
            first = self._losses.of(self._losses.load(self._checkpoints[0]))
            self._run = self._run.model_copy(update={"group_weights": first.group_weights})
            self._append(self._run)
            self._add(_point(key, 0.0, first, 0.0))
        self._tell()

    def measure(self, key: Key) -> None:
        """Record the points of a line that are missing."""
        missing = [t for t in self._run.t if t not in self._points.get(key, {})]
        for point in [known for t in missing if (known := self._known(key, t)) is not None]:
            missing.remove(point.t)
            self._add(point)
        if not missing:
            return
        with self._ends(key) as (first, last):
            for t, found, passed in self._losses.along(first, last, missing):
                self._add(_point(key, t, found, passed))
                self._tell()

    def finish(self) -> Measured:
        """Record what the whole lines say; all records."""
        if self.writes:
            before = RecordFile.read(self._file.path)
            for key, found in finished_curves(before).items():
                if before.curves.get(key) != found:
                    self._file.append(found)
        self._wait()
        return RecordFile.read(self._file.path)

    def _known(self, key: Key, t: float) -> PointRecord | None:
        """A point that is an end which another line has too, with a model that neither of them moved."""
        index = self._still(key).get(t)
        for other, there in self._points.items():
            for at, model in self._still(other).items():
                if index is not None and index == model and at in there:
                    return there[at].model_copy(update={"pair": key[0], "method": key[1], "t": t})
        return None

    def _still(self, key: Key) -> dict[float, int]:
        """Which models are the ends of a line as they are: A unless it was moved before, B where nothing is."""
        (first, second), method = key
        aligned = self._aligned.get(method)
        found = {} if aligned is not None and aligned.first is not None else {0.0: first}
        return found | ({1.0: second} if method == NAIVE else {})

    @contextmanager
    def _ends(self, key: Key) -> Generator[tuple[End, End]]:
        """A, and B after the move, which is verified; or what they were moved to before."""
        (first, second), method = key
        start, aligned = self._checkpoints[first], self._aligned.get(method)
        if method == NAIVE:
            yield start, self._checkpoints[second]
            return
        a, b, cost = self._models[first], self._models[second], self._how.head_cost
        if aligned is not None:
            self._append(aligned.moves(key, cost))
            last, *moved = (end.checkpoint for end in aligned.line)
            yield next(iter(moved), start), last
            return
        pair = OpenPair(a, b, self._losses, progress=self._progress)
        started = time.perf_counter()
        found = pair.match(self._how.matching(method))
        with pair.moved(found) as end:
            self._append(moves.matched(key, a, b, found, cost, time.perf_counter() - started))
            yield start, end

    def _add(self, point: PointRecord) -> None:
        self._append(point)
        self._points.setdefault((point.pair, point.method), {})[point.t] = point

    def _append(self, record: RunRecord | AlignmentRecord | PointRecord) -> None:
        if self.writes:
            self._file.append(record)

    def _wait(self) -> None:
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def _tell(self) -> None:
        self._progress("losses", sum(len(points) for points in self._points.values()), self._total)

    def _check_same(self, found: RunRecord) -> None:
        """Refuse to continue the records of another run, naming what differs."""
        old, new = (run.model_dump(mode="json", exclude=_INCIDENTAL) for run in (found, self._run))
        different = [name for name in new if old.get(name) != new[name]]
        if different:
            raise RecordError(
                f"{self._file.path}: records another run (its {', '.join(different)} differ): "
                "name another folder, or drop it with --force"
            )

    def _drop_other(self, output: Path) -> None:
        """Delete the records in a folder unless they are this run's."""
        try:
            self._file = RecordFile(output)
            if self._file.measured is not None:
                self._check_same(self._file.measured.run)
        except RecordError:
            (output / NAME).unlink()


def _group_size(run: RunRecord, losses: Losses) -> int:
    """How many examples the groups of a run have: in older files each batch is one."""
    batches = math.ceil(len(losses.examples) / losses.how.batch_size)
    return losses.how.batch_size if len(run.group_weights) == batches else losses.group


def _point(key: Key, t: float, found: Evaluation, interpolation_seconds: float) -> PointRecord:
    return PointRecord(
        pair=key[0],
        method=key[1],
        t=t,
        loss=found.loss,
        group_losses=tuple(float(f"{loss:.{_DIGITS}g}") for loss in found.group_losses),
        metrics={**found.metrics},
        calibrated_loss=found.calibrated_loss,
        temperature=found.temperature,
        seconds=found.seconds,
        interpolation_seconds=interpolation_seconds,
    )
