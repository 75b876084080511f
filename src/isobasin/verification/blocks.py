"""Blocks one by one, in float64 on random hidden states, and all other tensors value by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from isobasin.verification.distance import APART, FLOORS, Distance, Label, Verification
from isobasin.verification.rounding import HIDDEN, differing, dither, stays_by_rounding

_TOKENS = 24
# Relative difference of what a block computes in float64 that counts as equal.
_TOLERANCE = 1e-6

Outputs = dict[Label, Tensor]
_ONE: Label = ("", "")


def compare_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> Verification:
    """Compare named tensors value by value."""
    pair = [{(name, ""): tensor for name, tensor in tensors.items()} for tensors in (a, b)]
    return _judged(Distance.between(*pair), "blocks and all tensors along the residual stream")


def compare_blocks(group: AttentionGroup, a: AttentionWeights, b: AttentionWeights) -> Verification:
    """Compare the functions of two blocks in float64 on random hidden states, as plainly as `attend` writes them.

    Rotary frequencies are random and distinct: the group must hold for any.

    Args:
        group: Group of both.
        a: The original, without leading dimensions.
        b: The other one.
    """
    found = Distance.between(*(_attended(group, weights, 0) for weights in (a, b)))
    return _judged(found, "attention blocks one by one on random hidden states")


def compare_feedforward(block: FeedForward, a: FeedForwardWeights, b: FeedForwardWeights) -> Verification:
    """The same for two feed-forward blocks, experts as `feed_forward`; `block` says what is known of both."""
    found = Distance.between(*(_fed(block, weights, 0) for weights in (a, b)))
    return _judged(found, "feed-forward blocks one by one on random hidden states")


def _judged(found: Distance, how: str) -> Verification:
    return Verification(found.max_abs, found.max_rel, _TOLERANCE, how)


def _attended(group: AttentionGroup, weights: AttentionWeights, seed: int) -> Outputs:
    """What an attention block makes of random hidden states."""
    generator = torch.Generator().manual_seed(seed)
    tokens, device = _TOKENS, weights.key.device
    hidden = torch.randn(2, tokens, weights.width, generator=generator, dtype=torch.float64).to(device)
    frequencies = torch.rand(len(group.rotary.planes), generator=generator, dtype=torch.float64)
    frequencies = frequencies[list(group.rotary.frequencies)]
    angles = (torch.arange(tokens, dtype=torch.float64).unsqueeze(-1) * frequencies).to(device)
    return {_ONE: attend(weights, group, hidden, angles)}


def _fed(block: FeedForward, weights: FeedForwardWeights, seed: int) -> Outputs:
    """What a feed-forward block makes of random hidden states."""
    activation, multiplied = activation_functions(block.activation)
    scores = None if block.group.shift else torch.sigmoid
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2 * _TOKENS, weights.up.shape[-1], generator=generator, dtype=torch.float64)
    return {_ONE: feed_forward(weights, activation, hidden.to(weights.up.device), multiplied, scores)}


def compare_by_layer(a: Model, b: Model, tolerance: float | None, seed: int, device: str) -> Verification:
    """Compare every block of either kind on random hidden states, and every other tensor by value.

    For models that are too large to run. What counts as equal is, as for whole models, what one more rounding of the
    stored values that differ changes in these blocks.
    """
    pairs = list(zip(known_feedforwards(a), known_feedforwards(b), strict=False))
    found = _compare_rest(a, b, [one for one, _ in pairs], [other for _, other in pairs])
    rounding = Distance()
    for one, other in (*zip(a.specification.attention, b.specification.attention, strict=True), *pairs):
        if getattr(one, "activation", None) != getattr(other, "activation", None):
            found = found.worse(APART)
            continue
        stored = a.stored(one), b.stored(other)
        outputs = [_run(block, stored[index], seed, device) for index, block in enumerate((one, other))]
        found = found.worse(Distance.between(*outputs))
        for index, block in ((0, one), (1, other)):
            rounded = _rounded(stored[index], stored[1 - index], seed)
            if rounded is not None:
                changed = _run(block, rounded, seed, device)
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
        device=device,
    )


def _run(block: AttentionBlock | FeedForward, tensors: Mapping[str, Tensor], seed: int, device: str) -> Outputs:
    """What a block makes of random hidden states."""
    if isinstance(block, AttentionBlock):
        return _attended(block.group, block.read(tensors, device), seed)
    return _fed(block, block.read(tensors, device), seed)


def _rounded(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor], seed: int) -> dict[str, Tensor] | None:
    """Stored tensors with those values rounded once more that aren't another model's; None if all are."""
    generator, changed = torch.Generator().manual_seed(seed), False
    rounded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        other = others.get(name)
        where = differing(tensor, other)
        rounded[name] = tensor.to(torch.float64)
        if where is not None:
            stays = stays_by_rounding(tensor.double(), other, tensor.dtype, where)
            dither(rounded[name], tensor.dtype, where, generator, HIDDEN if stays else 0.0)
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
        return APART
    found = Distance()
    for name in names:
        pair = ({_ONE: model.canonical.read([name])[name].to(torch.float64)} for model in (a, b))
        found = found.worse(Distance.between(*pair))
    return found
