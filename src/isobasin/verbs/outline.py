"""What a command would do: what it would match, write and need, said of configurations and headers alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.resolve import check_comparable
from isobasin.canonical import Canonical, Source, adapter_in, name_of, open_canonical
from isobasin.checkpoints import check_output
from isobasin.choices import Scope
from isobasin.model import Model
from isobasin.plain import Plain
from isobasin.symmetries.feedforward import FeedForwardGroup
from isobasin.verbs.settings import Matching, Running
from isobasin.verbs.whole import widest

_GIGABYTE, _MILLION = 1e9, 1e6
# Bytes: what is imported; and of the largest block in float64 so many, twice as many where outputs are compared.
_IMPORTED, _BLOCKS = 0.6 * _GIGABYTE, 6
# Of a whole model so many of its files; of a model that learns so many float32 copies (docs/measured.md has it all).
_FILES, _COPIES = 1.4, 8
# Seconds on two cores for a million parameters: read and written, compared, and matched where the models are near.
_COPIED, _COMPARED = 0.002, 0.1
_MATCHED = {Scope.attention: 0.08, Scope.block: 0.16, Scope.model: 0.33}
# Seconds where they are far: for one head of 64 features, and for all pairs of 8 192 units.
_HEAD, _UNITS = 0.03, 60.0


@dataclass(frozen=True)
class Described(Plain):
    """A model that is read.

    Attributes:
        model: What the user called it.
        model_type: As its configuration says.
        parameters: Stored values.
        bytes: Of its tensors.
    """

    model: str
    model_type: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Part(Plain):
    """What is matched, of every model but the first.

    Attributes:
        what: Attention, feed-forward, or the residual stream.
        blocks: How many.
        group: Of each.
        parameters: That they move, of all of them.
    """

    what: str
    blocks: int
    group: str
    parameters: int


@dataclass(frozen=True)
class Outline(Plain):
    """What a command would do.

    Attributes:
        models: What is read.
        matched: What is matched; nothing where models are taken as they lie.
        writes: Bytes of tensors that are written.
        free: Bytes that are free where OUT is to be.
        memory: Bytes that the process takes, roughly; what batches of examples need is not in it.
        seconds: On two cores, roughly: where the models are near each other, and where they were trained apart; without
            what learning takes.
    """

    models: tuple[Described, ...]
    matched: tuple[Part, ...]
    writes: int
    free: int
    memory: int
    seconds: tuple[float, float]


def outline(
    sources: Sequence[Source],
    output: str | os.PathLike[str],
    *,
    matching: Matching | None,
    running: Running,
    allow_pickle: bool = False,
    written: int = 1,
    learns: bool = False,
    widened: bool = False,
    moved: Source | None = None,
) -> Outline:
    """What would be matched and written, what that takes, and whatever would be refused before any work.

    Args:
        sources: Folders or hub ids; of the latter nothing but configuration and headers is fetched.
        output: Folder that would be written.
        matching: How they would be matched with the first; None: not at all.
        running: Types, and whether the result would be verified or replace what is there.
        allow_pickle: Load pickled weights, with `weights_only`.
        written: How many models would be written.
        learns: Whether the alignment would be learned.
        widened: Whether they would be matched at the widest scope that is known for them, whatever `matching` says.
        moved: A fine-tune that would be moved as well, or a LoRA adapter: the result is one of these, then.

    Raises:
        IsobasinError: As the command itself would.
    """
    untie = matching is not None and matching.untie
    with ExitStack() as stack:
        how = {"allow_pickle": allow_pickle, "untie": untie, "headers": True}
        opened = [stack.enter_context(open_canonical(source, **how)) for source in sources]
        adapter = None if moved is None else adapter_in(moved)
        ends = list(opened)
        if moved is not None:
            tuned = stack.enter_context(open_canonical(moved if adapter is None else adapter.base, **how))
            ends.append(replace(tuned, name=name_of(moved)))
        check_output(output, [] if adapter is None else [adapter.folder], running.force)
        models = [] if matching is None else [Model.of(end) for end in opened]
        if matching is not None and widened:
            matching = replace(matching, scope=widest(models, keep_gains=matching.keep_gains))
        size = ends[0].checkpoint.size(running.dtype) if adapter is None else adapter.size
        return Outline(
            models=tuple(map(_described, ends)),
            matched=() if matching is None else tuple(_matched(models, matching)),
            writes=written * size,
            free=shutil.disk_usage(_parent(Path(output))).free,
            memory=int(_memory(ends, models, matching, running, learns)),
            seconds=_seconds(ends, models, matching, running),
        )


def _described(end: Canonical) -> Described:
    return Described(end.name, end.description.model_type, _parameters(end), end.checkpoint.size())


def _parameters(end: Canonical) -> int:
    return sum(prod(info.shape) for info in end.checkpoint.tensors.values())


def _parent(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def _matched(models: Sequence[Model], matching: Matching) -> Iterator[Part]:
    """The parts, equal groups together."""
    first, *others = models
    for other in others:
        check_comparable(first.specification, other.specification, feedforward=matching.feedforward)
    found: dict[tuple[str, str], list[int]] = {}
    for block in first.blocks(feedforward=matching.feedforward):
        what = "attention" if isinstance(block, AttentionBlock) else "feed-forward"
        found.setdefault((what, str(block.group)), []).append(sum(map(prod, block.shapes().values())))
    for (what, group), sizes in found.items():
        yield Part(what, len(sizes), group, sum(sizes))
    if matching.scope is Scope.model:
        stream = first.stream(keep_gains=matching.keep_gains)
        along = sum(prod(first.shape(name)) for name in stream.ordered())
        yield Part("residual stream", 1, str(stream.group), along)


def _memory(
    opened: Sequence[Canonical], models: Sequence[Model], matching: Matching | None, running: Running, learns: bool
) -> float:
    largest = max(8 * prod(shape) for end in opened for shape in end.shapes.values())
    if matching is None:
        return _IMPORTED + 2 * largest
    blocks = models[0].blocks(feedforward=matching.feedforward)
    block = max(8 * sum(map(prod, one.shapes().values())) for one in blocks)
    found = _IMPORTED + _BLOCKS * block * (2 if running.verify else 1)
    if matching.scope is Scope.model:
        found = max(found, _IMPORTED + _FILES * opened[0].checkpoint.size() + largest)
    return found + _COPIES * 4 * _parameters(opened[0]) * learns


def _seconds(
    opened: Sequence[Canonical], models: Sequence[Model], matching: Matching | None, running: Running
) -> tuple[float, float]:
    copied = _COPIED * sum(map(_parameters, opened)) / _MILLION
    if matching is None:
        return copied, copied
    compared = _COMPARED * _parameters(opened[0]) / _MILLION * running.verify
    near = far = 0.0
    for block in models[0].blocks(feedforward=matching.feedforward):
        near += _MATCHED[matching.scope] * sum(map(prod, block.shapes().values())) / _MILLION
        group = block.group
        if isinstance(group, FeedForwardGroup):
            far += _UNITS * (group.experts or 1) * (group.units / 8192) ** 3
        else:
            heads = group.kv_heads * group.queries_per_kv
            far += _HEAD * heads * (group.value_output.features / 64) ** 3
    times = len(models) - 1
    shared = copied + times * (compared + near)
    return shared, shared + times * far * (2 if matching.scope is Scope.model else 1)
