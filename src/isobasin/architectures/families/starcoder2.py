"""StarCoder2: the attention of Llama, LayerNorm, and feed-forward blocks without a gate; `use_bias` is about all.

`sliding_window` only changes the mask.
"""

from functools import partial

from isobasin.architectures.families import llama

FAMILY = llama.like(
    model_type="starcoder2",
    blocks=partial(llama.blocks, bias="use_bias"),
    feedforwards=partial(llama.feedforwards, bias="use_bias", parts=("c_fc", "c_proj")),
    stream=partial(llama.stream, mean=True),
)
