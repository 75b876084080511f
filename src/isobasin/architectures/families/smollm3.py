"""SmolLM3: Llama without rotary positions in the layers for which `no_rope_layers` has 0.

There any invertible map of queries and keys is allowed, and a key bias is free. Sliding windows only change the mask.
"""

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.errors import ArchitectureError


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a SmolLM3."""
    rotary, plain = llama.blocks(config), llama.blocks(config, planes=())
    rotates = config.no_rope_layers[: len(rotary)]
    if len(rotates) < len(rotary):
        raise ArchitectureError(f"no_rope_layers has {len(rotates)} entries for {len(rotary)} layers")
    return [r if turned else p for r, p, turned in zip(rotary, plain, rotates, strict=True)]


FAMILY = Family("smollm3", llama.PREFIXES, blocks, llama.feedforwards, llama.stream)
