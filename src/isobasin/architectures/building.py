"""From the facts of a family to its blocks and their symmetry groups."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from isobasin.architectures.activations import feedforward_group
from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, layers, sizes, switched
from isobasin.architectures.feedforwards import ExpertsBlock, FeedForward, FeedForwardBlock
from isobasin.architectures.layouts import FeedForwardProjections, Plane, Projections, Sizes, linears, separate
from isobasin.architectures.projection import Projection
from isobasin.errors import ArchitectureError
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup, QueryKeyNorm

AnyBlock = TypeVar("AnyBlock", AttentionBlock, FeedForwardBlock, ExpertsBlock)


def attention_group(
    sizes: Sizes,
    projections: Projections,
    planes: tuple[Plane, ...] = (),
    *,
    alike: tuple[tuple[int, ...], ...] = (),
    rotary_value: bool = False,
    norm: QueryKeyNorm | None = None,
    permuted: bool = True,
    table: tuple[int, ...] = (),
    sink: bool = False,
) -> AttentionGroup:
    """The symmetry group that follows from the sizes, the biases and the rotated features.

    * A key bias adds `q_m · b_K` to all scores of a token, which softmax cancels, so it is free; but only on
      features that don't rotate: a rotated bias changes with the distance `m - n` like a key does. Nor is it free
      where keys are normalised, or where attention may go to a sink, whose score stays.
    * A value bias adds the constant `b_V O^T` to the output, since attention sums to one, so it trades with
      the output bias; but not when values rotate: then every position adds another vector; nor where a sink takes
      part of the attention.

    Args:
        sizes: The block's sizes.
        projections: The block's projections; their biases are the ones that exist.
        planes: Pairs of features that rotate together, in queries and keys.
        alike: Planes that turn by the very same angle (`layouts.alike_planes`).
        rotary_value: Values rotate as well.
        norm: How queries and keys are normalised.
        permuted: Heads may be permuted.
        table: The constants of position biases (`AttentionGroup.table`).
        sink: Heads have scores of no token.
    """
    if any(i >= sizes.features for plane in planes for i in plane):
        raise ArchitectureError(
            f"rotary positions turn {2 * len(planes)} features, but a head has only {sizes.features}"
        )
    if norm is QueryKeyNorm.centred and (not planes or sizes.features < 3):
        # Without planes a curve of gains, with two features all phases of their one plane leave the scores as they are.
        raise ArchitectureError("LayerNorm of queries and keys is supported where some of 3 features or more rotate")
    query_key = BilinearGroup(sizes.features, planes, alike)
    return AttentionGroup(
        kv_heads=sizes.kv_heads,
        queries_per_kv=sizes.queries_per_kv,
        query_key=query_key,
        value_output=query_key if rotary_value else BilinearGroup(sizes.features),
        key_shift=(projections.key.bias is not None and bool(query_key.linear) and norm is None and not sink),
        value_shift=(
            projections.value.bias is not None and projections.output.bias is not None and not rotary_value and not sink
        ),
        norm=norm,
        means=sizes.width + (projections.query.bias is not None) if norm is QueryKeyNorm.centred else 0,
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


def attention_blocks(
    layers: int,
    name: str,
    sizes: Sizes,
    projections: Projections,
    planes: tuple[Plane, ...] = (),
    *,
    others: Mapping[str, Any] | None = None,
    **facts: Any,
) -> list[AttentionBlock]:
    """Equal blocks in all layers; `{layer}` in the names becomes the layer's index.

    Args:
        layers: How many.
        name: The module.
        sizes: Of each.
        projections: Of each.
        planes: As in `attention_group`.
        others: Gains, tables and sinks, as `AttentionBlock` names them.
        facts: What else `attention_group` is told.
    """
    group = attention_group(sizes, projections, planes, **facts)
    return repeated(layers, AttentionBlock(0, name, *projections, group=group, **(others or {})))


def separate_attention(
    config: Config,
    name: str,
    parts: Iterable[str],
    planes: tuple[Plane, ...] = (),
    *,
    bias: bool | str = True,
    output_bias: bool | str | None = None,
    key_bias: bool = True,
    shape: Sizes | None = None,
    depth: int | None = None,
    **facts: Any,
) -> list[AttentionBlock]:
    """`attention_blocks` of four `nn.Linear` modules inside the module.

    Args:
        config: The configuration.
        name: The module.
        parts: What those of queries, keys, values and output are called.
        planes: As in `attention_group`.
        bias: Whether queries, values and, unless `key_bias` is False, keys have biases, or which entry says so.
        output_bias: Likewise for the output; by default it has one where they have.
        key_bias: Whether keys have biases where queries have.
        shape: Sizes of the blocks, if not as `sizes` has them.
        depth: How many layers, if not as `layers` has it.
        facts: As in `attention_blocks`.
    """
    shape, biased = shape or sizes(config), switched(config, bias)
    written = biased if output_bias is None else switched(config, output_bias)
    names = (f"{name}.{part}" for part in parts)
    projections = separate(shape, *names, bias=biased, output_bias=written, key_bias=key_bias)
    return attention_blocks(layers(config) if depth is None else depth, name, shape, projections, planes, **facts)


def feedforward_blocks(
    layers: int, name: str, projections: FeedForwardProjections, activation: str
) -> list[FeedForwardBlock]:
    """Equal feed-forward blocks in all layers; `{layer}` in the names becomes the layer's index."""
    up, gate, down = projections.up, projections.gate, projections.down
    group = feedforward_group(dict(up.layout.sizes)["feature"], activation, gated=gate is not None)
    return repeated(layers, FeedForwardBlock(0, name, up, gate, down, group, activation))


def linear_blocks(
    layers: int,
    name: str,
    width: int,
    units: int,
    activation: str,
    up: str,
    down: str,
    gate: str | None = None,
    *,
    bias: bool,
) -> list[FeedForwardBlock]:
    """`feedforward_blocks` of `nn.Linear` modules inside the module; `bias` is about all of them."""
    up, down = f"{name}.{up}", f"{name}.{down}"
    projections = linears(width, units, up, down, None if gate is None else f"{name}.{gate}", bias=bias)
    return feedforward_blocks(layers, name, projections, activation)


def linear_feedforwards(
    config: Config,
    name: str,
    parts: Sequence[str],
    entries: tuple[str, str] = ("intermediate_size", "hidden_act"),
    *,
    bias: bool | str = True,
    depth: int | None = None,
) -> list[FeedForwardBlock]:
    """`linear_blocks` of what a configuration says.

    Args:
        config: The configuration.
        name: The module.
        parts: What up, down and, in a gated block, gate are called.
        entries: Which entries give the number of units, four times the width where it is None, and the activation.
        bias: Whether all projections have biases, or which entry says so.
        depth: How many layers, if not as `layers` has it.
    """
    width, (units, activation) = config.hidden_size, (getattr(config, entry) for entry in entries)
    units, depth = 4 * width if units is None else units, layers(config) if depth is None else depth
    return linear_blocks(depth, name, width, units, activation, *parts, bias=switched(config, bias))


def experts_blocks(
    layers: int,
    name: str,
    router: Projection,
    experts: Sequence[FeedForwardProjections],
    activation: str,
    *,
    softmax: bool = True,
    correction: Projection | None = None,
    groups: int = 1,
) -> list[ExpertsBlock]:
    """Equal blocks of experts in all layers; `{layer}` in the names becomes the layer's index.

    Args:
        layers: How many.
        name: The module.
        router: Of each.
        experts: One by one, or all in one.
        activation: Its name.
        softmax: Whether scores are a softmax, of all experts or of the chosen ones: then what is added to the scores of
            all experts changes nothing. Of a sigmoid it does.
        correction: What is added to scores where experts are chosen.
        groups: Groups of experts of which some are chosen first.
    """
    sizes = dict(experts[0].up.layout.sizes)
    gates = [expert.gate for expert in experts if expert.gate is not None]
    group = replace(
        feedforward_group(sizes["feature"], activation, gated=bool(gates)),
        experts=dict(router.layout.sizes)["feature"],
        expert_groups=groups,
        shift=sizes["width"] + (router.bias is not None) if softmax else 0,
    )
    up, down = (tuple(getattr(expert, role) for expert in experts) for role in ("up", "down"))
    return repeated(layers, ExpertsBlock(0, name, router, up, tuple(gates), down, group, activation, correction))


def mixed(routed: Container[int], dense: Sequence[FeedForward], *others: Sequence[FeedForward]) -> list[FeedForward]:
    """Layer by layer, the blocks of `others` where the layer is routed, and that of `dense` where it isn't.

    Args:
        routed: The layers with experts.
        dense: The feed-forward block that each layer has otherwise.
        others: Of every layer the experts, and those that all tokens share, if there are any.
    """
    chosen = [block for block in dense if block.layer not in routed]
    chosen += [block for blocks in others for block in blocks if block.layer in routed]
    return sorted(chosen, key=lambda block: block.layer)


def stacked(stacks: Mapping[str, Sequence[AnyBlock]]) -> list[AnyBlock]:
    """The blocks of a model with several stacks of layers, by the name of the stack, counted through all of them."""
    named = [replace(block, stack=name) for name, blocks in stacks.items() for block in blocks]
    return [replace(block, layer=index) for index, block in enumerate(named)]


def repeated(layers: int, template: AnyBlock) -> list[AnyBlock]:
    """Equal blocks in all layers; `{layer}` in the names becomes the layer's index."""

    def at(layer: int) -> AnyBlock:
        return replace(template.named(lambda name: name.format(layer=layer)), layer=layer)

    return [at(layer) for layer in range(layers)]
