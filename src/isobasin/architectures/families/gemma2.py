"""Gemma 2: the blocks of Gemma, with normalisations before and after each.

`attn_logit_softcapping` caps scores before the softmax: what leaves scores as they are may still move, and as every
feature rotates there is no free key bias to lose. `query_pre_attn_scalar` scales them; sliding windows only change the
mask.
"""

from functools import partial

from isobasin.architectures.families import llama

stream = partial(
    llama.stream,
    gain_offset=1.0,
    feedforward_norm="layers.{layer}.pre_feedforward_layernorm",
    after=("layers.{layer}.post_attention_layernorm", "layers.{layer}.post_feedforward_layernorm"),
)
feedforwards = partial(llama.feedforwards, entries=("intermediate_size", "hidden_activation"))

FAMILY = llama.like(model_type="gemma2", feedforwards=feedforwards, stream=stream)
