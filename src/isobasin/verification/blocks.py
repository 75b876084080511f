"""Blocks one by one, in float64 on random hidden states, and all other tensors value by value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from isobasin.architectures.activations import activation_functions
from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.errors import ArchitectureError, TensorError
from isobasin.model import Blocks, Model
from isobasin.symmetries.feedforward import FeedForwardWeights, feed_forward
from isobasin.symmetries.function import attend
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.verification.distance import FLOORS, Distance, Label, Verification
from isobasin.verification.rounding import differing, dither

_TOKENS = 24


def compare_tensors(a: dict[str, Tensor], b: dict[str, Tensor], *, tolerance: float = 1e-6) -> Verification:
    """Compare named tensors value by value."""
    pair = [{(name, ""): tensor for name, tensor in tensors.items()} for tensors in (a, b)]
    found = Distance.between(*pair)
    return Verification(found.max_abs, found.max_rel, tolerance, "blocks and all tensors along the residual stream")


def compare_blocks(
    group: AttentionGroup, a: AttentionWeights, b: AttentionWeights, *, tolerance: float = 1e-6, seed: int = 0
) -> Verification:
    """Compare the functions of two blocks in float64 on random hidden states, as plainly as `attend` writes them.

    Args:
        group: Group of both.
        a: The original, without leading dimensions.
        b: The other one.
        tolerance: Relative difference that counts as equal.
        seed: Of the hidden states and of the rotary frequencies, random and distinct: the group must hold for any.
    """
    found = Distance.between(*(_labelled(_attended(group, weights, seed)) for weights in (a, b)))
    return Verification(found.max_abs, found.max_rel, tolerance, "attention blocks one by one on random hidden states")


def _attended(group: AttentionGroup, weights: AttentionWeights, seed: int) -> Tensor:
    """What an attention block makes of random hidden states."""
    generator = torch.Generator().manual_seed(seed)
    tokens, device = _TOKENS, weights.key.device
    hidden = torch.randn(2, tokens, weights.width, generator=generator, dtype=torch.float64).to(device)
    frequencies = torch.rand(len(group.rotary.planes), generator=generator, dtype=torch.float64)
    frequencies = frequencies[list(group.rotary.frequencies)]
    angles = (torch.arange(tokens, dtype=torch.float64).unsqueeze(-1) * frequencies).to(device)
    return attend(weights, group, hidden, angles)


def compare_feedforward(
    block: FeedForward, a: FeedForwardWeights, b: FeedForwardWeights, *, tolerance: float = 1e-6, seed: int = 0
) -> Verification:
    """Compare the functions of two feed-forward blocks in float64 on random hidden states, experts as `feed_forward`.

    Args:
        block: What is known of both.
        a: The original, without leading dimensions.
        b: The other one.
        tolerance: Relative difference that counts as equal.
        seed: Of the hidden states.
    """
    found = Distance.between(*(_labelled(_fed(block, weights, seed)) for weights in (a, b)))
    return Verification(
        found.max_abs, found.max_rel, tolerance, "feed-forward blocks one by one on random hidden states"
    )


def _fed(block: FeedForward, weights: FeedForwardWeights, seed: int) -> Tensor:
    """What a feed-forward block makes of random hidden states."""
    activation, multiplied = activation_functions(block.activation)
    scores = None if block.group.shift else torch.sigmoid
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2 * _TOKENS, weights.up.shape[-1], generator=generator, dtype=torch.float64)
    return feed_forward(weights, activation, hidden.to(weights.up.device), multiplied, scores)


def compare_by_layer(a: Model, b: Model, tolerance: float | None, seed: int, device: str) -> Verification:
    """Compare every block of either kind on random hidden states, and every other tensor by value.

    For models that are too large to run. What counts as equal is, as for whole models, what one more rounding of the
    stored values that differ changes in these blocks.
    """
    pairs = list(zip(known_feedforwards(a), known_feedforwards(b), strict=False))
    found = _compare_rest(a, b, [one for one, _ in pairs], [other for _, other in pairs])
    rounding = Distance()
    blocks: list[tuple[Any, Any, _Block]] = [
        *(
            (one, other, _attention)
            for one, other in zip(a.specification.attention, b.specification.attention, strict=True)
        ),
        *((one, other, _feedforward) for one, other in pairs),
    ]
    for one, other, run in blocks:
        if getattr(one, "activation", None) != getattr(other, "activation", None):
            found = found.worse(Distance(*(float("inf"),) * 3))
            continue
        stored = a.stored(one), b.stored(other)
        outputs = [_labelled(run(block, stored[index], seed, device)) for index, block in enumerate((one, other))]
        found = found.worse(Distance.between(*outputs))
        for index, block in ((0, one), (1, other)):
            rounded = _rounded(stored[index], stored[1 - index], seed)
            if rounded is not None:
                changed = _labelled(run(block, rounded, seed, device))
                rounding = rounding.worse(Distance.between(outputs[index], changed))
    floor = FLOORS[torch.float32]
    return Verification(
        found.max_abs,
        found.max_rel,
        rounding.allowed(floor) if tolerance is None else tolerance,
        "blocks one by one on random hidden states, other tensors by value (too large to run whole)",
        found.rms,
        rounding=rounding,
        explained=tolerance is not None or rounding.explains(found, floor),
    )


_Block = Callable[[Any, dict[str, Tensor], int, str], Tensor]


def _attention(block: AttentionBlock, tensors: dict[str, Tensor], seed: int, device: str) -> Tensor:
    return _attended(block.group, block.read(tensors, device), seed)


def _feedforward(block: FeedForward, tensors: dict[str, Tensor], seed: int, device: str) -> Tensor:
    return _fed(block, block.read(tensors, device), seed)


def _rounded(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor], seed: int) -> dict[str, Tensor] | None:
    """Stored tensors with those values rounded once more that aren't another model's; None if all are."""
    generator, changed = torch.Generator().manual_seed(seed), False
    rounded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        where = differing(tensor, others.get(name))
        rounded[name] = tensor.to(torch.float64)
        if where is not None:
            dither(rounded[name], tensor.dtype, where, generator)
            changed = True
    return rounded if changed else None


def known_feedforwards(model: Blocks) -> Sequence[FeedForward]:
    """The feed-forward blocks of a model; none where anything about them is not understood."""
    try:
        return model.feedforwards()
    except (ArchitectureError, TensorError):
        return ()


def rest_of(model: Model, feedforwards: Sequence[FeedForward] = ()) -> dict[str, tuple[int, ...]]:
    """Canonical name and shape of every tensor outside the attention blocks and these feed-forward blocks."""
    known = {
        model.view.canonical[n] for block in (*model.specification.attention, *feedforwards) for n in block.shapes()
    }
    return {name: shape for name, shape in model.canonical.shapes.items() if name not in known}


def _compare_rest(a: Model, b: Model, ours: Sequence[FeedForward], theirs: Sequence[FeedForward]) -> Distance:
    """Differences of all tensors outside the blocks; infinite where one is only in one model."""
    names = rest_of(a, ours)
    if names != rest_of(b, theirs):
        return Distance(*(float("inf"),) * 3)
    found = Distance()
    for name in names:
        pair = (_labelled(model.canonical.read([name])[name].to(torch.float64)) for model in (a, b))
        found = found.worse(Distance.between(*pair))
    return found


def _labelled(output: Tensor) -> dict[Label, Tensor]:
    """One output by itself."""
    return {("", ""): output}
