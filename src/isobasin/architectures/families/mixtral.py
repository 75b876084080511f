"""Mixtral: Mistral with experts for feed-forward blocks.

A token's router chooses the experts of the highest softmax and makes their scores sum to one. Noise on what it reads is
for training only.
"""

from isobasin.architectures.building import experts_blocks
from isobasin.architectures.configuration import Config, layers
from isobasin.architectures.families import llama
from isobasin.architectures.feedforwards import ExpertsBlock
from isobasin.architectures.layouts import router, separate_experts

_EXPERTS = "layers.{layer}.block_sparse_moe"


def feedforwards(config: Config) -> list[ExpertsBlock]:
    """The blocks of experts of a Mixtral."""
    width, count = config.hidden_size, config.num_local_experts
    up, gate, down = (f"{_EXPERTS}.experts.{{expert}}.{name}" for name in ("w3", "w1", "w2"))
    experts = separate_experts(width, config.intermediate_size, count, up, down, gate)
    return experts_blocks(
        layers(config), _EXPERTS, router(width, count, f"{_EXPERTS}.gate"), experts, config.hidden_act
    )


FAMILY = llama.like(model_type="mixtral", feedforwards=feedforwards)
