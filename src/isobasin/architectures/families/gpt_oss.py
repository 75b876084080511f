"""gpt-oss: Llama with a score of no token for every head, which takes a part of the attention (sink).

Feed-forward blocks are experts whose router, with a bias, makes a softmax of the scores that it chose. Their activation
clamps both branches, so that no scale passes; `hidden_act` isn't used. Sliding windows only change the mask.
"""

from isobasin.architectures.activations import clamped_swiglu
from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, layers
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import ExpertsSite
from isobasin.architectures.layouts import interleaved_experts, router
from isobasin.architectures.sites import experts_sites

_FEEDFORWARD = "layers.{layer}.mlp"


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a gpt-oss."""
    bias = config.attention_bias
    return llama.decoder_blocks(config, bias=bias, output_bias=bias, sink=True)


def feedforwards(config: Config) -> list[ExpertsSite]:
    """The blocks of experts of a gpt-oss."""
    width, count = config.hidden_size, config.num_local_experts
    fused, down = (f"{_FEEDFORWARD}.experts.{name}_proj" for name in ("gate_up", "down"))
    experts = interleaved_experts(width, config.intermediate_size, count, fused, down)
    activation = clamped_swiglu(config.swiglu_alpha, config.swiglu_limit)
    rows = router(width, count, f"{_FEEDFORWARD}.router", bias=True)
    return experts_sites(layers(config), _FEEDFORWARD, rows, experts, activation)


FAMILY = Family("gpt_oss", llama.PREFIXES, blocks, feedforwards, llama.stream)
