"""OPT: separate projections; `enable_bias` is about all of them."""

from functools import partial

from isobasin.architectures.building import linear_feedforwards, separate_attention
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import bart
from isobasin.architectures.family import Family
from isobasin.architectures.stream import Readout, StreamFacts
from isobasin.errors import ArchitectureError

_LAYER = "decoder.layers.{layer}"


blocks = partial(separate_attention, name=f"{_LAYER}.self_attn", parts=bart.PARTS, bias="enable_bias")
feedforwards = partial(
    linear_feedforwards,
    name=_LAYER,
    parts=("fc1", "fc2"),
    entries=("ffn_dim", "activation_function"),
    bias="enable_bias",
)


def stream(config: Config) -> StreamFacts:
    """The residual stream of an OPT, normalised before the blocks or after the sums (`do_layer_norm_before`)."""
    before = config.do_layer_norm_before
    if config.word_embed_proj_dim != config.hidden_size:
        raise ArchitectureError("word_embed_proj_dim differs from hidden_size: that residual stream is not supported")
    if not config.layer_norm_elementwise_affine or (before and config._remove_final_layer_norm):
        raise ArchitectureError("a residual stream without gains or without a last normalisation is not supported")
    return StreamFacts(
        embeddings=(("decoder.embed_tokens.weight", 1), ("decoder.embed_positions.weight", 1)),
        readouts=(Readout("lm_head", tied=True), Readout("score"), Readout("qa_outputs")),
        attention_norm=f"{_LAYER}.self_attn_layer_norm",
        feedforward_norm=f"{_LAYER}.final_layer_norm",
        final_norm="decoder.final_layer_norm" if before else None,
        post=not before,
    )


FAMILY = Family("opt", ("model.",), blocks, feedforwards=feedforwards, stream=stream)
