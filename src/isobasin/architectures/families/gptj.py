"""GPT-J: separate projections, without biases in the attention.

Rotary positions turn the first `rotary_dim` features of a head, in interleaved order.
"""

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardSite
from isobasin.architectures.layouts import interleaved_planes, linears, separate
from isobasin.architectures.sites import attention_group, attention_sites, feedforward_sites
from isobasin.architectures.stream import Readout, StreamFacts
from isobasin.errors import ArchitectureError

_ATTENTION = "h.{layer}.attn"
_FEEDFORWARD = "h.{layer}.mlp"


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a GPT-J."""
    if not config.rotary_dim:
        # The table would have the model's width, not a head's: transformers fails on it.
        raise ArchitectureError("rotary_dim must be given: the number of features of a head that rotate")
    shape = sizes(config)
    projections = separate(
        shape,
        query=f"{_ATTENTION}.q_proj",
        key=f"{_ATTENTION}.k_proj",
        value=f"{_ATTENTION}.v_proj",
        output=f"{_ATTENTION}.out_proj",
        bias=False,
        output_bias=False,
    )
    group = attention_group(shape, projections, interleaved_planes(config.rotary_dim))
    return attention_sites(layers(config), _ATTENTION, projections, group)


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a GPT-J."""
    units = 4 * config.hidden_size if config.n_inner is None else config.n_inner
    projections = linears(config.hidden_size, units, f"{_FEEDFORWARD}.fc_in", f"{_FEEDFORWARD}.fc_out", bias=True)
    return feedforward_sites(layers(config), _FEEDFORWARD, projections, config.activation_function)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a GPT-J: one normalisation serves both blocks of a layer."""
    return StreamFacts(
        embeddings=(("wte.weight", 1),),
        readouts=(Readout("lm_head", tied=True), Readout("score"), Readout("qa_outputs")),
        attention_norm="h.{layer}.ln_1",
        feedforward_norm="h.{layer}.ln_1",
        final_norm="ln_f",
    )


FAMILY = Family(
    "gptj", ("transformer.",), blocks, feedforwards, stream, ("attn.bias", "attn.masked_bias", "attn.embed_positions")
)
