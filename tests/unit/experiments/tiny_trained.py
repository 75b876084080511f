"""Tiny settings of every kind of model, and random examples for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isobasin.experiments.models import new_model
from isobasin.experiments.settings import ModelSettings

_TOKENS = {"vocab_size": 20, "length": 10, "pad_token_id": 0}
FACTS: dict[str, dict[str, Any]] = {
    "image-classification": {"num_labels": 3, "image_size": 8, "channels": 1},
    "text-classification": {"num_labels": 3, **_TOKENS},
    "causal-lm": _TOKENS,
    "masked-lm": _TOKENS,
}
# The class that each must be.
KINDS = {
    ("vit", "absolute", "image-classification"): "ViTForImageClassification",
    ("vit", "rotary", "image-classification"): "IsobasinViTForImageClassification",
    ("bert", "absolute", "text-classification"): "BertForSequenceClassification",
    ("bert", "absolute", "masked-lm"): "BertForMaskedLM",
    ("bert", "rotary", "text-classification"): "RoFormerForSequenceClassification",
    ("bert", "rotary", "masked-lm"): "RoFormerForMaskedLM",
    ("gpt2", "absolute", "causal-lm"): "GPT2LMHeadModel",
    ("gpt2", "rotary", "causal-lm"): "GPTNeoXForCausalLM",
    ("llama", "rotary", "causal-lm"): "LlamaForCausalLM",
}


def settings(family: str, positions: str = "absolute", **changes: Any) -> ModelSettings:
    sizes = {"layers": 2, "width": 32, "heads": 4, "feedforward": 48, "patch": 2 if family == "vit" else None}
    return ModelSettings.model_validate({"family": family, "positions": positions, **sizes, **changes})


def build(family: str, positions: str, task: str, *, seed: int = 0, **changes: Any) -> Any:
    return new_model(settings(family, positions, **changes), task, seed=seed, **FACTS[task])


@dataclass(frozen=True)
class RandomExamples:
    """What training asks of examples."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def fetch(self, indices: Any) -> dict[str, Tensor]:
        rows = torch.as_tensor(list(indices))
        return {name: values[rows] for name, values in self.tensors.items()}


def examples(task: str, count: int = 23) -> RandomExamples:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    if task == "image-classification":
        return RandomExamples({"pixel_values": torch.randn(count, 1, 8, 8, generator=generator), "labels": labels})
    tokens = torch.randint(3, 20, (count, 10), generator=generator)
    return RandomExamples({"input_ids": tokens, "labels": labels if task == "text-classification" else tokens.clone()})
