"""Points on the straight line between two checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from isobasin.bounds import check_number
from isobasin.checkpoints import check_finite, write_checkpoint
from isobasin.errors import TensorError
from isobasin.matching.averaging import weighted_mean
from isobasin.model import Canonical, Source, open_canonical
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
    """The point `(1 - t) a + t b` of the straight line between two models, in a's form and types.

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
        open_canonical(a, allow_pickle=allow_pickle) as one,
        open_canonical(b, allow_pickle=allow_pickle) as other,
    ):
        check_same_tensors(one, other)

        def write(folder: Path) -> None:
            names = one.view.tensors
            points = one.written(means(tensors_of((one, other), names), (1 - t, t)))
            inputs = [other.checkpoint.folder]
            write_checkpoint(one.checkpoint, folder, counted(points, len(names), progress), force=force, inputs=inputs)

        return deliver(a, output, write)


def tensors_of(sources: Sequence[Canonical], names: Iterable[str]) -> Iterator[tuple[dict[str, Tensor], ...]]:
    """The tensors of these names, one at a time, each from all sources; values that are not finite are refused."""
    for name in names:
        tensors = tuple(source.read([name]) for source in sources)
        for source, tensor in zip(sources, tensors, strict=True):
            check_finite(tensor, source.checkpoint.folder)
        yield tensors


def means(pieces: Iterable[Sequence[Mapping[str, Tensor]]], weights: Sequence[float]) -> Iterator[dict[str, Tensor]]:
    """The weighted mean of each tensor over the models, one tensor at a time.

    Args:
        pieces: Some tensors by name, of every model; pieces of a model may hold one tensor or many.
        weights: One for each model; their sum is 1.

    Raises:
        TensorError: A tensor that is not floating-point, or of fewer than 16 bits, differs between the models.
    """
    for piece in pieces:
        for name, first in piece[0].items():
            tensors = [of_model[name] for of_model in piece]
            if first.dtype.is_floating_point and first.dtype.itemsize > 1:
                mean = weighted_mean(tensors, weights)
                if not (mean.abs() <= torch.finfo(first.dtype).max).all():
                    raise TensorError(
                        f"tensor {name!r} at t = {weights[-1]:g} has values beyond {first.dtype}: "
                        "give a t nearer to 0 and 1"
                    )
                yield {name: mean}
            elif all(_same(first, tensor) for tensor in tensors):
                yield {name: first}
            else:
                raise TensorError(f"tensor {name!r} is {first.dtype} and differs: there is no line between the two")


def _same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors of one shape are equal to the bit, of whatever type."""
    if x.dtype != y.dtype:
        return False
    return torch.equal(*(tensor.contiguous().view(-1).view(torch.uint8) for tensor in (x, y)))


def check_same_tensors(a: Canonical, b: Canonical) -> None:
    """Refuse two checkpoints whose tensors differ in what they are or in shape, whatever they are called.

    Raises:
        TensorError: Naming the first difference.
    """
    shapes = a.shapes(), b.shapes()
    folders = a.checkpoint.folder, b.checkpoint.folder
    for one, other, ours, theirs in ((0, 1, a, b), (1, 0, b, a)):
        for name, shape in shapes[one].items():
            stored = ours.view.stored(name)
            if name not in shapes[other]:
                copy = f" but as a copy of {theirs.view.find(name)!r}" if theirs.view.find(name) else ""
                raise TensorError(
                    f"tensor {stored!r} is in {folders[one]} but not in {folders[other]}{copy}: give two of one kind"
                )
            if shape != shapes[other][name]:
                raise TensorError(
                    f"tensor {stored!r} has shape {shape} in {folders[one]}, {shapes[other][name]} in "
                    f"{folders[other]}: give two of one kind"
                )
