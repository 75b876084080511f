"""Examples that models can be given, in memory or read when they are wanted."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isobasin.choices import TaskKind
from isobasin.tasks.options import DataFacts, DataOptions

if TYPE_CHECKING:
    from datasets import Dataset

    from isobasin.tasks.processors import Processor

Indices = Sequence[int] | Tensor

IN_MEMORY = 1_000_000_000
"""Bytes of prepared examples that are still kept in memory."""

IGNORED = -100
"""The label of a token that isn't predicted, as in transformers."""


class Examples(ABC):
    """Prepared examples; also a map-style data set for torch's `DataLoader`.

    Attributes:
        kind: The task.
        facts: What is known of them.
    """

    kind: TaskKind
    facts: DataFacts

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def fetch(self, indices: Indices) -> dict[str, Tensor]:
        """The model's inputs for some examples, "labels" included, on the CPU, one row for each index."""

    @abstractmethod
    def subset(self, indices: Indices) -> Examples:
        """Some of the examples, in that order."""

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All examples in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.fetch(range(start, min(start + size, len(self))))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several examples, as torch's `DataLoader` asks for them."""
        batch = self.fetch(indices)
        return [{name: values[row] for name, values in batch.items()} for row in range(len(indices))]


@dataclass(frozen=True, eq=False)
class TensorExamples(Examples):
    """Examples in memory, each tensor with one row for each.

    Attributes:
        kind: The task.
        facts: What is known of them.
        tensors: By input name; integers may be stored in a small type.
    """

    kind: TaskKind
    facts: DataFacts
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: DataFacts) -> TensorExamples:
        """Examples of these tensors; how many they are, and their digest, are added to what is known of them."""
        return cls(TaskKind(facts.task), refacts(facts, len(tensors["labels"]), digest(tensors)), tensors)

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def fetch(self, indices: Indices) -> dict[str, Tensor]:
        """Columns that are padding in the whole batch are left out."""
        rows = as_index(indices)
        found = {name: values[rows] for name, values in self.tensors.items()}
        batch = {name: x if x.is_floating_point() else x.long() for name, x in found.items()}
        if "attention_mask" in batch:
            used = batch["attention_mask"].any(0).nonzero().flatten().tolist() or [0]
            first, last = used[0], used[-1] + 1
            batch = {name: v[:, first:last] if v.dim() > 1 else v for name, v in batch.items()}
        return batch

    def subset(self, indices: Indices) -> TensorExamples:
        """Some of the examples; their facts are made anew."""
        rows = as_index(indices)
        return self.of({name: values[rows] for name, values in self.tensors.items()}, self.facts)


def as_index(indices: Indices) -> Tensor:
    """Indices as a tensor."""
    return torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices), dtype=torch.int64)


def facts_of(
    dataset: Dataset, processor: Processor, options: DataOptions, kind: TaskKind, notes: Sequence[str], **more: Any
) -> DataFacts:
    """What is known of examples before they are made; notes of how their rows were read come first."""
    split = options.split or (str(dataset.split) if dataset.split else None)
    said = (note for note in (dataset.info.description or "").splitlines() if note)
    return DataFacts(options.source, split, str(kind), 0, "", (*said, *processor.notes, *notes), **more)


def refacts(facts: DataFacts, count: int, sha256: str) -> DataFacts:
    """The facts of so many examples."""
    return replace(facts, examples=count, sha256=sha256)


def digest(tensors: Mapping[str, Tensor], *more: Any) -> str:
    """SHA-256 of named tensors and of further values by what they print."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.view(-1).view(torch.uint8).numpy().data)
    found.update(repr(more).encode())
    return found.hexdigest()


def chosen(count: int, limit: int | None, seed: int) -> Tensor | None:
    """At most `limit` of `count` indices, drawn at random and sorted; None for all."""
    if limit is None or limit >= count:
        return None
    return divided(count, limit, seed)[0]


def divided(count: int, first: int, seed: int) -> tuple[Tensor, Tensor]:
    """`first` of `count` indices, drawn at random, and all others; both sorted."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:first].sort().values, order[first:].sort().values
