"""SmolLM3: Llama without rotary positions in the layers for which `no_rope_layers` has 0.

There any invertible map of queries and keys is allowed, and a key bias is free. Sliding windows only change the mask.
"""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, layers
from isobasin.architectures.families import llama
from isobasin.errors import ArchitectureError


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a SmolLM3."""
    rotates = config.no_rope_layers[: layers(config)]
    if len(rotates) < layers(config):
        raise ArchitectureError(f"no_rope_layers has {len(rotates)} entries for {layers(config)} layers")
    return llama.blocks(config, rotates=rotates)


FAMILY = llama.like(model_type="smollm3", blocks=blocks)
