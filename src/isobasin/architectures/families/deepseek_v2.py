"""DeepSeek-V2: multi-head latent attention.

Keys and values read one normalised latent, queries another one unless `q_lora_rank` is None; one rotary key, in
interleaved order, serves all heads. `attention_bias` is about what writes latents, rotary key and output. Layers from
`first_k_dense_replace` on have experts, which aren't moved.
"""

from isobasin.architectures.configuration import Config, layers, rotated, sizes
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import Plane, Projections, gains, interleaved_planes, into_stream, sliced
from isobasin.architectures.schema import AttentionSite, FeedForwardSite, Projection
from isobasin.architectures.sites import attention_sites, latent_group
from isobasin.errors import ArchitectureError

_ATTENTION = "layers.{layer}.self_attn"


def _module(name: str) -> str:
    return f"{_ATTENTION}.{name}"


def latent_blocks(config: Config, planes: tuple[Plane, ...]) -> list[AttentionSite]:
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
    return attention_sites(layers(config), _ATTENTION, projections, group, **queries, **downs, **others)


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


def dense_feedforwards(config: Config, *, bias: bool) -> list[FeedForwardSite]:
    """The feed-forward blocks of the first layers, which have no experts."""
    return llama.decoder_feedforwards(config, bias=bias)[: config.first_k_dense_replace or 0]


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a DeepSeek-V2."""
    return latent_blocks(config, interleaved_planes(rotated(config, config.qk_rope_head_dim)))


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The dense feed-forward blocks of a DeepSeek-V2."""
    return dense_feedforwards(config, bias=config.mlp_bias)


FAMILY = Family("deepseek_v2", llama.PREFIXES, blocks, llama.BUFFERS, feedforwards, llama.stream)
