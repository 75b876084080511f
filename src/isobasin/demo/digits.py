"""The demo's data and models: scikit-learn's digits, and small ViTs trained on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobasin.demo.recipe import EXTRA, Recipe
from isobasin.errors import DependencyError


@dataclass(frozen=True, eq=False)
class Images:
    """Images `(n, 1, 8, 8)` in [-1, 1] with their labels `(n,)`."""

    pixels: Tensor
    labels: Tensor


def load_digits(seed: int) -> tuple[Images, Images]:
    """Training and test images, 70 and 30 %, every digit in the same proportion.

    Raises:
        DependencyError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits as bundled
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DependencyError(f"the demo needs scikit-learn: {EXTRA}") from error
    data: Any = bundled()
    pixels = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target)
    split: Any = train_test_split(range(len(labels)), test_size=0.3, random_state=seed, stratify=data.target)
    train, test = (Images(pixels[part], labels[part]) for part in split)
    return train, test


def new_model(seed: int) -> Any:
    """An untrained ViT for 8 x 8 images."""
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "num_labels": 10,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config = transformers.ViTConfig(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.ViTForImageClassification(config)


def with_new_attention(base: Any, seed: int) -> tuple[Any, list[nn.Parameter]]:
    """A copy of the base with its first attention layer drawn anew, and that layer's parameters; the rest is frozen."""
    model = copy.deepcopy(base).requires_grad_(False)
    # By class: what the modules are called differs between versions of transformers.
    layer = next(module for module in model.modules() if type(module).__name__ == "ViTAttention").requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=model.config.initializer_range, generator=generator)
            nn.init.zeros_(module.bias)
    return model, list(layer.parameters())


def train(
    model: Any,
    parameters: Iterable[nn.Parameter],
    images: Images,
    *,
    steps: int,
    rate: float,
    recipe: Recipe,
    seed: int,
    advance: Callable[[], None],
) -> None:
    """Minimise the cross-entropy over some of a model's parameters; `advance` is called after every step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(list(parameters), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.empty(0, dtype=torch.int64)
    model.train()
    for _ in range(steps):
        if len(order) < recipe.batch:
            order = torch.randperm(len(images.labels), generator=generator)
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        loss = functional.cross_entropy(model(pixel_values=images.pixels[chosen]).logits, images.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        advance()
    model.eval()


@torch.no_grad()
def evaluate(model: Any, images: Images) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    logits: Tensor = model(pixel_values=images.pixels).logits
    right = (logits.argmax(-1) == images.labels).float().mean()
    return functional.cross_entropy(logits, images.labels).item(), right.item()
