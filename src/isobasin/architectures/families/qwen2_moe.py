"""Qwen2-MoE: the attention of Qwen2, whose biases `qkv_bias` can leave out.

Layers have experts, and one more that all tokens share, or a dense feed-forward block. A softmax over all experts
chooses some and weighs them, with `norm_topk_prob` so that the weights of those sum to one. The shared expert has a
gate of its own.
"""

from functools import partial

from isobasin.architectures.building import experts_blocks, linear_feedforwards, mixed
from isobasin.architectures.configuration import Config, layers
from isobasin.architectures.families import llama
from isobasin.architectures.feedforwards import ExpertsBlock, FeedForward
from isobasin.architectures.layouts import router, separate_experts

_SHARED = f"{llama.FEEDFORWARD}.shared_expert"


def routed(config: Config) -> set[int]:
    """The layers that have experts."""
    every = config.decoder_sparse_step if config.num_experts > 0 else layers(config) + 1
    return {i for i in range(layers(config)) if (i + 1) % every == 0} - set(config.mlp_only_layers)


def experts(config: Config) -> list[ExpertsBlock]:
    """A block of experts for every layer."""
    width, count = config.hidden_size, config.num_experts
    up, gate, down = (f"{llama.FEEDFORWARD}.experts.{{expert}}.{name}_proj" for name in ("up", "gate", "down"))
    found = separate_experts(width, config.moe_intermediate_size, count, up, down, gate)
    return experts_blocks(
        layers(config), llama.FEEDFORWARD, router(width, count, f"{llama.FEEDFORWARD}.gate"), found, config.hidden_act
    )


def feedforwards(config: Config) -> list[FeedForward]:
    """The feed-forward blocks of a Qwen2-MoE."""
    dense = llama.feedforwards(config)
    if not (chosen := routed(config)):
        return [*dense]
    parts, entries = ("up_proj", "down_proj", "gate_proj"), ("shared_expert_intermediate_size", "hidden_act")
    shared = linear_feedforwards(config, _SHARED, parts, entries, bias=False)
    return mixed(chosen, dense, experts(config), shared)


FAMILY = llama.like(
    model_type="qwen2_moe",
    blocks=partial(llama.blocks, bias="qkv_bias", output_bias=False),
    feedforwards=feedforwards,
    stream=partial(llama.stream, feedforward_readers=(f"{_SHARED}_gate",)),
    beside=("mlp.shared_expert_gate.weight",),
)
