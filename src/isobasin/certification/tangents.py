"""The directions in which a stated group moves the weights of a block, at the identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import jacrev

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.feedforwards import FeedForward
from isobasin.symmetries import attention, feedforward, gains, latent
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights

Parts = dict[str, Tensor]


def stored_tangents(site: AttentionSite | FeedForward, tensors: Parts) -> Tensor:
    """The stated directions of a block's stored values, tensor after tensor: `(values, dimension)`."""
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in site.shapes().items()}

    # Storing is linear, so it takes directions as it takes weights.
    def stored(direction: Parts) -> Tensor:
        if isinstance(site, AttentionSite):
            written = site.stored(direction)
        else:
            written = site.write(zeros, FeedForwardWeights(**direction))
        return torch.cat([written[name].flatten() for name in zeros if name not in site.deciding])

    if isinstance(site, AttentionSite):
        found = attention_tangents(site.group, site.read(tensors))
    else:
        found = feedforward_tangents(site.group, site.read(tensors))
    each = [stored({name: part[..., k] for name, part in found.items()}) for k in range(site.group.dimension)]
    return torch.stack(each, 1) if each else torch.zeros(len(stored(site.read(tensors).tensors())), 0).double()


def attention_tangents(group: AttentionGroup, weights: AttentionWeights) -> Parts:
    """The derivative of every weight, no gain folded, by every coordinate of the group, coordinates last."""
    parts = attention.identity(group).tensors()
    complex_parts = [name for name, part in parts.items() if part.is_complex()]
    # What isn't free: the order of heads, signs, shifts without their biases, and U of normalised queries and keys.
    fixed = ["outer", "inner", "query_signs", "key_signs"]
    fixed += [name for name in ("key_shift", "value_shift") if not getattr(group, name)]
    fixed += [name for name in parts if name.startswith("query_key") and group.norm is not None]

    means = {role: torch.zeros(*getattr(weights, role).shape[:-2], group.means).double() for role in ("query", "key")}
    turns = {} if group.latent is None else {f"latent.{n}": w for n, w in group.latent.widths.items()}

    def moved(coordinates: Parts) -> Parts:
        new = {n: torch.view_as_complex(x) if n in complex_parts else x for n, x in coordinates.items()}
        new |= {name: latent.rotated(new[name]) for name in turns if name in new}
        found = attention.act(group, AttentionElement.from_tensors({**parts, **new}), weights)
        found = gains.shifted(found, {role: new[f"{role}_mean"] for role in means if f"{role}_mean" in new})
        return (found if group.latent is None else latent.unfolded(group.latent, found)).tensors()

    free = {name: part for name, part in parts.items() if name not in fixed}
    free |= {f"{role}_mean": mean for role, mean in means.items()}
    free |= {name: torch.zeros(width * (width - 1) // 2, dtype=torch.float64) for name, width in turns.items()}
    return _derivatives(moved, {n: torch.view_as_real(x) if n in complex_parts else x for n, x in free.items()})


def feedforward_tangents(group: FeedForwardGroup, weights: FeedForwardWeights) -> Parts:
    """The same of a feed-forward block."""
    start = feedforward.identity(group)
    scales = {"up": group.up, "gate": group.gate}
    free = {name: start.tensors()[name] for name, scale in scales.items() if scale is not None and scale.dimension}
    free["shift"] = start.shift
    return _derivatives(lambda new: feedforward.act(group, replace(start, **new), weights).tensors(), free)


def _derivatives(moved: Callable[[Parts], Parts], start: Parts) -> Parts:
    start = {name: part for name, part in start.items() if part.numel()}
    if not start:
        return {name: weight.new_zeros(*weight.shape, 0) for name, weight in moved(start).items()}
    found = jacrev(moved)(start)
    # Of every weight by every part: (weight's axes, part's axes).
    sizes = {name: weight.ndim for name, weight in moved(start).items()}
    return {
        name: torch.cat([part.flatten(sizes[name]) for part in by_part.values()], -1) for name, by_part in found.items()
    }
