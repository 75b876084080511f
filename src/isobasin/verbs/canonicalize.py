"""The canonical gauge of a model: what is the same for all models that group elements of its blocks connect."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from isobasin.alignment import ATTENTION, FEEDFORWARD, Alignment, AnyMove, named, unmatched
from isobasin.architectures.blocks import AttentionBlock, Block
from isobasin.choices import Scope
from isobasin.errors import IsobasinError
from isobasin.matching.canonical import Loose, canonical_attention, canonical_feedforward, head_sizes
from isobasin.model import Blocks, Model, Source, open_model
from isobasin.recipes import recorded
from isobasin.verbs.apply import Moved, moved
from isobasin.verbs.settings import Progress, Running, silent

CANONICAL = "canonical"
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def canonical_alignment(
    model: Source,
    *,
    scope: Scope | str = Scope.attention,
    device: str = "cpu",
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> Alignment:
    """The move that brings a model into the canonical gauge; `isobasin.matching.canonical` says what that is.

    A block's status is "canonical", or names the choices that rounding decides, such as between two heads of one size,
    and the tensors of the block that they move: there another copy of the model may differ.

    Args:
        model: Folder, hub id, or transformers model.
        scope: What is moved; the residual stream has no canonical basis.
        device: Where the work is done.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.

    Raises:
        IsobasinError: Scope "model": the residual stream has no canonical basis.
    """
    find = _finding(scope, Running(device, progress=progress))
    with open_model(model, allow_pickle=allow_pickle) as opened:
        return find(opened)


def _finding(scope: Scope | str, running: Running) -> Callable[[Model], Alignment]:
    """What finds the canonical gauge of an open model."""
    if Scope(scope) is Scope.model:
        raise IsobasinError("the residual stream stays as it is: canonicalize goes with --scope attention or block")
    return partial(_found, scope=Scope(scope), running=running)


def _found(model: Model, scope: Scope, running: Running) -> Alignment:
    """The move of an open model into the canonical gauge."""
    moving = model.feedforwards() if scope.feedforward else ()
    blocks, dtypes = model.specification.attention, model.dtypes()
    common = _common_sizes(model, running.device)
    named_blocks = [*named(ATTENTION, blocks), *named(FEEDFORWARD, moving)]
    moves: list[AnyMove] = []
    for index, (name, block) in enumerate(named_blocks):
        running.progress("matching", index, len(named_blocks))
        # The coarsest rounding of the stored types of the block, which was read and so is of floating-point numbers.
        stored, eps = model.stored(block), max(torch.finfo(dtypes[name]).eps for name in block.shapes())
        loose = Loose(eps)
        if isinstance(block, AttentionBlock):
            weights = block.read(stored, running.device)
            sizes = common[index] if index in common else head_sizes(block.group, weights)
            element = canonical_attention(block.group, weights, sizes, loose)
        else:
            element = canonical_feedforward(block.group, block.read(stored, running.device), loose)
        moves.append(unmatched(name, block.group, element.to("cpu"), _status(block, loose)))
    running.progress("matching", len(named_blocks), len(named_blocks))
    facts = {"operation": "canonicalize", "model": model.name, "scope": str(scope), "device": running.device}
    return Alignment(model.specification.model_type, tuple(moves), facts)


def _status(block: Block, loose: Loose) -> str:
    """Whether a block's gauge is one, or what rounding decides and in which of its tensors; a star is any number."""
    found: dict[str, list[str]] = {}
    for choice, roles in loose.choices.items():
        own = (name.removeprefix(f"{block.name}.") for name in block.names(roles))
        names = dict.fromkeys(_NUMBER.sub("*", name) for name in own)
        found.setdefault(", ".join(names), []).append(choice)
    told = "; ".join(f"{', '.join(choices)} in {names}" for names, choices in found.items())
    return f"not unique: {told}" if told else CANONICAL


def _common_sizes(model: Blocks, device: str) -> dict[int, Tensor]:
    """What the heads of blocks that share a table of position biases are ordered by, by index."""
    found: dict[int, Tensor] = {}
    for tied in model.specification.ties:
        blocks = [model.specification.attention[index] for index in tied]
        sizes = [head_sizes(block.group, block.read(model.stored(block), device)) for block in blocks]
        found |= dict.fromkeys(tied, torch.stack(sizes).sum(0))
    return found


@recorded
def canonicalize(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    scope: Scope | str = Scope.attention,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> Moved:
    """The same function in the canonical gauge: `canonical_alignment`, applied; arguments as there and in `apply`.

    Models that an element of their blocks' groups connects become the same up to rounding.
    """
    running = Running(device, dtype, verify, force, progress)
    return moved(model, output, _finding(scope, running), running, allow_pickle=allow_pickle)
