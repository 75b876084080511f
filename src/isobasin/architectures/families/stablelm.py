"""StableLM: Llama with LayerNorm; the first features of a head rotate, in half order.

`use_qkv_bias` is about queries, keys and values, the output has none. `qk_layernorm` gives each head's queries and keys
a LayerNorm without bias by themselves. One normalisation serves both blocks of a layer where they are parallel.
"""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.layouts import gains
from isobasin.architectures.projection import Gains
from isobasin.architectures.stream import StreamFacts
from isobasin.symmetries.groups import QueryKeyNorm


def _gains(letter: str, heads: int, features: int) -> Gains:
    names = (f"{llama.ATTENTION}.{letter}_layernorm.norms.{head}.weight" for head in range(heads))
    return tuple(gains(name, features) for name in names)


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a StableLM."""
    norm = QueryKeyNorm.centred if config.qk_layernorm else None
    return llama.blocks(config, bias="use_qkv_bias", output_bias=False, partial=True, norm=norm, own_gains=_gains)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a StableLM."""
    return llama.stream(config, parallel=config.use_parallel_residual, mean=True)


FAMILY = llama.like(model_type="stablelm", blocks=blocks, stream=stream)
