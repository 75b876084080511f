"""DeepSeek-V2: multi-head latent attention.

Keys and values read one normalised latent, queries another one unless `q_lora_rank` is None; one rotary key, in
interleaved order, serves all heads. `attention_bias` is about what writes latents, rotary key and output.

Layers from `first_k_dense_replace` on have experts, and one block more that all tokens share. A softmax over all of
them weighs those that it chooses, from the groups of the best ones where `topk_method` says so. transformers doesn't
read `norm_topk_prob`, which would change no symmetry. `mlp_bias` is about all feed-forward blocks but experts.
"""

from typing import Any

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import experts_blocks, latent_group, linear_blocks, mixed, repeated
from isobasin.architectures.configuration import Config, layers, rotated, sizes
from isobasin.architectures.families import llama
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.layouts import (
    Plane,
    Projections,
    gains,
    interleaved_planes,
    into_stream,
    router,
    separate_experts,
    sliced,
)
from isobasin.architectures.projection import Projection
from isobasin.errors import ArchitectureError

_SHARED = f"{llama.FEEDFORWARD}.shared_experts"
# What scores experts; its bias in DeepSeek-V3 only decides.
ROUTER = f"{llama.FEEDFORWARD}.gate"


def _module(name: str) -> str:
    return f"{llama.ATTENTION}.{name}"


def latent_blocks(config: Config, planes: tuple[Plane, ...]) -> list[AttentionBlock]:
    """The attention blocks of a DeepSeek whose rotary features turn in these planes."""
    _check_sizes(config)
    shape, bias = sizes(config, features=config.v_head_dim), config.attention_bias
    queried, rank = config.q_lora_rank, config.kv_lora_rank
    rotary, plain = config.qk_rope_head_dim, config.qk_nope_head_dim
    queries = sliced(
        _module("q_proj" if queried is None else "q_b_proj"),
        shape.width if queried is None else queried,
        {"query": plain, "rotary_query": rotary},
        heads=shape.heads,
    )
    downs = sliced(
        _module("kv_a_proj_with_mqa"), shape.width, {"key_value_down": rank, "rotary_key": rotary}, bias=bias
    )
    heads = sliced(_module("kv_b_proj"), rank, {"key": plain, "value": shape.features}, heads=shape.heads)
    others: dict[str, Projection] = {"key_value_down_gain": gains(_module("kv_a_layernorm.weight"), rank)}
    if queried is not None:
        others |= sliced(_module("q_a_proj"), shape.width, {"query_down": queried}, bias=bias)
        others["query_down_gain"] = gains(_module("q_a_layernorm.weight"), queried)
    output = into_stream(_module("o_proj"), shape, bias=bias)
    projections = Projections(queries.pop("query"), **heads, output=output)
    group = latent_group(shape, plain, planes, query=queried or 0, key_value=rank)
    found = AttentionBlock(0, llama.ATTENTION, *projections, group=group, **queries, **downs, **others)
    return repeated(layers(config), found)


def _check_sizes(config: Config) -> None:
    """Refuse sizes with which transformers can't compute."""
    names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank")
    for name in names:
        value = getattr(config, name)
        if value is None and name == "q_lora_rank":
            continue
        if value is None or value < 1:
            raise ArchitectureError(f"{name} is {value}: sizes must be positive")
    if config.num_key_value_heads != config.num_attention_heads:
        raise ArchitectureError(
            f"num_key_value_heads is {config.num_key_value_heads}: latent attention has as many as "
            f"num_attention_heads, {config.num_attention_heads}"
        )


def routed(config: Config) -> range:
    """The layers that have experts."""
    if config.first_k_dense_replace is None:
        raise ArchitectureError("first_k_dense_replace is None: it must be the number of layers without experts")
    return range(config.first_k_dense_replace, layers(config))


def expert_groups(config: Config, *, limited: bool = True, scored: int = 1) -> int:
    """The groups of experts of which a token's router chooses some first; 1 where it may choose any experts.

    Args:
        config: The configuration.
        limited: Whether it chooses groups at all.
        scored: How many experts of a group make its score.
    """
    if not routed(config):
        return 1
    experts, each = config.n_routed_experts, config.num_experts_per_tok
    groups, chosen = (config.n_group, config.topk_group) if limited else (1, 1)
    if not groups or experts % groups or experts // groups < scored:
        raise ArchitectureError(
            f"n_group is {groups}: n_routed_experts {experts} must be so many equal groups of at least {scored}"
        )
    if not chosen or not 1 <= chosen <= groups:
        raise ArchitectureError(f"topk_group is {chosen}: a router chooses 1 to {groups} groups")
    among = experts // groups * chosen
    if not each or not 1 <= each <= among:
        raise ArchitectureError(f"num_experts_per_tok is {each}: a router chooses 1 to {among} experts")
    return 1 if chosen == groups else groups


def mixed_feedforwards(config: Config, *, bias: bool, **routing: Any) -> list[FeedForward]:
    """The feed-forward blocks of a DeepSeek, `bias` being about all but experts; `routing` as in `experts_blocks`."""
    dense = llama.feedforwards(config, bias=bias)
    if not (chosen := routed(config)):
        return [*dense]
    width, units, count = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    names = "up_proj", "down_proj", "gate_proj"
    found = separate_experts(width, units, count, *(f"{llama.FEEDFORWARD}.experts.{{expert}}.{name}" for name in names))
    rows, activation = router(width, count, ROUTER), config.hidden_act
    experts = experts_blocks(layers(config), llama.FEEDFORWARD, rows, found, activation, **routing)
    together = units * config.n_shared_experts
    shared = linear_blocks(layers(config), _SHARED, width, together, activation, *names, bias=bias)
    return mixed(chosen, dense, experts, shared)


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a DeepSeek-V2."""
    return latent_blocks(config, interleaved_planes(rotated(config, config.qk_rope_head_dim)))


def feedforwards(config: Config) -> list[FeedForward]:
    """The feed-forward blocks of a DeepSeek-V2."""
    method = config.topk_method
    if routed(config) and method not in ("greedy", "group_limited_greedy"):
        raise ArchitectureError(f"topk_method is {method!r}: only 'greedy' and 'group_limited_greedy' are supported")
    groups = expert_groups(config, limited=method != "greedy")
    return mixed_feedforwards(config, bias=config.mlp_bias, groups=groups)


FAMILY = llama.like(model_type="deepseek_v2", blocks=blocks, feedforwards=feedforwards)
