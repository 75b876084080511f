"""Tiny models of our own classes, in float64 and random all over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isobasin import models
from isobasin.architectures.tiny import randomise

_SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
_TEXT = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_VIT = {**_SIZES, "image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 5}
_BERT = {**_SIZES, **_TEXT, "max_position_embeddings": 16}
_GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 16, **_TEXT}


@dataclass(frozen=True)
class Own:
    """One of our classes with a configuration; `plain` is the class of transformers, `auto` its Auto class."""

    name: str
    own: str
    plain: str
    auto: str
    config: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def rotary(self) -> bool:
        return self.config.get("rotary", False)

    def build(self, seed: int = 0, **changes: Any) -> Any:
        model_class = getattr(models, self.own)
        model = model_class(model_class.config_class(**{**self.config, **changes}))
        return randomise(model.double().eval(), seed)

    def inputs(self, **more: Any) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        if "image_size" in self.config:
            return {"pixel_values": torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64), **more}
        return {"input_ids": torch.randint(3, 50, (2, 9), generator=generator), **more}


HEADS = [2, 4, 8]
_IMAGES = ("IsobasinViTForImageClassification", "ViTForImageClassification", "AutoModelForImageClassification")
_TEXTS = (
    "IsobasinBertForSequenceClassification",
    "BertForSequenceClassification",
    "AutoModelForSequenceClassification",
)
OWN = [
    Own("vit", *_IMAGES, {**_VIT, "heads_per_layer": HEADS}),
    Own("vit-rotary", *_IMAGES, {**_VIT, "rotary": True, "rope_theta": 100.0}),
    Own("vit-rotary-heads", *_IMAGES, {**_VIT, "rotary": True, "heads_per_layer": HEADS}),
    Own("vit-base", "IsobasinViTModel", "ViTModel", "AutoModel", {**_VIT, "heads_per_layer": HEADS}),
    Own("bert", *_TEXTS, {**_BERT, "heads_per_layer": HEADS}),
    Own(
        "bert-masked",
        "IsobasinBertForMaskedLM",
        "BertForMaskedLM",
        "AutoModelForMaskedLM",
        {**_BERT, "heads_per_layer": [8, 4, 4]},
    ),
    Own("bert-base", "IsobasinBertModel", "BertModel", "AutoModel", {**_BERT, "heads_per_layer": HEADS}),
    Own(
        "gpt2",
        "IsobasinGPT2LMHeadModel",
        "GPT2LMHeadModel",
        "AutoModelForCausalLM",
        {**_GPT2, "heads_per_layer": HEADS},
    ),
    Own("gpt2-base", "IsobasinGPT2Model", "GPT2Model", "AutoModel", {**_GPT2, "heads_per_layer": HEADS}),
]


def own(name: str) -> Own:
    """The entry of `OWN` of that name."""
    return next(entry for entry in OWN if entry.name == name)
