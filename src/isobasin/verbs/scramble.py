"""The same function with other weights: a random element of a model's group."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from isobasin.alignment import (
    ATTENTION,
    FEEDFORWARD,
    STREAM,
    Alignment,
    AnyMove,
    StreamMove,
    named,
    unmatched,
    untied_note,
)
from isobasin.alignment.stream import gains_of
from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import ExpertsBlock, FeedForward
from isobasin.bounds import ABOVE_ROUNDING, check_number, check_seed
from isobasin.choices import Scope
from isobasin.model import Model, Source, open_model
from isobasin.recipes import recorded
from isobasin.symmetries import attention
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.feedforward import FeedForwardElement
from isobasin.symmetries.shift import Shift, ValueShift
from isobasin.verbs.apply import Moved, moved
from isobasin.verbs.settings import Progress, Running, silent


def random_alignment(
    model: Source,
    *,
    seed: int = 0,
    condition: float = 10.0,
    scope: Scope | str = Scope.attention,
    untie: bool = False,
    allow_pickle: bool = False,
) -> Alignment:
    """A random group element for every block: heads permuted, every map of the given condition number.

    Bias shifts, where they are free, are as large as the weights themselves. In scope "block" units of feed-forward
    blocks, and experts, are permuted too, and scaled by ratios up to `condition` where the activation lets scales pass.
    In scope "model" the residual stream is turned as well, and normalisations get other gains and biases; with `untie`
    by all maps that there are once tied tensors are apart.
    """
    find = _drawing(seed, condition, scope)
    with open_model(model, allow_pickle=allow_pickle, untie=untie) as opened:
        return find(opened)


def _drawing(seed: int, condition: float, scope: Scope | str) -> Callable[[Model], Alignment]:
    """What draws a random alignment of an open model."""
    check_number("condition", condition, 1, ABOVE_ROUNDING)
    check_seed(seed)
    return partial(drawn, seed=seed, condition=condition, scope=Scope(scope))


def drawn(model: Model, seed: int, condition: float, scope: Scope) -> Alignment:
    """A random alignment of an open model."""
    generator = torch.Generator().manual_seed(seed)
    # A router's shift is a vector of the stream, and wouldn't turn with it.
    units = partial(_random_units, shifted=scope is not Scope.model)
    moves: list[AnyMove] = []
    for name, block in named(ATTENTION, model.specification.attention):
        moves.append(unmatched(name, block.group, _random_heads(model, block, generator, condition)))
    for first, *others in model.specification.ties:
        for index in others:
            element = attention.with_heads(moves[index].element, moves[first].element)
            moves[index] = replace(moves[index], element=element)
    for name, block in named(FEEDFORWARD, model.feedforwards() if scope.feedforward else ()):
        moves.append(unmatched(name, block.group, units(model, block, generator, condition)))
    if scope is Scope.model:
        moves.insert(0, _random_stream(model, generator, condition))
    provenance = {"operation": "scramble", "model": model.name, "seed": str(seed), "condition": str(condition)}
    return Alignment(model.specification.model_type, tuple(moves), provenance | untied_note(model))


def _random_heads(
    model: Model, block: AttentionBlock, generator: torch.Generator, condition: float
) -> AttentionElement:
    """A random move of an attention block; a value bias shifts as far as values are large, and scores as keys are."""
    weights, element = block.read(model.stored(block)), block.group.sample(generator, condition=condition)
    parts = element.tensors()
    sizes = {
        factor.part: (weights.value if isinstance(factor, ValueShift) else weights.key).square().mean().sqrt()
        for factor in block.group.factors
        if isinstance(factor, Shift)
    }
    return element.having({part: size * parts[part] for part, size in sizes.items()})


def _random_units(
    model: Model, block: FeedForward, generator: torch.Generator, condition: float, *, shifted: bool
) -> FeedForwardElement:
    """A random move of a feed-forward block; a router's shift is as large as its rows."""
    scale = 0.0
    if isinstance(block, ExpertsBlock) and shifted:
        scale = float(model.double([block.router.weight])[block.router.weight].square().mean().sqrt())
    return block.group.sample(generator, condition=condition, shift=scale)


def _random_stream(model: Model, generator: torch.Generator, condition: float) -> StreamMove:
    """A random move of the residual stream."""
    own = model.stream()
    element = own.group.sample(*gains_of(model, own), generator, condition)
    return unmatched(STREAM, own.group, element)


@recorded
def scramble(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    condition: float = 10.0,
    scope: Scope | str = Scope.attention,
    untie: bool = False,
    device: str = "cpu",
    allow_pickle: bool = False,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> Moved:
    """The same function with other weights: `random_alignment`, applied; arguments as there and in `apply`."""
    running = Running(device, dtype, verify, force, progress)
    how = {"allow_pickle": allow_pickle, "untie": untie}
    return moved(model, output, _drawing(seed, condition, scope), running, **how)
