"""Matching the blocks of two checkpoints as tasks of an engine, whose processes open the same files again."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

from isobasin.alignment import Alignment
from isobasin.errors import CheckpointError, IsobasinError
from isobasin.execution.tasks import Engine, Failure, Task
from isobasin.model import Model, opened
from isobasin.verbs.blocks import BlockMatching, Part, contents
from isobasin.verbs.inputs import ByName
from isobasin.verbs.settings import Matching, Progress, Running, silent

Files = tuple[tuple[str | int, ...], ...]
"""Name, bytes and time of the last change of a checkpoint's files, which all machines that share them see alike."""


@dataclass(frozen=True)
class Place:
    """Where a model lies, for other processes.

    Attributes:
        name: What the user called it.
        folder: Its folder, whatever the working directory is.
        pickled: Whether its weights are pickles.
        files: What has to be there.
    """

    name: str
    folder: str
    pickled: bool
    files: Files

    @classmethod
    def of(cls, model: Model) -> Place:
        """The place of an open model."""
        checkpoint = model.checkpoint
        pickled = any(file.path.suffix == ".bin" for file in checkpoint.watched())
        return cls(model.name, os.path.abspath(checkpoint.folder), pickled, _files(model))


def match_on(
    engine: Engine, a: Model, b: Model, matching: Matching, running: Running, inputs: ByName | None = None
) -> tuple[Alignment, list[str]]:
    """Match the blocks of two checkpoints as tasks.

    Args:
        engine: Runs the tasks.
        a: The reference.
        b: The model.
        matching: How they are matched; whole models are not.
        running: Where, and whether every block's function is compared before and after.
        inputs: Moments of the reference's inputs, where distances are weighted by them.

    Returns:
        The alignment that `BlockMatching.alignment` finds, and the SHA-256 of what was matched of either model.

    Raises:
        CheckpointError: A machine sees other files where the models lie.
        VerificationError: A move changes what a block computes.
        IsobasinError: A task can't be done.
    """
    blocks = BlockMatching(a, b, matching, running, inputs)
    parts = blocks.parts()
    # A hash is one pass over a whole model, so they begin first.
    tasks = [Task(f"the hash of the {role}", which) for which, role in enumerate(("reference", "model"))]
    for number, part in enumerate(parts, start=1):
        first = blocks.blocks_of(part)[0].name
        tasks.append(Task(f"part {number} of {len(parts)}, from {first}", (part, _inputs(blocks, part))))
    places = Place.of(a), Place.of(b)
    function = partial(_do, places=places, matching=matching, running=replace(running, progress=silent))
    results = _Results(running.progress, len(tasks))
    running.progress("matching", 0, len(tasks))
    engine.run(tasks, function, results)
    one, other, *found = (results.found[task.key] for task in tasks)
    return blocks.together([pair for some in found for pair in some]), [one, other]


def _do(
    payload: int | tuple[Part, ByName | None],
    progress: Progress,
    *,
    places: tuple[Place, Place],
    matching: Matching,
    running: Running,
) -> Any:
    """What a task does: the hash of one model, or the moves of one part and how they were checked."""
    if isinstance(payload, int):
        return contents(_open(places[payload]), matching)
    part, inputs = payload
    a, b = map(_open, places)
    found = BlockMatching(a, b, matching, running, inputs).matched(part)
    return [(matched.move, matched.check) for matched in found]


@lru_cache(maxsize=2)
def _open(place: Place) -> Model:
    """The model that lies somewhere, opened once by every process.

    Raises:
        CheckpointError: Other files lie there than where the tasks come from.
    """
    other = f"{place.folder}: {socket.gethostname()} sees other files there: use a folder that all machines share"
    try:
        model = opened(place.name, place.folder, allow_pickle=place.pickled)
    except CheckpointError as error:
        raise CheckpointError(other) from error
    if _files(model) != place.files:
        raise CheckpointError(other)
    return model


def _files(model: Model) -> Files:
    # Device and inode may be others on another machine.
    return tuple((file.path.name, *file.stamp[2:]) for file in model.checkpoint.watched())


def _inputs(blocks: BlockMatching, part: Part) -> ByName | None:
    """The moments that one part is weighed by."""
    if blocks.inputs is None:
        return None
    readers = (reader for block in blocks.blocks_of(part) for reader in block.readers.values())
    return {reader.weight: blocks.inputs[reader.weight] for reader in readers}


@dataclass
class _Results:
    """Listens to an engine: keeps what tasks return, and ends all with the first that fails."""

    tell: Progress
    steps: int
    found: dict[str, Any] = field(default_factory=dict[str, Any])

    def started(self, task: Task) -> None:
        """See `Listener.started`."""

    def progress(self, task: Task, what: str, done: int, total: int) -> None:
        """See `Listener.progress`."""

    def done(self, task: Task, value: Any) -> None:
        """See `Listener.done`."""
        self.found[task.key] = value
        self.tell("matching", len(self.found), self.steps)

    def failed(self, task: Task, failure: Failure) -> None:
        """See `Listener.failed`."""
        if failure.error is not None:
            raise failure.error
        if failure.trace:
            error = RuntimeError(f"{task.key}: {failure.message}")
            error.add_note(failure.trace)
            raise error
        raise IsobasinError(f"{task.key}: {failure.message}")
