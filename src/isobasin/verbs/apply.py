"""From an alignment to a moved model: written beside its place, verified, and only then given its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from isobasin.alignment import Alignment, AnyMove, Moved, flowing
from isobasin.beside import ALIGNMENT
from isobasin.canonical import adapter_in
from isobasin.checkpoints import Value, calling, check_output, temporary_folder, write_checkpoint
from isobasin.errors import IsobasinError, VerificationError
from isobasin.loading import like
from isobasin.matching import circuits
from isobasin.model import Model, Source, open_model, opened
from isobasin.recipes import recorded
from isobasin.symmetries.weights import AttentionWeights
from isobasin.verbs.leaving import leave
from isobasin.verbs.settings import Progress, Running, silent
from isobasin.verification import Verification, verify_models

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")


@recorded
def apply(
    alignment: Alignment,
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = silent,
    moved_base: str | os.PathLike[str] | None = None,
) -> Moved:
    """Make the same move on a model: the one that it was found for, or a sibling of it; or on a LoRA adapter of one.

    Where that one was untied for it, so is this one. An adapter stays one, of the same rank and scale: on its moved
    base it does what it did on its base.

    Args:
        alignment: What `align`, `Alignment.load`, `inverse` or `compose` returned.
        model: Folder, hub id, or transformers model; it is not changed. Or a folder of a LoRA adapter, as peft writes
            it, whose base is read too.
        output: Folder to write to. None is for a model in memory: a new model is returned.
        device: Where the work is done.
        dtype: Type of the result; None keeps each tensor's.
        verify: Compare the outputs before and after.
        force: Replace an existing output folder.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.
        moved_base: Of an adapter, and needed there: where its moved base is, which its new configuration names. A
            folder with another model is refused, unless nothing is to be verified.

    Returns:
        Where the result is, or the new model, and how it was verified.

    Raises:
        AlignmentError: The alignment is for another architecture.
        VerificationError: The moved model computes something else; nothing was written.
    """
    running = Running(device, dtype, verify, force, progress)
    adapter = adapter_in(model)
    if adapter is not None:
        if output is None or dtype is not None:
            raise IsobasinError(f"{adapter.folder}: an adapter keeps its types, and is written to a folder: name that")
        if moved_base is None:
            raise IsobasinError(f"{adapter.folder}: say where its moved base lies, which OUT names (--moved-base)")
        from isobasin.verbs.adapters import move_adapter

        there = os.fspath(moved_base)
        return move_adapter(alignment, adapter, Path(output), running, moved_base=there, allow_pickle=allow_pickle)
    if moved_base is not None:
        raise IsobasinError(f"moved base is {os.fspath(moved_base)}: that is for adapters, and this is a whole model")
    how = {"allow_pickle": allow_pickle, "untie": alignment.untied}
    return moved(model, output, lambda opened: alignment, running, **how)


Alignment.apply = apply


def moved(
    source: Source,
    output: str | os.PathLike[str] | None,
    find: Callable[[Model], Alignment],
    running: Running,
    *,
    allow_pickle: bool = False,
    untie: bool = False,
) -> Moved:
    """Open a model, find a move of it, and make that; arguments and result as `apply`."""
    with open_model(source, allow_pickle=allow_pickle, untie=untie) as model:
        if output is not None:
            check_output(output, force=running.force, needed=model.checkpoint.size(running.dtype))
        alignment = find(model)

        def write(folder: Path) -> Alignment:
            moving = acting(alignment, model, running, stored=running.dtype or model.dtype())
            return write_moving(moving, model, folder, running)

        path, made, found = deliver(source, output, write, running.dtype)
    return Moved(path, made, found.verified, found)


Moving = Generator[Mapping[str, Value], None, Alignment]
"""The tensors of a moved model, some at a time, and at the end the move."""


def acting(alignment: Alignment, model: Model, running: Running, *, stored: torch.dtype | None = None) -> Moving:
    """The tensors of a model after a move that is known.

    Args:
        alignment: The move.
        model: What is moved.
        running: Where.
        stored: The type whose rounding of attention is predicted on the way; None leaves what the alignment says.
    """
    rounding: dict[str, float] = {}

    def see(move: AnyMove, weights: Any) -> None:
        if stored is not None and isinstance(weights, AttentionWeights):
            rounding[move.block] = float(circuits.rounding(move.group, weights, stored))

    yield from counted(flowing(alignment, model, running.device, see), alignment.blocks, running.progress)
    figures = [
        replace(move.statistics, rounding=rounding.get(move.block, move.statistics.rounding))
        for move in alignment.moves
    ]
    pairs = zip(alignment.moves, figures, strict=True)
    return replace(alignment, moves=tuple(replace(move, statistics=each) for move, each in pairs))


def write_moved(
    alignment: Alignment,
    model: Model,
    output: Path,
    running: Running,
    others: Sequence[Model] = (),
    *,
    extra: Callable[[Path], None] | None = None,
) -> Alignment:
    """Write a model after a move that is known; arguments, result and errors as `write_moving`."""
    return write_moving(acting(alignment, model, running), model, output, running, others, extra=extra)


def verify_move(alignment: Alignment, model: Model, output: str, running: Running) -> Verification:
    """Make the move on a model, in a temporary folder, and compare the outputs.

    Raises:
        VerificationError: They differ by more than rounding.
    """
    with temporary_folder() as folder, calling(folder / "moved", output):
        found = write_moved(alignment, model, folder / "moved", running).verified
    assert found is not None
    return found


def write_moving(
    moving: Moving,
    model: Model,
    output: Path,
    running: Running,
    others: Sequence[Model] = (),
    *,
    extra: Callable[[Path], None] | None = None,
) -> Alignment:
    """Write the moved model and the alignment beside it; verify before it gets its name.

    Args:
        moving: The tensors of the moved model, as they come.
        model: What is moved.
        output: The folder to write.
        running: Where, and whether it is verified.
        others: What else was read.
        extra: Adds more to the folder that it is given.

    Returns:
        The alignment as it was written, and how the model was verified.

    Raises:
        VerificationError: The outputs differ by more than rounding; nothing was written.
    """
    found: list[Alignment] = []

    def pieces() -> Iterator[Mapping[str, Value]]:
        found.append((yield from moving))

    def add(staging: Path) -> None:
        found[0].save(staging / ALIGNMENT, force=True)
        leave(staging, [model.canonical], [other.canonical for other in others if other is not model])
        if extra is not None:
            extra(staging)

    def check(staging: Path) -> Verification | None:
        if not running.verify:
            return None
        running.progress("verifying", 0, 1)
        verified = verify_models(model, opened(str(output), staging), device=running.device)
        running.progress("verifying", 1, 1)
        if not verified.equal:
            drawn = found[0].provenance.get("operation") == "scramble"
            coarse = (running.dtype or model.dtype()).itemsize < torch.float32.itemsize
            raise VerificationError(
                f"the moved model isn't the same function: {verified.reason}; {output} was not written: lower "
                f"{'--condition' if drawn else '--max-condition'}"
                f"{', or store more bits with --dtype float32' if coarse else ''}"
            )
        return verified

    verified = write_checkpoint(
        model.checkpoint,
        output,
        model.view.written(pieces()),
        dtype=running.dtype,
        force=running.force,
        extra=add,
        check=check,
    )
    return replace(found[0], verified=verified)


def counted(items: Iterable[T], total: int, progress: Progress) -> Iterator[T]:
    """The items, with `progress` told before each."""
    for done, item in enumerate(items):
        progress("writing", done, total)
        yield item
    progress("writing", total, total)


def deliver(
    source: Source,
    output: str | os.PathLike[str] | None,
    write: Callable[[Path], T],
    dtype: torch.dtype | None = None,
) -> tuple[Path | None, PreTrainedModel | None, T]:
    """Write to the folder asked for; or to a temporary one, and load a model like `source` from it, in this type.

    Returns:
        The folder, or the model; and what `write` returned.
    """
    if output is not None:
        return Path(output), None, write(Path(output))
    if isinstance(source, (str, os.PathLike)):
        raise IsobasinError("output: name the folder to write to (only a model in memory can be returned)")
    with temporary_folder() as folder:
        path = Path(folder) / "model"
        found = write(path)
        fresh = like(source, path, dtype)
        return None, fresh.to(source.device).train(source.training), found
