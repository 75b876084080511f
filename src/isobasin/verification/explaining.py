"""What rounding explains of how far two models are apart: of their outputs, and of their parts one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from isobasin.verification.distance import AMPLIFICATION, NEAR, NEAR_OF_CHOICES, Distance, Distances
from isobasin.verification.parts import beside, unlike_parts
from isobasin.verification.running import Run, Sensitivity

# Further roundings, where one explains a difference nearly.
_MORE_DRAWS = 4
# Of parts, of which rounding changes hardly more than a number now and then; and after how many one is too far off.
_MORE_OF_PARTS, _FEW_OF_PARTS = 8, 2
# Ends what was compared where rounding explains the outputs at some positions only.
_HALF = "; outputs at the half of the positions that differ least, since rounding may choose other experts elsewhere"
# What a rounding without bound would change.
_ANY = Distances(*[Distance(math.inf, math.inf, math.inf, math.inf, math.inf)] * 2)


class Explained(NamedTuple):
    """How far two models are apart, and what explains it.

    Attributes:
        found: How far apart they are.
        rounding, plain: As `Verification` has them.
        explaining: What of these counts.
        parts: Likewise as `Verification` has them.
        where: Ends what was compared, in words.
    """

    found: Distances
    rounding: Distances | None = None
    plain: Distances | None = None
    explaining: Distances = Distances()
    parts: tuple[str, ...] = ()
    where: str = ""


def explained(
    one: Run,
    other: Run,
    known: Sensitivity | None,
    coarsest: torch.dtype,
    found: Distances,
    floor: float,
    *,
    everywhere: bool,
) -> Explained:
    """Measure what rounding explains of how far two models are apart.

    Args:
        one: The first, unloaded.
        other: The second.
        known: The first one's values and sensitivity, where 16 bits are stored.
        coarsest: The coarser of their types.
        found: How far apart they are.
        floor: What arithmetic leaves, relative.
        everywhere: Whether outputs at all positions count, whatever rounding chooses, and nothing but outputs.
    """
    alike = found if everywhere else _most_alike(one, other, found)
    rounding, plain = _rounding(
        one, other, known, coarsest, lambda most: any(most.explains(apart, floor) for apart in (found, alike))
    )
    explaining, where = capped(rounding, plain, other.chooses), ""
    if explaining.explains(alike, floor) and not explaining.explains(found, floor):
        found, where = alike, _HALF
    draws = _MORE_OF_PARTS if explaining.explains(found, floor) else 0
    parts = _unlike_parts(one, other, coarsest, draws) if known and not everywhere else ()
    return Explained(found, rounding, plain, explaining, parts, where)


def _most_alike(one: Run, other: Run, found: Distances) -> Distances:
    """How far apart two models are where no other experts are chosen, if routers and experts are compared one by one.

    An expert that rounding flips changes a position, and those that attend to it, by far more than rounding else does,
    and few roundings flip the same one. An edit that few positions show is seen in its router, or expert, by itself.

    Args:
        one: The first.
        other: The second.
        found: How far apart they are everywhere, which is returned of other models.
    """
    ours, theirs = ([each.kind for each in run.parts] for run in (one, other))
    if ours != theirs or not {"router", "expert"} <= set(ours):
        return found
    return replace(found, shown=Distance.of_most_alike(one.shown, other.shown))


def _unlike_parts(one: Run, other: Run, coarsest: torch.dtype, draws: int) -> tuple[str, ...]:
    """`Verification.parts` of two models that ran, and were rounded: as no further rounding of either explains them.

    Args:
        one: The first.
        other: The second.
        coarsest: The coarser of their types.
        draws: How many further roundings are tried; without any, those are named that are far off.
    """
    if [each.kind for each in one.parts] != [each.kind for each in other.parts]:
        return ()
    compared = list(map(beside, one.parts, other.parts))

    def beyond(times: float = 1.0) -> tuple[str, ...]:
        return unlike_parts(compared, (one.rounded, other.rounded), times)

    for draw, run in ((draw, run) for draw in range(1, 1 + draws) for run in (other, one)):
        if not beyond() or (draw > _FEW_OF_PARTS and beyond(NEAR)):
            break
        run.unload()
        run.rounding({}, coarsest, draw, only_opened=True)
        run.unload()
    return beyond(NEAR) or (beyond() if draws else ())


def capped(rounding: Distances, plain: Distances, chooses: bool) -> Distances:
    """What rounding explains: not what a gauge amplifies in which the function is lost.

    The opened model is no function that anybody uses: where what the models compute agrees, its rounding may be as
    large as it is. But of models that choose experts it says what a gauge amplifies, since it chooses none: experts
    that rounding flips in one gauge, and happens not to in the other, are no fault of either.
    """
    if chooses and rounding.opened.rms <= AMPLIFICATION * plain.opened.rms:
        return rounding
    return replace(rounding, shown=rounding.shown.better(plain.shown, AMPLIFICATION))


def _rounding(
    one: Run,
    other: Run,
    known: Sensitivity | None,
    coarsest: torch.dtype,
    explained: Callable[[Distances], bool],
) -> tuple[Distances, Distances]:
    """`Verification.rounding` and `plain`, of both models if the second isn't enough; one at a time is loaded.

    Args:
        one: The first, unloaded.
        other: The second.
        known: The first one's values and sensitivity, if they are known.
        coarsest: The coarser of their types.
        explained: Whether rounding that changes outputs this far explains what was found.
    """
    if known is None:
        other.unload()
        known = one.sensitivity(coarsest)
        one.unload()
    values, plain = known
    near, cap = NEAR_OF_CHOICES if other.chooses else NEAR, partial(capped, chooses=other.chooses)
    rounding = other.rounding(values)
    other.unload()
    if explained(cap(rounding, plain)) or not explained(_ANY.better(cap(_ANY, plain), near)):
        return rounding, plain
    # Of models that are too far apart for any rounding in the first one's gauge the rest needs no measuring.
    theirs, own = other.sensitivity(coarsest)
    other.unload()
    found = rounding.worse(one.rounding(theirs)), plain.better(own, 1)
    one.unload()
    if explained(cap(*found)) or not explained(_ANY.better(cap(*found), near)):
        return found
    return _redrawn(((one, theirs), (other, values)), coarsest, lambda *each: explained(cap(*each)))


def _redrawn(
    models: Sequence[tuple[Run, Mapping[str, Tensor]]],
    coarsest: torch.dtype,
    explained: Callable[[Distances, Distances], bool],
) -> tuple[Distances, Distances]:
    """The same by further roundings, on all inputs, until they explain what was found.

    What rounding flips, such as which experts are chosen, one of them may miss.

    Args:
        models: Both, unloaded, each with the other one's values.
        coarsest: The coarser of their types.
        explained: Whether these two explain what was found.
    """
    draws: list[tuple[list[Distances], list[Distances]]] = [([], []) for _ in models]
    found = Distances(), Distances()
    for draw in range(1, 1 + _MORE_DRAWS):
        for (run, others), (rounded, plain) in zip(models, draws, strict=True):
            rounded.append(run.rounding(others, draw=draw))
            run.unload()
            plain.append(run.rounding({}, coarsest, draw))
            run.unload()
        (ours, our_own), (theirs, their_own) = [tuple(map(Distances.pooled, each)) for each in draws]
        found = ours.worse(theirs), our_own.better(their_own, 1)
        if explained(*found):
            break
    return found
