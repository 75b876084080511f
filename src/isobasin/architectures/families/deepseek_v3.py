"""DeepSeek-V3: the latent attention of DeepSeek-V2; `rope_interleave` says in which order rotary features turn."""

from isobasin.architectures.configuration import Config, rotated
from isobasin.architectures.families import deepseek_v2, llama
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import half_planes, interleaved_planes
from isobasin.architectures.schema import AttentionSite, FeedForwardSite


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a DeepSeek-V3."""
    planes = interleaved_planes if config.rope_interleave else half_planes
    return deepseek_v2.latent_blocks(config, planes(rotated(config, config.qk_rope_head_dim)))


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The dense feed-forward blocks of a DeepSeek-V3."""
    return deepseek_v2.dense_feedforwards(config, bias=False)


FAMILY = Family("deepseek_v3", llama.PREFIXES, blocks, llama.BUFFERS, feedforwards, llama.stream)
