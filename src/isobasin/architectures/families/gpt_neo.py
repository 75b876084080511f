"""GPT-Neo: separate projections, of which only the output has a bias.

Scores are not scaled, and local layers see a window of positions only; neither changes the group.
"""

from functools import partial

from isobasin.architectures.building import linear_feedforwards, separate_attention
from isobasin.architectures.families import bart, gpt2
from isobasin.architectures.family import Family

blocks = partial(separate_attention, name="h.{layer}.attn.attention", parts=bart.PARTS, bias=False, output_bias=True)
feedforwards = partial(
    linear_feedforwards,
    name="h.{layer}.mlp",
    parts=("c_fc", "c_proj"),
    entries=("intermediate_size", "activation_function"),
)


FAMILY = Family(
    "gpt_neo",
    ("transformer.",),
    blocks,
    feedforwards,
    gpt2.stream,
    ("attn.attention.bias", "attn.attention.masked_bias"),
)
