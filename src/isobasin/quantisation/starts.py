"""Gauges in which learning may begin: the one as trained, and ones drawn at random that no weight stands out in."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from isobasin.alignment import ATTENTION, FEEDFORWARD, STREAM, Alignment, AnyMove, named, unmatched
from isobasin.alignment.stream import gains_of
from isobasin.choices import Scope
from isobasin.model import Model
from isobasin.symmetries.factor import haar
from isobasin.symmetries.stream import Basis
from isobasin.verbs.scramble import drawn


def still(model: Model, scope: Scope) -> Alignment:
    """The move that changes nothing of what a scope moves."""
    blocks = [*named(ATTENTION, model.specification.attention)]
    blocks += named(FEEDFORWARD, model.feedforwards() if scope.feedforward else ())
    moves: list[AnyMove] = [unmatched(name, block.group, block.group.identity(), "as it was") for name, block in blocks]
    if scope is Scope.model:
        stream = model.stream()
        moves.insert(0, unmatched(STREAM, stream.group, stream.group.identity(*gains_of(model, stream)), "as it was"))
    return Alignment(model.specification.model_type, tuple(moves), {})


def at_random(model: Model, scope: Scope, seed: int) -> Alignment:
    """Orthogonal maps of everything that these turn, with a random Hadamard matrix for the residual stream."""
    found = drawn(model, seed, 1.0, scope)
    stream = found.stream
    if stream is None or stream.group.basis is not Basis.orthogonal:
        return found
    matrix = hadamard(stream.group.width, torch.Generator().manual_seed(seed))
    turned = replace(stream, element=replace(stream.element, matrix=matrix))
    return replace(found, moves=tuple(turned if move is stream else move for move in found.moves))


def hadamard(width: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix that spreads every coordinate over all: Hadamard's with random signs.

    Its entries are all of one size where the width is a power of two. Of other widths the odd part is turned by a
    random rotation: `H ⊗ R`.
    """
    power = width & -width
    found = torch.ones(1, 1, dtype=torch.float64)
    while len(found) < power:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)]) / 2**0.5
    signs = torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
    return signs[:, None] * torch.kron(found, haar(width // power, (), generator).contiguous())
