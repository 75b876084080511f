"""DeepSeek-V3: DeepSeek-V2 with another router; `rope_interleave` says in which order rotary features turn.

Experts weigh by a sigmoid of their scores, `norm_topk_prob` or not. To choose them a correction is added to it, and a
group's score is the sum of its best two. The correction's values decide by their differences alone; that one number may
be added to all of them is left out of the group. Layers that predict further tokens are never loaded, and stay.
"""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, rotated
from isobasin.architectures.families import deepseek_v2, llama
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.layouts import correction, half_planes, interleaved_planes


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a DeepSeek-V3."""
    planes = interleaved_planes if config.rope_interleave else half_planes
    return deepseek_v2.latent_blocks(config, planes(rotated(config, config.qk_rope_head_dim)))


def feedforwards(config: Config) -> list[FeedForward]:
    """The feed-forward blocks of a DeepSeek-V3."""
    added = correction(config.n_routed_experts, f"{deepseek_v2.ROUTER}.e_score_correction_bias")
    groups = deepseek_v2.expert_groups(config, scored=2)
    return deepseek_v2.mixed_feedforwards(config, bias=False, softmax=False, correction=added, groups=groups)


def predicting(config: Config) -> list[range]:
    """The layers that predict further tokens: behind the others; transformers passes over number 61 in all sizes."""
    first = config.num_hidden_layers
    return [range(first, first + (getattr(config, "num_nextn_predict_layers", None) or 0)), range(max(first, 61), 62)]


FAMILY = llama.like(model_type="deepseek_v3", blocks=blocks, feedforwards=feedforwards, unread=predicting)
