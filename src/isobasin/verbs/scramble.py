"""The same function with other weights: a random element of a model's group."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import torch

from isobasin.alignment import ATTENTION, FEEDFORWARD, STREAM, Alignment, AnyMove, StreamMove, named, unmatched
from isobasin.alignment.stream import gains_of
from isobasin.architectures.feedforwards import ExpertsSite, FeedForward
from isobasin.bounds import ABOVE_ROUNDING, check_number, check_seed
from isobasin.choices import Scope
from isobasin.model import Model, Source, open_model
from isobasin.symmetries import attention, stream
from isobasin.symmetries.feedforward import FeedForwardElement, sample
from isobasin.verbs.apply import Moved, apply
from isobasin.verbs.settings import Progress, silent


def random_alignment(
    model: Source,
    *,
    seed: int = 0,
    condition: float = 10.0,
    scope: Scope | str = Scope.attention,
    allow_pickle: bool = False,
) -> Alignment:
    """A random group element for every block: heads permuted, every map of the given condition number.

    Bias shifts, where they are free, are as large as the weights themselves. In scope "block" units of feed-forward
    blocks, and experts, are permuted too, and scaled by ratios up to `condition` where the activation lets scales pass.
    In scope "model" the residual stream is turned as well, and normalisations get other gains and biases.
    """
    check_number("condition", condition, 1, ABOVE_ROUNDING)
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    # A router's shift is a vector of the stream, and wouldn't turn with it.
    units = partial(_random_units, shifted=Scope(scope) is not Scope.model)
    moves: list[AnyMove] = []
    with open_model(model, allow_pickle=allow_pickle) as opened:
        for block, site in named(ATTENTION, opened.specification.sites):
            scale = float(site.read(opened.stored(site)).value.square().mean().sqrt())
            element = attention.sample(site.group, generator, condition=condition, shift=scale)
            moves.append(unmatched(block, site.group, element))
        for first, *others in opened.specification.ties:
            for index in others:
                element = attention.with_heads(moves[index].element, moves[first].element)
                moves[index] = replace(moves[index], element=element)
        for block, site in named(FEEDFORWARD, opened.feedforwards() if Scope(scope).feedforward else ()):
            moves.append(unmatched(block, site.group, units(opened, site, generator, condition)))
        if Scope(scope) is Scope.model:
            moves.insert(0, _random_stream(opened, generator, condition))
        provenance = {"operation": "scramble", "model": opened.name, "seed": str(seed), "condition": str(condition)}
        return Alignment(opened.specification.model_type, tuple(moves), provenance)


def _random_units(
    model: Model, site: FeedForward, generator: torch.Generator, condition: float, *, shifted: bool
) -> FeedForwardElement:
    """A random move of a feed-forward block; a router's shift is as large as its rows."""
    scale = 0.0
    if isinstance(site, ExpertsSite) and shifted:
        scale = float(model.double([site.router.weight])[site.router.weight].square().mean().sqrt())
    return sample(site.group, generator, condition=condition, shift=scale)


def _random_stream(model: Model, generator: torch.Generator, condition: float) -> StreamMove:
    """A random move of the residual stream."""
    own = model.stream()
    element = stream.sample(own.group, *gains_of(model, own), generator, condition)
    return unmatched(STREAM, own.group, element)


def scramble(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    condition: float = 10.0,
    scope: Scope | str = Scope.attention,
    allow_pickle: bool = False,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> Moved:
    """The same function with other weights: `random_alignment`, applied; arguments as there and in `apply`."""
    element = random_alignment(model, seed=seed, condition=condition, scope=scope, allow_pickle=allow_pickle)
    options = {"dtype": dtype, "verify": verify, "force": force, "allow_pickle": allow_pickle, "progress": progress}
    return apply(element, model, output, **options)  # pyright: ignore[reportArgumentType]
