"""SmolLM3: Llama without rotary positions in the layers for which `no_rope_layers` has 0.

There any invertible map of queries and keys is allowed, and a key bias is free. Sliding windows only change the mask.
"""

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.schema import AttentionSite
from isobasin.errors import ArchitectureError


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a SmolLM3."""
    bias = config.attention_bias
    rotary = llama.blocks(config)
    plain = llama.decoder_blocks(config, bias=bias, output_bias=bias, planes=())
    if len(config.no_rope_layers) != len(rotary):
        raise ArchitectureError(f"no_rope_layers has {len(config.no_rope_layers)} entries for {len(rotary)} layers")
    return [r if rotates else p for r, p, rotates in zip(rotary, plain, config.no_rope_layers, strict=True)]


FAMILY = Family("smollm3", llama.PREFIXES, blocks, llama.BUFFERS, llama.feedforwards, llama.stream)
