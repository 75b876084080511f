"""A tiny random model of transformers: what a family is certified, documented and tested by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

_SCALE = 0.2


class Single(StrEnum):
    """What transformers computes in float32 whatever the model's type, so that equal models in float64 differ.

    * norms: the normalisations of the stream. Their input, cast to float32, is mostly the very same number: 5e-14 at
      condition 1e3, until one falls on the other side of a rounding boundary, whose float32 step (6e-8) grows.
    * latents: also what is normalised of latents, which is in another basis and rounds to other numbers everywhere.
    * scores: the product of queries and keys, which are rounded after the map: 1e-7 at condition 10, 1e-5 at 1e3.
    * softmax: the softmax of scores. The lowest float64 overflows there, and rows without any key to attend to, which
      padding on the left has, are NaN.
    """

    nothing = "nothing"
    norms = "norms"
    latents = "latents"
    scores = "scores"
    softmax = "softmax"

    @property
    def tolerance(self) -> float:
        """The relative difference that two equal models in float64 may show."""
        return {Single.nothing: 1e-9, Single.latents: 1e-5}.get(self, 1e-6)


@dataclass(frozen=True)
class TinyModel:
    """One configuration of one family: 2 layers, 4 heads, width 32.

    Attributes:
        model_type: As in `config.json`.
        variant: What is unusual about it; empty for the family's usual form.
        config: Arguments of the configuration class.
        base: Class name of the model without head.
        head: Class name of a model with one.
        causal: Whether later positions are masked.
        single: What transformers computes in float32.
        eager: The class has no other attention than transformers' own, whose softmax may be float32 elsewhere.
        scale: Size of the random weights.
        certified: What is otherwise where it is certified (`but`).
    """

    model_type: str
    variant: str
    config: dict[str, Any]
    base: str
    head: str
    causal: bool = False
    single: Single = Single.nothing
    eager: bool = False
    scale: float = _SCALE
    certified: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        return f"{self.model_type}-{self.variant}" if self.variant else self.model_type

    def but(self, change: Mapping[str, Any], variant: str = "") -> TinyModel:
        """The same model with some entries of the configuration changed; those of these names are facts of its own."""
        facts = {name: value for name, value in change.items() if name in ("base", "head", "causal")}
        entries = {name: value for name, value in change.items() if name not in facts}
        return replace(self, variant=variant or self.variant, config={**self.config, **entries}, **facts)

    def allowed(self, condition: float) -> float:
        """The relative difference that two models in float64 may show which maps of this condition number connect."""
        return self.single.tolerance * (max(1.0, condition / 10) if self.single is Single.scores else 1.0)

    @property
    def attention(self) -> str:
        """The implementation of attention to load it with: the softmax of "eager" is float32 in many families."""
        return "eager" if self.eager else "sdpa"

    def architecture(self, *, base: bool = False) -> Any:
        """The class of the model, with its head or without."""
        import transformers

        from isobasin import models

        name = self.base if base else self.head
        return getattr(transformers, name, None) or getattr(models, name)

    def build(self, seed: int = 0, *, base: bool = False, dtype: torch.dtype = torch.float64) -> Any:
        """A model in evaluation mode with every parameter random: the initialisers would set biases to zero."""
        kind = self.architecture(base=base)
        # No other experts know float64.
        how = {"attn_implementation": self.attention, "experts_implementation": "eager"}
        return randomise(kind(kind.config_class(**self.config, **how)).double().eval(), seed, self.scale).to(dtype)

    def save(
        self, folder: Path, seed: int = 0, *, base: bool = False, dtype: torch.dtype = torch.float64, **options: Any
    ) -> Path:
        """Save such a model as a checkpoint, and return the folder; `options` go to `save_pretrained`."""
        self.build(seed, base=base, dtype=dtype).save_pretrained(folder, **options)
        return folder


def randomise(model: Any, seed: int, scale: float = _SCALE) -> Any:
    """Make every trainable parameter random, norm gains near 1, in place; the model itself is returned."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:  # a rotary table may be a frozen parameter
                gain = name == "weight" and "Norm" in type(module).__name__
                random = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data.copy_(scale * random + gain)
        for name, buffer in module.named_buffers(recurse=False):
            if name == "e_score_correction_bias":
                # No gradient trains it, so it is a buffer; far from 0 it would keep experts from ever being chosen.
                buffer.copy_(scale / 2 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    return model
