"""The inputs before they are damaged: tiny checkpoints of several families and forms, and all else that is read."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from isobasin.architectures.examples import variant

ADAPTER = "adapter_config.json"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUV \n"


@dataclass(frozen=True)
class Subject:
    """A kind of checkpoint.

    Attributes:
        model: Name of one of `EXAMPLES`.
        dtype: In which it is stored.
        shard: Largest size of a shard, as `save_pretrained` reads it; None for one file.
        data: What its examples are: "text", "images", or nothing that a loss is known of.
    """

    model: str
    dtype: torch.dtype = torch.float32
    shard: str | None = None
    data: str | None = "text"

    @property
    def name(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.model}-{kind}" + ("-sharded" if self.shard else "")

    @property
    def architecture(self) -> Any:
        """The class that it was saved by: what checks functions independently of the program."""
        import transformers

        return getattr(transformers, variant(self.model).head)


SUBJECTS = (
    Subject("gpt2"),
    Subject("gpt2", torch.bfloat16, "20KB"),
    Subject("llama", torch.float32, "20KB"),
    Subject("llama", torch.bfloat16),
    Subject("qwen3"),
    Subject("bert", data=None),
    Subject("t5", data=None),
    Subject("mixtral"),
    Subject("vit", data="images"),
    Subject("gpt_neox", torch.float32, "20KB"),
    Subject("opt"),
    Subject("deepseek_v3", data=None),
    Subject("swin", data=None),
    Subject("clip", data=None),
    Subject("gemma2", torch.bfloat16, data=None),
    Subject("stablelm-qk-norm", data=None),
)

# Everything beside checkpoints, by the name under which commands ask for it.
CONFIGURATION = """\
title: fuzz
models:
  small: {family: vit, layers: 2, width: 16, heads: 2, feedforward: 16, patch: 4}
data:
  digits: {source: digits, task: image-classification, max_train: 40, max_test: 20}
training:
  quick: {steps: 1, batch: 8, rate: 1.0e-3}
settings:
  - {model: small, data: digits, pretrain: quick, finetune: quick}
scopes: [first-attention]
seeds: [1, 2]
methods: [none]
points: 3
"""


def make(subject: Subject, folder: Path) -> None:
    """Write two checkpoints of a subject, `folder/a` and `folder/b`."""
    options = {"max_shard_size": subject.shard} if subject.shard else {}
    for seed, name in enumerate("ab"):
        variant(subject.model).save(folder / name, seed, dtype=subject.dtype, **options)
        if subject.data == "images":
            processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
            (folder / name / "preprocessor_config.json").write_text(json.dumps(processor))


def make_adapter(subject: Subject, folder: Path) -> None:
    """Write an adapter of `folder/b` as peft does, `folder/adapter`, for the first matrices of its attention."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted((folder / "b").glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    chosen = [name for name, shape in sorted(shapes.items()) if "att" in name and len(shape) == 2][:3]
    noise, turned = torch.Generator().manual_seed(2), subject.model == "gpt2"
    factors: dict[str, torch.Tensor] = {}
    for name in chosen:
        inputs, outputs = shapes[name] if turned else reversed(shapes[name])
        for which, shape in (("A", (2, inputs)), ("B", (outputs, 2))):
            key = f"base_model.model.{name.removesuffix('.weight')}.lora_{which}.weight"
            factors[key] = 0.1 * torch.randn(shape, generator=noise)
    (folder / "adapter").mkdir()
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none"}
    config |= {"target_modules": [name.removesuffix(".weight") for name in chosen], "init_lora_weights": True}
    (folder / "adapter" / ADAPTER).write_text(json.dumps({**config, "fan_in_fan_out": turned}))


def join(adapter: Path, base: Path) -> None:
    """Let an adapter name its base, which every case has elsewhere."""
    path = adapter / ADAPTER
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))


def make_other(folder: Path) -> None:
    """Write texts, tables, images and a configuration of an experiment."""
    from PIL import Image

    draw = random.Random(0)
    folder.mkdir(parents=True)
    text = "".join(draw.choices(LETTERS, k=400))
    (folder / "text.txt").write_text(text)
    (folder / "characters.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    rows = [{"text": "".join(draw.choices(LETTERS[:-1], k=20)), "label": i % 2} for i in range(8)]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "table.csv").write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows))
    noise = numpy.random.default_rng(0)
    images = noise.integers(0, 256, (8, 8, 8, 3), dtype=numpy.uint8)
    numpy.savez(folder / "arrays.npz", image=images, label=numpy.arange(8) % 2)
    for number, image in enumerate(images):
        where = folder / "pictures" / str(number % 2)
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(where / f"{number}.png")
    (folder / "study.yaml").write_text(CONFIGURATION)
