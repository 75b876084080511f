"""The attention function of our own classes: as transformers computes it, in other heads and with rotary positions.

transformers' attention-function registry hands over queries, keys and values after the projections, so that a model
class can change what happens between them and the output projection, and nothing else of it has to be written again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "isobasin"
_FORM = "isobasin_form"


@dataclass(frozen=True)
class Form:
    """How one attention layer differs from that of its family.

    Attributes:
        heads: Its heads; they share the width of all the family's heads.
        scale: Factor of the family's scale of scores: `sqrt(d_h / d_h')` with the head widths before and after.
        rope_theta: Base of the rotary frequencies; None for no rotation.
    """

    heads: int
    scale: float
    rope_theta: float | None


def give_forms(model: nn.Module, forms: list[Form]) -> None:
    """Tell every attention module of a model, in the order of the layers, its form."""
    # By what they have: what these modules are called differs between versions of transformers.
    modules = [module for module in model.modules() if hasattr(module, "scaling")]
    if len(modules) != len(forms):
        raise ValueError(f"{type(model).__name__} has {len(modules)} attention modules for {len(forms)} layers")
    for module, form in zip(modules, forms, strict=True):
        setattr(module, _FORM, form)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`softmax(R q (R k)^T scale) v` in the layer's own heads, computed by transformers' "sdpa".

    Args:
        module: The attention module.
        query: `(batch, heads, tokens, features)`, in the family's heads.
        key: The same.
        value: The same.
        attention_mask: As "sdpa" takes it.
        scaling: Of the scores, in the family's heads.
        options: What "sdpa" takes besides.

    Returns:
        `(batch, tokens, layer's heads, their features)`, and None for the attention weights.
    """
    form: Form = getattr(module, _FORM)
    query, key, value = (regroup(x, form.heads) for x in (query, key, value))
    if form.rope_theta is not None:
        query, key = rotate(query, form.rope_theta), rotate(key, form.rope_theta)
    scale = None if scaling is None else scaling * form.scale
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scale, **options)


def regroup(x: Tensor, heads: int) -> Tensor:
    """The same features, `(batch, h, tokens, d)`, as those of another number of heads."""
    if x.shape[1] == heads:
        return x
    return x.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)


def rotate(x: Tensor, theta: float) -> Tensor:
    """Turn features `j` and `j + d/2` of token `n` by the angle `n theta^(-2j/d)` (arXiv 2104.09864, eq. 34).

    Args:
        x: `(..., tokens, d)`, positions from 0.
        theta: Base of the frequencies.
    """
    half = x.shape[-1] // 2
    # In float64, and cast once: two equal models then agree as far as their own type allows.
    options: dict[str, Any] = {"dtype": torch.float64, "device": x.device}
    angles = torch.arange(x.shape[-2], **options).unsqueeze(-1) * theta ** (-torch.arange(half, **options) / half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def register() -> None:
    """Make the function known to transformers, with the masks of "sdpa"."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
