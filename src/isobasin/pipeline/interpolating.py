"""Points on the straight line between two checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from isobasin.bounds import check_number
from isobasin.checkpoints import Checkpoint, check_finite, write_checkpoint
from isobasin.errors import TensorError
from isobasin.matching.averaging import weighted_mean
from isobasin.model import Source, open_checkpoint
from isobasin.pipeline.moving import Moved, counted, deliver
from isobasin.pipeline.settings import Progress, silent


def interpolate(
    a: Source,
    b: Source,
    t: float = 0.5,
    output: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> Moved:
    """The point `(1 - t) a + t b` of the straight line between two models, in a's types.

    Args:
        a: Folder, hub id, or transformers model.
        b: The other end, with the same tensors.
        t: 0 is a, 1 is b; beyond them the line goes on.
        output: Folder to write to; None returns a model like `a`, which must then be in memory.
        force: Replace an existing output folder.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.

    Raises:
        TensorError: The two don't have the same tensors.
    """
    check_number("t", t)
    with (
        open_checkpoint(a, allow_pickle=allow_pickle) as one,
        open_checkpoint(b, allow_pickle=allow_pickle) as other,
    ):
        check_same_tensors(one, other)

        def write(folder: Path) -> None:
            stored = stored_tensors((one, other), one.tensors)
            points = counted(means(stored, (1 - t, t)), len(one.tensors), progress)
            write_checkpoint(one, folder, points, force=force, inputs=[other.folder])

        return deliver(a, output, write)


def stored_tensors(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> Iterator[tuple[dict[str, Tensor], ...]]:
    """The tensors of these names, one at a time, each from all checkpoints; values that are not finite are refused."""
    for name in names:
        tensors = tuple(checkpoint.read([name]) for checkpoint in checkpoints)
        for checkpoint, tensor in zip(checkpoints, tensors, strict=True):
            check_finite(tensor, checkpoint.folder)
        yield tensors


def means(pieces: Iterable[Sequence[Mapping[str, Tensor]]], weights: Sequence[float]) -> Iterator[dict[str, Tensor]]:
    """The weighted mean of each tensor over the models, one tensor at a time.

    Args:
        pieces: Some tensors by name, of every model; pieces of a model may hold one tensor or many.
        weights: One for each model; their sum is 1.

    Raises:
        TensorError: A tensor that is not floating-point differs between the models.
    """
    for piece in pieces:
        for name, first in piece[0].items():
            tensors = [of_model[name] for of_model in piece]
            if first.dtype.is_floating_point:
                mean = weighted_mean(tensors, weights)
                if not (mean.abs() <= torch.finfo(first.dtype).max).all():
                    raise TensorError(
                        f"tensor {name!r} at t = {weights[-1]:g} has values beyond {first.dtype}: "
                        "give a t nearer to 0 and 1"
                    )
                yield {name: mean}
            elif all(torch.equal(first, tensor) for tensor in tensors):
                yield {name: first}
            else:
                raise TensorError(f"tensor {name!r} is {first.dtype} and differs: there is no line between the two")


def check_same_tensors(a: Checkpoint, b: Checkpoint) -> None:
    """Refuse two checkpoints whose tensors differ in name or shape.

    Raises:
        TensorError: Naming the first difference.
    """
    for one, other in ((a, b), (b, a)):
        for name, info in one.tensors.items():
            if name not in other.tensors:
                raise TensorError(f"tensor {name!r} is in {one.folder} but not in {other.folder}: give two of one kind")
            shape = other.tensors[name].shape
            if info.shape != shape:
                raise TensorError(
                    f"tensor {name!r} has shape {info.shape} in {one.folder}, {shape} in {other.folder}: "
                    "give two of one kind"
                )
