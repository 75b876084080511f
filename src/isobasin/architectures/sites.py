"""From the facts of a family to its blocks and their symmetry groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from isobasin.architectures.activations import feedforward_group
from isobasin.architectures.layouts import FeedForwardProjections, Plane, Projections, Sizes
from isobasin.architectures.schema import AttentionSite, FeedForwardSite
from isobasin.errors import ArchitectureError
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup, QueryKeyNorm

AnySite = TypeVar("AnySite", AttentionSite, FeedForwardSite)


def attention_group(
    sizes: Sizes,
    projections: Projections,
    planes: tuple[Plane, ...] = (),
    *,
    rotary_value: bool = False,
    capped: bool = False,
    norm: QueryKeyNorm | None = None,
    permuted: bool = True,
    table: tuple[int, ...] = (),
    sink: bool = False,
) -> AttentionGroup:
    """The symmetry group that follows from the sizes, the biases and the rotated features.

    * A key bias adds `q_m · b_K` to all scores of a token, which softmax cancels, so it is free; but only on
      features that don't rotate: a rotated bias changes with the distance `m - n` like a key does. Nor is it free
      where keys are normalised, scores capped, or where attention may go to a sink, whose score stays.
    * A value bias adds the constant `b_V O^T` to the output, since attention sums to one, so it trades with
      the output bias; but not when values rotate: then every position adds another vector; nor where a sink takes
      part of the attention.

    Args:
        sizes: The block's sizes.
        projections: The block's projections; their biases are the ones that exist.
        planes: Pairs of features that rotate together, in queries and keys.
        rotary_value: Values rotate as well.
        capped: Scores are capped before softmax.
        norm: How queries and keys are normalised.
        permuted: Heads may be permuted.
        table: The constants of position biases (`AttentionGroup.table`).
        sink: Heads have scores of no token.
    """
    if any(i >= sizes.features for plane in planes for i in plane):
        raise ArchitectureError(
            f"rotary positions turn {2 * len(planes)} features, but a head has only {sizes.features}"
        )
    query_key = BilinearGroup(sizes.features, planes)
    return AttentionGroup(
        groups=sizes.groups,
        queries=sizes.queries,
        query_key=query_key,
        value_output=BilinearGroup(sizes.features, planes if rotary_value else ()),
        key_shift=(
            projections.key.bias is not None and bool(query_key.linear) and norm is None and not capped and not sink
        ),
        value_shift=(
            projections.value.bias is not None and projections.output.bias is not None and not rotary_value and not sink
        ),
        norm=norm,
        permuted=permuted,
        table=table,
        sink=sink,
    )


def latent_group(sizes: Sizes, plain: int, planes: tuple[Plane, ...], *, query: int, key_value: int) -> AttentionGroup:
    """The symmetry group of latent attention without biases on what reads latents.

    Args:
        sizes: The block's sizes; `features` are those of values.
        plain: Features of queries and keys that don't rotate.
        planes: Pairs of features of the rotary key, all of which rotate.
        query: Width of the queries' latent; 0 where they read the stream.
        key_value: Width of the latent of keys and values.
    """
    pairs = BilinearGroup(plain), BilinearGroup(sizes.features)
    shared = LatentGroup(query, key_value, BilinearGroup(2 * len(planes), planes))
    return AttentionGroup(sizes.heads, 1, *pairs, latent=shared)


def attention_sites(
    layers: int, name: str, projections: Projections, group: AttentionGroup, **others: Any
) -> list[AttentionSite]:
    """Equal blocks in all layers; `{layer}` in the names becomes the layer's index.

    Args:
        layers: How many.
        name: The module.
        projections: Of each.
        group: Of each.
        others: Gains, tables and sinks, as `AttentionSite` names them.
    """
    return _repeated(layers, AttentionSite(0, name, *projections, group=group, **others))


def feedforward_sites(
    layers: int, name: str, projections: FeedForwardProjections, activation: str
) -> list[FeedForwardSite]:
    """Equal feed-forward blocks in all layers; `{layer}` in the names becomes the layer's index."""
    up, gate, down = projections.up, projections.gate, projections.down
    group = feedforward_group(dict(up.layout.sizes)["feature"], activation, gated=gate is not None)
    return _repeated(layers, FeedForwardSite(0, name, up, gate, down, group, activation))


def stacked(stacks: Mapping[str, Sequence[AnySite]]) -> list[AnySite]:
    """The blocks of a model with several stacks of layers, by the name of the stack, counted through all of them."""
    named = [replace(site, stack=name) for name, sites in stacks.items() for site in sites]
    return [replace(site, layer=index) for index, site in enumerate(named)]


def _repeated(layers: int, template: AnySite) -> list[AnySite]:
    def at(layer: int) -> AnySite:
        return replace(template.named(lambda name: name.format(layer=layer)), layer=layer)

    return [at(layer) for layer in range(layers)]
