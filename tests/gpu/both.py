"""Models, examples, and what is done on the CPU and on a GPU, or on what stands for one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from isobasin.architectures.examples import tiny
from isobasin.beside import ALIGNMENT
from isobasin.choices import Scope, TaskKind
from isobasin.refinement.recipe import Refining
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts
from isobasin.testing.pretended import pretended_cuda

T = TypeVar("T")


def long(value: object) -> object:
    """A parameter that `make test` leaves out: one other of its kind is there."""
    return pytest.param(value, marks=pytest.mark.long)


REAL = torch.cuda.is_available()
TIED = tiny("gpt2", "tied-on-cuda")
UNTIED = tiny("llama", "untied-on-cuda", config={"tie_word_embeddings": False})
MASKED = tiny("bert", "on-cuda")
IMAGES = tiny("vit", "on-cuda")
SCOPES = [Scope.model, *map(long, (Scope.attention, Scope.block))]
SHORT = Refining(steps=4, batch_size=8, every=2, warmup=1)


def on_both(act: Callable[[str], T]) -> dict[str, T]:
    """What is done on the CPU and on the GPU."""
    found = {"cpu": act("cpu")}
    with nullcontext() if REAL else pretended_cuda():
        return found | {"cuda": act("cuda")}


def examples(kind: TaskKind = TaskKind.causal_lm) -> TensorExamples:
    facts = DataFacts("made up", None, str(kind), 32, "none")
    if kind is TaskKind.image_classification:
        pixels = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return TensorExamples(kind, facts, {"pixel_values": pixels, "labels": torch.arange(32) % 2})
    tokens = 3 + (torch.arange(32)[:, None] + torch.arange(12)) % 47
    return TensorExamples(
        kind, facts, {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
    )


KINDS = {
    str(TIED): TaskKind.causal_lm,
    str(UNTIED): TaskKind.causal_lm,
    str(MASKED): TaskKind.masked_lm,
    str(IMAGES): TaskKind.image_classification,
}


def tensors(folder: Path) -> dict[str, Tensor]:
    """Of all weights and alignments under a folder."""
    files = sorted([*folder.rglob("*.safetensors"), *folder.rglob(ALIGNMENT)])
    assert files
    return {f"{file.relative_to(folder)} {name}": x for file in files for name, x in load_file(file).items()}


def shape(found: object) -> object:
    """What is said but for the device, and for numbers, whose last digits differ."""
    if isinstance(found, dict):
        return {name: shape(x) for name, x in found.items() if name != "device"}
    if isinstance(found, (list, tuple)):
        return [shape(x) for x in found]
    return float if isinstance(found, float) else found


def same(cpu: Path, cuda: Path) -> None:
    """What was written on the one device is what was written on the other."""
    ours, theirs = tensors(cpu), tensors(cuda)
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        torch.testing.assert_close(
            theirs[name], x, rtol=1e-2, atol=5e-3 * (float(x.double().abs().max()) if x.numel() else 0)
        )
