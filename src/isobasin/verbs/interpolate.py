"""Points on the straight line between two checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from isobasin.bounds import check_number
from isobasin.canonical import Canonical, Source, open_canonical
from isobasin.checkpoints import check_finite, write_checkpoint
from isobasin.errors import ArchitectureError, TensorError, warn
from isobasin.matching.averaging import weighted_mean
from isobasin.recipes import recorded
from isobasin.verbs.apply import Moved, counted, deliver
from isobasin.verbs.conflicts import Option, Taking, refuse_conflicts
from isobasin.verbs.fitting import fit, in_form
from isobasin.verbs.leaving import leave
from isobasin.verbs.settings import Progress, silent


@recorded
def interpolate(
    a: Source,
    b: Source,
    t: float = 0.5,
    output: str | os.PathLike[str] | None = None,
    *,
    take_config: bool = False,
    by_name: bool = False,
    common_rows: bool = False,
    untie: bool = False,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> Moved:
    """The point `(1 - t) a + t b` of the straight line between two models, in a's form and types.

    Ends whose configurations, labels, tokenizers or tensors disagree are refused unless an option says what to do; at
    0 and 1 the result is that end as it is then.

    Args:
        a: Folder, hub id, or transformers model.
        b: The other end, with the same tensors.
        t: 0 is a, 1 is b; beyond them the line goes on.
        output: Folder to write to; None returns a model like `a`, which must then be in memory.
        take_config: Take a's configuration, labels and tokenizer where b's mean something else.
        by_name: Reorder b's rows of tokens and labels where names say how.
        common_rows: Average the leading rows that tables have in common; a's further ones stay its own.
        untie: Take tied tensors of both apart; so they are in the result.
        force: Replace an existing output folder.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.

    Raises:
        TensorError: The two don't have the same tensors.
        ArchitectureError: Equal tensors of the two mean other things.
    """
    check_number("t", t)
    taking = Taking(take_config, by_name, common_rows, untie=untie)
    with ExitStack() as stack:
        how = {"allow_pickle": allow_pickle, "untie": untie}
        one, other = (stack.enter_context(open_canonical(end, **how)) for end in (a, b))
        names, weights = one.view.tensors, (1 - t, t)
        options = (Option.config, Option.by_name, Option.rows, Option.untie)
        alone = only(weights, lambda: refuse_conflicts(one, other, taking, options))
        points: Iterator[dict[str, Tensor]] = iter(())
        if alone is None:
            fitted = stack.enter_context(in_form(one, other, fit(one, other, taking), empty=False))
            end = other if fitted is other.checkpoint else Canonical.of(other.name, fitted)
            points = counted(one.written(means(tensors_of((one, end), names), weights)), len(names), progress)

        def write(folder: Path) -> None:
            kept, told = (one, other)[alone or 0].checkpoint, partial(leave, models=(one, other))
            write_checkpoint(kept, folder, points, force=force, extra=told)

        made = deliver((a, b)[alone or 0], output, write)
        say_if_beyond(t)
        return Moved(*made)


def say_if_beyond(t: float) -> None:
    """Warn of a place on the line that isn't between the two models."""
    if not 0 <= t <= 1:
        warn(f"t is {t:g}, not between 0 and 1: the result lies beyond the two models and is no mean of them")


def only(weights: Sequence[float], refuse: Callable[[], None]) -> int | None:
    """Which model has all the weight, if `refuse` finds that there is no line from it to the others; else None.

    Raises:
        TensorError: There is none, and none has all the weight.
        ArchitectureError: Likewise.
    """
    try:
        refuse()
    except (ArchitectureError, TensorError):
        if 1 not in weights:
            raise
        return weights.index(1)
    return None


def tensors_of(sources: Sequence[Canonical], names: Iterable[str]) -> Iterator[tuple[dict[str, Tensor], ...]]:
    """The tensors of these names, one at a time, each from all sources; values that are not finite are refused."""
    for name in names:
        tensors = tuple(source.read([name]) for source in sources)
        for source, tensor in zip(sources, tensors, strict=True):
            stored = {source.view.stored(there): values for there, values in tensor.items()}
            check_finite(stored, source.checkpoint.folder)
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
            elif all(same(first, tensor) for tensor in tensors):
                yield {name: first}
            else:
                raise TensorError(f"tensor {name!r} is {first.dtype} and differs: there is no line between the two")


def same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors of one shape are equal to the bit, of whatever type."""
    if x.dtype != y.dtype:
        return False
    return torch.equal(*(tensor.contiguous().view(-1).view(torch.uint8) for tensor in (x, y)))
