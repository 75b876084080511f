"""gpt-oss: Llama with a score of no token for every head, which takes a part of the attention (sink).

Feed-forward blocks are experts whose router, with a bias, makes a softmax of the scores that it chose. Their activation
clamps both branches, so that no scale passes; `hidden_act` isn't used. Sliding windows only change the mask.
"""

from functools import partial

from isobasin.architectures.activations import clamped_swiglu
from isobasin.architectures.building import experts_blocks
from isobasin.architectures.configuration import Config, layers
from isobasin.architectures.families import llama
from isobasin.architectures.feedforwards import ExpertsBlock
from isobasin.architectures.layouts import interleaved_experts, router


def feedforwards(config: Config) -> list[ExpertsBlock]:
    """The blocks of experts of a gpt-oss."""
    width, count = config.hidden_size, config.num_local_experts
    fused, down = (f"{llama.FEEDFORWARD}.experts.{name}_proj" for name in ("gate_up", "down"))
    experts = interleaved_experts(width, config.intermediate_size, count, fused, down)
    activation = clamped_swiglu(config.swiglu_alpha, config.swiglu_limit)
    rows = router(width, count, f"{llama.FEEDFORWARD}.router", bias=True)
    return experts_blocks(layers(config), llama.FEEDFORWARD, rows, experts, activation)


FAMILY = llama.like(model_type="gpt_oss", blocks=partial(llama.blocks, sink=True), feedforwards=feedforwards)
