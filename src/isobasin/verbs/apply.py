"""From an alignment to a moved model: written beside its place, verified, and only then given its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from isobasin.alignment import FILE_NAME, Alignment, AnyMove, Moved
from isobasin.checkpoints import check_output, temporary_folder, write_checkpoint
from isobasin.errors import CheckpointError, IsobasinError, VerificationError
from isobasin.loading import like
from isobasin.matching import circuits
from isobasin.model import Model, Source, open_model, opened
from isobasin.symmetries.weights import AttentionWeights
from isobasin.verbs.settings import Progress, Running, silent
from isobasin.verification import Verification, verify_models

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")


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
) -> Moved:
    """Make the same move on a model: the one that it was found for, or a sibling of it.

    Args:
        alignment: What `align`, `Alignment.load`, `inverse` or `compose` returned.
        model: Folder, hub id, or transformers model; it is not changed.
        output: Folder to write to. None is for a model in memory: a new model is returned.
        device: Where the work is done.
        dtype: Type of the result; None keeps each tensor's.
        verify: Compare the outputs before and after.
        force: Replace an existing output folder.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.

    Returns:
        Where the result is, or the new model, and how it was verified.

    Raises:
        AlignmentError: The alignment is for another architecture.
        VerificationError: The moved model computes something else; nothing was written.
    """
    running = Running(device, dtype, verify, force, progress)
    return moved(model, output, lambda opened: alignment, running, allow_pickle=allow_pickle)


Alignment.apply = apply


def moved(
    source: Source,
    output: str | os.PathLike[str] | None,
    find: Callable[[Model], Alignment],
    running: Running,
    *,
    allow_pickle: bool = False,
) -> Moved:
    """Open a model, find a move of it, and make that; arguments and result as `apply`."""
    with open_model(source, allow_pickle=allow_pickle) as model:
        if output is not None:
            check_output(output, [model.checkpoint.folder], running.force)
        alignment, rounding = find(model), Rounding(running.dtype or model.dtype())

        def write(folder: Path) -> Alignment:
            return write_moved(alignment, model, folder, running, rounding=rounding)

        path, made, found = deliver(source, output, write)
    return Moved(path, made, found.verified, found)


@dataclass(frozen=True)
class Rounding:
    """What storing moved attention blocks in a type costs, predicted while they are written.

    Attributes:
        dtype: The type.
        found: The relative error of the circuits, by block.
    """

    dtype: torch.dtype
    found: dict[str, float] = field(default_factory=lambda: {})

    def see(self, move: AnyMove, weights: Any) -> None:
        """Predict it for a block after a move."""
        if isinstance(weights, AttentionWeights):
            self.found[move.block] = float(circuits.rounding(move.group, weights, self.dtype))

    def told(self, alignment: Alignment) -> Alignment:
        """The alignment with what was found."""
        return replace(alignment, moves=tuple(map(self._told, alignment.moves)))

    def _told(self, move: AnyMove) -> AnyMove:
        rounding = self.found.get(move.block, move.statistics.rounding)
        return replace(move, statistics=replace(move.statistics, rounding=rounding))


def write_moved(
    alignment: Alignment,
    model: Model,
    output: Path,
    running: Running,
    inputs: Iterable[Path] = (),
    *,
    rounding: Rounding | None = None,
    extra: Callable[[Path], None] | None = None,
) -> Alignment:
    """Write the moved model and the alignment beside it; verify before it gets its name.

    Args:
        alignment: The move.
        model: What is moved.
        output: The folder to write.
        running: Where, and whether it is verified.
        inputs: Files and folders that the output may not overlap with.
        rounding: Predicts what storing the result costs; None leaves what the alignment says.
        extra: Adds more to the folder that it is given.

    Returns:
        The alignment as it was written, and how the model was verified.

    Raises:
        CheckpointError: A weight file of the model has the name of the alignment's.
        VerificationError: The outputs differ by more than rounding; nothing was written.
    """
    if FILE_NAME in model.checkpoint.files:
        problem = "a weight file has the name that the move is written to: rename it, also in the index"
        raise CheckpointError(f"{model.checkpoint.folder / FILE_NAME}: {problem}")

    def add(staging: Path) -> None:
        (alignment if rounding is None else rounding.told(alignment)).save(staging / FILE_NAME, force=True)
        if extra is not None:
            extra(staging)

    def check(staging: Path) -> Verification | None:
        if not running.verify:
            return None
        running.progress("verifying", 0, 1)
        found = verify_models(model, opened(str(output), staging), device=running.device)
        running.progress("verifying", 1, 1)
        if not found.equal:
            drawn = alignment.provenance.get("operation") == "scramble"
            raise VerificationError(
                f"the moved model isn't the same function: {found.reason}; {output} was not written: lower "
                f"{'--condition' if drawn else '--max-condition'}, or store more bits with --dtype float32"
            )
        return found

    blocks = alignment.moved(model, running.device, *([] if rounding is None else [rounding.see]))
    verified = write_checkpoint(
        model.checkpoint,
        output,
        counted(model.view.written(blocks), alignment.blocks, running.progress),
        dtype=running.dtype,
        force=running.force,
        inputs=list(inputs),
        extra=add,
        check=check,
    )
    return replace(alignment if rounding is None else rounding.told(alignment), verified=verified)


def counted(items: Iterable[dict[str, Tensor]], total: int, progress: Progress) -> Iterator[dict[str, Tensor]]:
    """The items, with `progress` told before each."""
    for done, item in enumerate(items):
        progress("writing", done, total)
        yield item
    progress("writing", total, total)


def deliver(
    source: Source, output: str | os.PathLike[str] | None, write: Callable[[Path], T]
) -> tuple[Path | None, PreTrainedModel | None, T]:
    """Write to the folder asked for; or to a temporary one, and load a model like `source` from it.

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
        fresh = like(source, path, source.dtype)
        return None, fresh.to(source.device).train(source.training), found
