"""Two or more models brought together: onto the first, or onto a centre that belongs to none of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.checkpoints import temporary_folder, write_checkpoint
from isobasin.model import Model, opened
from isobasin.verbs.align import match_models
from isobasin.verbs.interpolate import means, tensors_of
from isobasin.verbs.settings import Calibration, Matching, Running

# Rounds towards the centre end where the total distance falls by less than this share, or after so many.
_SETTLED = 1e-3
_ROUNDS = 20


def bring_together(
    models: Sequence[Model], matching: Matching, running: Running, calibration: Calibration | None = None
) -> tuple[tuple[Alignment, ...], tuple[float, ...]]:
    """Align two models, or more of them consistently.

    Two: the second is aligned to the first. More: `{mean of the moved models → align every model to it}` is repeated
    until their total distance to the mean stops falling. That gives one element e_i per model, and the map from model
    i to model j is `e_j^{-1} e_i`: maps along any cycle compose to the identity, which alignments found pair by pair
    don't. The elements returned are `e_1^{-1} e_i`, in the first model's gauge. Since an element acts on weights by
    an affine map, the mean of the moved models there is the centre moved by `e_1^{-1}`: the same function.

    Args:
        models: Open models of one architecture with the same tensors.
        matching: How each is matched.
        running: Where, and who is told.
        calibration: Data, as in `align`.

    Returns:
        What moves every model but the first, which stays; and the distance of all models to their centre, root of the
        sum of squares, round by round, none for two models.
    """
    first, *others = models
    onto = tuple(match_models(first, other, matching, running, calibration) for other in others)
    if len(onto) == 1:
        return onto, ()
    best, distances = towards_centre(models, (None, *onto), matching, running, calibration)
    back = best[0].inverse()
    return tuple(back.compose(alignment) for alignment in best[1:]), distances


def towards_centre(
    models: Sequence[Model],
    start: Sequence[Alignment | None],
    matching: Matching,
    running: Running,
    calibration: Calibration | None = None,
) -> tuple[Sequence[Alignment], tuple[float, ...]]:
    """The best round's elements towards the centre, and the total distance of every round."""
    best = _round(models, start, matching, running, calibration)
    distances = [_total(best)]
    while len(distances) < _ROUNDS:
        found = _round(models, best, matching, running, calibration)
        distances.append(_total(found))
        before, after = distances[-2:]
        if after < before:
            best = found
        if after >= before * (1 - _SETTLED):
            break
    return best, tuple(distances)


def _round(
    models: Sequence[Model],
    moves: Sequence[Alignment | None],
    matching: Matching,
    running: Running,
    calibration: Calibration | None,
) -> list[Alignment]:
    """Every model aligned to the mean of the moved ones, which is kept in float64 in a temporary folder."""
    with temporary_folder() as folder:
        path = Path(folder) / "centre"
        equal = [1 / len(models)] * len(models)
        points = models[0].canonical.written(means(moved_tensors(models, moves), equal))
        write_checkpoint(models[0].checkpoint, path, points, dtype=torch.float64)
        centre = opened("the centre", path)
        return [match_models(centre, model, matching, running, calibration) for model in models]


def _total(found: Sequence[Alignment]) -> float:
    """Distance of all models to what they were aligned to, root of the sum of squares."""
    return math.hypot(*(one.total_distance()["after"] for one in found))


def moved_tensors(
    models: Sequence[Model], moves: Sequence[Alignment | None]
) -> Iterator[tuple[dict[str, Tensor], ...]]:
    """All tensors of all models after their moves, by canonical names.

    First comes what is moved, a block at a time in float64, then the rest.

    Args:
        models: Open models with the same tensors.
        moves: One for each model, of one kind; None for a model that stays.
    """
    done: set[str] = set()
    blocks = [
        map(model.view.renamed, alignment.moved(model))
        for model, alignment in zip(models, moves, strict=True)
        if alignment is not None
    ]
    sources = [model.canonical for model in models]
    for moved in zip(*blocks, strict=True):
        done |= moved[0].keys()
        remaining = iter(moved)
        yield tuple(
            _still(model, moved[0]) if alignment is None else next(remaining)
            for model, alignment in zip(models, moves, strict=True)
        )
    yield from tensors_of(sources, [name for name in sources[0].view.tensors if name not in done])


def _still(model: Model, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of these canonical names in float64."""
    return model.view.renamed(model.double(model.view.stored(name) for name in names))
