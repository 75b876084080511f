"""Models to measure: two that compute the same in other weights, a third, and data that the first is sure about."""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from isobasin.tasks.data import DataOptions, Examples, prepare, read_dataset
from isobasin.tasks.processors import load_processor


@dataclass(frozen=True)
class Models:
    """Folders of ViTs: `a`, `b` (a scrambled), `c` (another one), and a file of images that `a` labelled."""

    a: Path
    b: Path
    c: Path
    data: Path

    def examples(self, count: int | None = None) -> Examples:
        """The images as the models see them."""
        options = DataOptions(str(self.data), split="test", max_examples=count)
        rows = read_dataset(options, "image-classification")
        processor = load_processor(self.a, "image-classification")
        config = transformers.AutoConfig.from_pretrained(self.a)
        return prepare(rows, "image-classification", processor, options, config=config)


def tiny_vit(folder: Path, seed: int, heads: int = 4) -> Path:
    """A random ViT whose attention has a say."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": heads, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    generator = torch.Generator().manual_seed(seed)
    model = transformers.ViTForImageClassification(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder
