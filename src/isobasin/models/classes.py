"""Our own model classes: those of transformers, whose attention layers are told their form."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    GPT2Model,
    ViTForImageClassification,
    ViTModel,
)

from isobasin.models.attention import give_forms
from isobasin.models.configurations import IsobasinBertConfig, IsobasinGPT2Config, IsobasinViTConfig


def _without_positions(model: nn.Module, config: IsobasinViTConfig) -> None:
    """Make the positions of a rotary ViT zeros that no optimiser sees, under their usual name on disk."""
    for module in model.modules() if config.rotary else ():
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, nn.Parameter):
            del module.position_embeddings
            module.register_buffer("position_embeddings", torch.zeros_like(positions))


class IsobasinViTModel(ViTModel):
    """A ViT without head."""

    config_class = IsobasinViTConfig

    def __init__(self, config: IsobasinViTConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        give_forms(self, config.forms())
        _without_positions(self, config)


class IsobasinViTForImageClassification(ViTForImageClassification):
    """A ViT that classifies images."""

    config_class = IsobasinViTConfig

    def __init__(self, config: IsobasinViTConfig) -> None:
        super().__init__(config)
        give_forms(self, config.forms())
        _without_positions(self, config)


class IsobasinBertModel(BertModel):
    """A BERT without head."""

    config_class = IsobasinBertConfig

    def __init__(self, config: IsobasinBertConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        give_forms(self, config.forms())


class IsobasinBertForSequenceClassification(BertForSequenceClassification):
    """A BERT that classifies texts."""

    config_class = IsobasinBertConfig

    def __init__(self, config: IsobasinBertConfig) -> None:
        super().__init__(config)
        give_forms(self, config.forms())


class IsobasinBertForMaskedLM(BertForMaskedLM):
    """A BERT that fills in tokens."""

    config_class = IsobasinBertConfig

    def __init__(self, config: IsobasinBertConfig) -> None:
        super().__init__(config)
        give_forms(self, config.forms())


class IsobasinGPT2Model(GPT2Model):
    """A GPT-2 without head."""

    config_class = IsobasinGPT2Config

    def __init__(self, config: IsobasinGPT2Config) -> None:
        super().__init__(config)
        give_forms(self, config.forms())


class IsobasinGPT2LMHeadModel(GPT2LMHeadModel):
    """A GPT-2 that continues texts."""

    config_class = IsobasinGPT2Config

    def __init__(self, config: IsobasinGPT2Config) -> None:
        super().__init__(config)
        give_forms(self, config.forms())
