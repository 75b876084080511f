"""Points on the straight line between two checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from isobasin.checkpoints import Checkpoint, check_finite, write_checkpoint
from isobasin.errors import IsobasinError, TensorError
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
    if not math.isfinite(t):
        raise IsobasinError(f"t is {t}: it must be a number")
    with (
        open_checkpoint(a, allow_pickle=allow_pickle) as one,
        open_checkpoint(b, allow_pickle=allow_pickle) as other,
    ):
        check_same_tensors(one, other)

        def write(folder: Path) -> None:
            points = counted(_points(one, other, t), len(one.tensors), progress)
            write_checkpoint(one, folder, points, force=force, inputs=[other.folder])

        return deliver(a, output, write)


def _points(a: Checkpoint, b: Checkpoint, t: float) -> Iterator[dict[str, Tensor]]:
    for name, info in a.tensors.items():
        x, y = a.read([name])[name], b.read([name])[name]
        check_finite({name: x}, a.folder)
        check_finite({name: y}, b.folder)
        if info.dtype.is_floating_point:
            yield {name: torch.lerp(x.to(torch.float64), y.to(torch.float64), t)}
        elif torch.equal(x, y):
            yield {name: x}
        else:
            raise TensorError(f"tensor {name!r} is {info.dtype} and differs: there is no line between the two")


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
