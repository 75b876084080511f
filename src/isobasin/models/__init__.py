"""Model classes for what transformers has no class for: a ViT with rotary positions, and layers with other heads.

Importing this module makes them known to transformers' Auto classes. A checkpoint of one of them that is loaded
without it is refused, since its model type is unknown.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from isobasin.models import attention
from isobasin.models.classes import (
    IsobasinBertForMaskedLM,
    IsobasinBertForSequenceClassification,
    IsobasinBertModel,
    IsobasinGPT2LMHeadModel,
    IsobasinGPT2Model,
    IsobasinViTForImageClassification,
    IsobasinViTModel,
)
from isobasin.models.configurations import IsobasinBertConfig, IsobasinGPT2Config, IsobasinViTConfig

__all__ = [
    "IsobasinBertConfig",
    "IsobasinBertForMaskedLM",
    "IsobasinBertForSequenceClassification",
    "IsobasinBertModel",
    "IsobasinGPT2Config",
    "IsobasinGPT2LMHeadModel",
    "IsobasinGPT2Model",
    "IsobasinViTConfig",
    "IsobasinViTForImageClassification",
    "IsobasinViTModel",
    "ensure_registered",
]

_CLASSES = {
    IsobasinViTConfig: {
        AutoModel: IsobasinViTModel,
        AutoModelForImageClassification: IsobasinViTForImageClassification,
    },
    IsobasinBertConfig: {
        AutoModel: IsobasinBertModel,
        AutoModelForMaskedLM: IsobasinBertForMaskedLM,
        AutoModelForSequenceClassification: IsobasinBertForSequenceClassification,
    },
    IsobasinGPT2Config: {AutoModel: IsobasinGPT2Model, AutoModelForCausalLM: IsobasinGPT2LMHeadModel},
}


def ensure_registered() -> None:
    """Make our classes known to transformers; done once, on import."""
    attention.register()
    for config, heads in _CLASSES.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto, model in heads.items():
            auto.register(config, model, exist_ok=True)
    # Tensors have ViT's names on disk, which are others than in memory; None where transformers keeps one name.
    names: Any = get_checkpoint_conversion_mapping("ViTModel")
    if names is not None:
        register_checkpoint_conversion_mapping("isobasin_vit", names, overwrite=True)


ensure_registered()
