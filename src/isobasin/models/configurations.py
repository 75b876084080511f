"""Configurations of our own classes: those of their families, and what differs per layer."""

from __future__ import annotations

from typing import Any

from transformers import BertConfig, GPT2Config, ViTConfig

from isobasin.models.attention import NAME, Form


class Regrouped:
    """Mixed into a configuration: attention layers may have other numbers of heads.

    Whatever attention implementation is asked for, it is ours: with another one the same tensors would be another
    function, and nothing would tell.
    """

    @property
    def _attn_implementation(self) -> str:
        return NAME

    @_attn_implementation.setter
    def _attn_implementation(self, value: Any) -> None:
        pass

    def __post_init__(self, **options: Any) -> None:
        super().__post_init__(**options)  # pyright: ignore[reportAttributeAccessIssue]
        self.forms()

    def forms(self) -> list[Form]:
        """The form of every layer.

        Raises:
            ValueError: Heads don't share the width, rotate in pairs, or are given for another number of layers.
        """
        config: Any = self
        layers, width, usual = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
        heads: list[int] = [usual] * layers if config.heads_per_layer is None else config.heads_per_layer
        rotary: bool = getattr(config, "rotary", False)
        if len(heads) != layers:
            raise ValueError(f"heads_per_layer has {len(heads)} entries for {layers} layers: give one for each")
        for number in heads:
            if number < 1 or width % number:
                raise ValueError(f"{number} heads can't share the width {width}: it must be a multiple of them")
            if rotary and (width // number) % 2:
                raise ValueError(f"{number} heads of {width // number} features can't rotate: the width must be even")
        scaled: bool = getattr(config, "scale_attn_weights", True)
        theta: float | None = config.rope_theta if rotary else None
        return [Form(number, (number / usual) ** 0.5 if scaled else 1.0, theta) for number in heads]


class IsobasinViTConfig(Regrouped, ViTConfig):  # pyright: ignore[reportIncompatibleVariableOverride]
    """ViT with rotary positions, or with its own number of heads in some layers.

    Attributes:
        rotary: Queries and keys rotate by the place of their token, the class token first; there are no absolute
            positions then.
        rope_theta: Base of the frequencies.
        heads_per_layer: Heads of every layer; None for `num_attention_heads` everywhere.
    """

    model_type = "isobasin_vit"

    rotary: bool = False
    rope_theta: float = 10_000.0
    heads_per_layer: list[int] | None = None


class IsobasinBertConfig(Regrouped, BertConfig):  # pyright: ignore[reportIncompatibleVariableOverride]
    """BERT with its own number of heads in some layers.

    Attributes:
        heads_per_layer: Heads of every layer; None for `num_attention_heads` everywhere.
    """

    model_type = "isobasin_bert"

    heads_per_layer: list[int] | None = None


class IsobasinGPT2Config(Regrouped, GPT2Config):  # pyright: ignore[reportIncompatibleVariableOverride]
    """GPT-2 with its own number of heads in some layers.

    Attributes:
        heads_per_layer: Heads of every layer; None for `num_attention_heads` everywhere.
    """

    model_type = "isobasin_gpt2"

    heads_per_layer: list[int] | None = None
