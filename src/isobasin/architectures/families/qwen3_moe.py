"""Qwen3-MoE: the attention of Qwen3, and experts as in Qwen2-MoE with none that is shared."""

from isobasin.architectures.building import mixed
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama, qwen2_moe, qwen3
from isobasin.architectures.feedforwards import FeedForward


def feedforwards(config: Config) -> list[FeedForward]:
    """The feed-forward blocks of a Qwen3-MoE."""
    dense = llama.feedforwards(config)
    chosen = qwen2_moe.routed(config)
    return mixed(chosen, dense, qwen2_moe.experts(config)) if chosen else [*dense]


FAMILY = llama.like(model_type="qwen3_moe", blocks=qwen3.FAMILY.blocks, feedforwards=feedforwards)
