"""A checkpoint whose meaning is known: tensors on disk, seen as blocks a few layers at a time."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock, Block
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.resolve import check_comparable, check_feedforwards, check_stream, specification
from isobasin.architectures.schema import Specification
from isobasin.architectures.view import View
from isobasin.canonical import Canonical, Source, evened, open_canonical
from isobasin.checkpoints import Checkpoint, check_finite, reads_hidden_states
from isobasin.errors import ArchitectureError, TensorError
from isobasin.memory import carried
from isobasin.symmetries.along import Stream
from isobasin.symmetries.weights import AttentionWeights, stack

# Float64 weights held at once of each model, unless one layer alone is larger: small layers are matched together.
_BATCH_BYTES = 32 * 2**20


class Blocks(ABC):
    """Tensors whose meaning is known: the blocks of a model, wherever its tensors are.

    Attributes:
        name: What the user called it.
        specification: What the tensors mean.
    """

    name: str
    specification: Specification

    @property
    def untied(self) -> bool:
        """Whether tensors that are tied in the files are apart here."""
        return False

    @abstractmethod
    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The stored tensors of these names."""

    @abstractmethod
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The stored type of every tensor."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""

    @abstractmethod
    def feedforwards(self) -> tuple[FeedForward, ...]:
        """The feed-forward blocks, refused where their tensors are not what the specification says.

        Raises:
            ArchitectureError: None are known.
            TensorError: A tensor is missing, misshapen or unexplained.
        """

    @abstractmethod
    def stream(self, *, keep_gains: bool = False) -> Stream:
        """The residual stream; with `keep_gains`, no normalisation is folded into its readers.

        Raises:
            ArchitectureError: Nothing is known of it, or it is an output of the model.
            TensorError: A tensor has no known part in it.
        """

    def blocks(self, *, feedforward: bool = True) -> tuple[AttentionBlock | FeedForward, ...]:
        """The attention blocks, and after them the feed-forward blocks."""
        return (*self.specification.attention, *(self.feedforwards() if feedforward else ()))

    def stored(self, block: Block) -> dict[str, Tensor]:
        """The stored tensors of one block; quantised ones and values that are not finite are refused."""
        return self.checked(block.shapes())

    def checked(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The stored tensors of these names, likewise."""
        tensors = self.read(names)
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise TensorError(f"{self.name}: tensor {name!r} is {kind}: dequantise the model first")
        check_finite(tensors, self.name)
        return tensors

    def double(self, names: Iterable[str], device: str = "cpu") -> dict[str, Tensor]:
        """The same in float64 on a device."""
        return {name: carried(tensor, device, torch.float64) for name, tensor in self.checked(names).items()}

    def dtype(self, *, feedforward: bool = False) -> torch.dtype:
        """The coarsest type that a tensor of attention, or of feed-forward blocks as well, is stored in."""
        if feedforward not in self._coarsest:
            dtypes = self.dtypes()
            found = {dtypes[name] for block in self.blocks(feedforward=feedforward) for name in block.shapes()}
            kinds = (kind for kind in found if kind.is_floating_point)
            self._coarsest[feedforward] = max(kinds, key=lambda k: torch.finfo(k).eps, default=torch.float32)
        return self._coarsest[feedforward]

    @cached_property
    def _coarsest(self) -> dict[bool, torch.dtype]:
        """What `dtype` found: it is asked for every block, and all blocks are looked through for it."""
        return {}


@dataclass(frozen=True, eq=False)
class Revalued(Blocks):
    """A model whose tensors have other values here, under the same names and with the same meaning.

    Attributes:
        model: The model as it is.
    """

    model: Blocks

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the user called the model."""
        return self.model.name

    @property
    def specification(self) -> Specification:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the tensors mean: the same as before."""
        return self.model.specification

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The stored type of every tensor of the model."""
        return self.model.dtypes()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the model."""
        return self.model.shape(name)

    def feedforwards(self) -> tuple[FeedForward, ...]:
        """The feed-forward blocks of the model."""
        return self.model.feedforwards()

    def stream(self, *, keep_gains: bool = False) -> Stream:
        """The residual stream of the model."""
        return self.model.stream(keep_gains=keep_gains)


@dataclass(frozen=True, eq=False)
class Model(Blocks):
    """A checkpoint folder and its architecture, each part of which is looked for once.

    Attributes:
        name: What the user called it.
        specification: What its tensors mean.
        canonical: Its tensors under canonical names.
    """

    name: str
    specification: Specification
    canonical: Canonical

    @classmethod
    def of(cls, canonical: Canonical) -> Model:
        """The model that an open checkpoint is.

        Raises:
            ArchitectureError: Its architecture is not supported.
            TensorError: An attention tensor is missing, misshapen or unexplained.
        """
        name = canonical.name
        return cls(name, specification(canonical.description, source=name, view=canonical.view), canonical)

    @property
    def checkpoint(self) -> Checkpoint:
        """The files."""
        return self.canonical.checkpoint

    @property
    def untied(self) -> bool:
        """Whether tensors that are tied in the files are apart here."""
        return self.checkpoint.original is not None

    @property
    def original(self) -> Model:
        """What is in the files: the tied model where tensors are apart here."""
        stored = self.checkpoint.original
        return self if stored is None else Model.of(Canonical.of(self.name, stored))

    @property
    def view(self) -> View:
        """Which tensor each stored one is."""
        return self.canonical.view

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names, from the files."""
        return self.checkpoint.read(names)

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The stored type of every tensor that the function depends on."""
        return {name: self.checkpoint.tensors[name].dtype for name in self.view.tensors.values()}

    def feedforwards(self) -> tuple[FeedForward, ...]:
        """The feed-forward blocks, checked against the checkpoint's header."""
        return self._feedforwards

    @cached_property
    def _feedforwards(self) -> tuple[FeedForward, ...]:
        description = self.canonical.description
        return check_feedforwards(self.specification, description, source=self.name, view=self.view)

    def stream(self, *, keep_gains: bool = False) -> Stream:
        """The residual stream, with every tensor in the checkpoint's header accounted for."""
        if keep_gains not in self._streams:
            description = self.canonical.description
            if reads_hidden_states(self.checkpoint.folder):
                why = "sentence-transformers reads its hidden states (modules.json), so their basis can't move"
                raise ArchitectureError(f"{self.name}: {why}: use --scope block")
            if description.family.stream is not None:
                self.feedforwards()
            found = check_stream(description, source=self.name, view=self.view, keep_gains=keep_gains)
            self._streams[keep_gains] = found
        return self._streams[keep_gains]

    @cached_property
    def _streams(self) -> dict[bool, Stream]:
        return {}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header."""
        return self.checkpoint.tensors[name].shape

    def parameters(self) -> int:
        """Number of stored values of the whole checkpoint."""
        return sum(prod(info.shape) for info in self.checkpoint.tensors.values())


@contextmanager
def open_model(
    source: Source, *, allow_pickle: bool = False, untie: bool = False, headers: bool = False
) -> Generator[Model]:
    """Open a local folder, a hub id, or a transformers model in memory.

    A model in memory is saved to a temporary folder first: the names that `save_pretrained` writes are the stable
    ones, those of its modules change between versions of transformers.

    Args:
        source: What to open.
        allow_pickle: Load pickled weights, with `weights_only`.
        untie: Take tied tensors apart, see `Canonical.untied`.
        headers: Of a model on the hub no values are fetched before some are read.

    Raises:
        CheckpointError: It can't be found or read.
        ArchitectureError: Its architecture is not supported, or can't be untied.
    """
    with open_canonical(source, allow_pickle=allow_pickle, untie=untie, headers=headers) as canonical:
        yield Model.of(canonical)


@contextmanager
def open_pair(
    a: Source,
    b: Source,
    *,
    feedforward: bool = False,
    allow_pickle: bool = False,
    untie: bool = False,
    even: bool = False,
    alike: bool = True,
) -> Generator[tuple[Model, Model]]:
    """Open two models whose attention blocks, and with `feedforward` all blocks, are of the same kinds.

    With `untie` tied tensors of either are taken apart (`Canonical.untied`), with `even` where they are in the other.
    Without `alike` nothing is said of their blocks.

    Raises:
        CheckpointError: One can't be found or read.
        ArchitectureError: The architecture of one is not supported, or they are no pair.
    """
    how = {"allow_pickle": allow_pickle, "untie": untie}
    with open_canonical(a, **how) as first, open_canonical(b, **how) as second:
        one, other = map(Model.of, evened((first, second)) if even else (first, second))
        if alike:
            check_comparable(one.specification, other.specification, feedforward=feedforward)
        yield one, other


def opened(name: str, folder: str | os.PathLike[str], *, allow_pickle: bool = False) -> Model:
    """The model in a folder of our own, such as one that is being written."""
    return Model.of(Canonical.of(name, Checkpoint.open(folder, allow_pickle=allow_pickle)))


def batches(blocks: Sequence[AttentionBlock], limit: int = _BATCH_BYTES) -> Iterator[list[int]]:
    """Indices of consecutive blocks that are alike and that fit in `limit` bytes of float64 together."""
    batch: list[int] = []
    for index, block in enumerate(blocks):
        size = 8 * sum(prod(shape) for shape in block.shapes().values())
        if batch and (not _alike(block, blocks[batch[0]]) or (len(batch) + 1) * size > limit):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _alike(one: AttentionBlock, other: AttentionBlock) -> bool:
    ours, theirs = ((block.group, block.width, block.biases, block.others.keys()) for block in (one, other))
    return ours == theirs


def read_blocks(model: Blocks, indices: Sequence[int], device: str = "cpu") -> AttentionWeights:
    """The weights of some alike blocks in float64, stacked along a leading dimension."""
    blocks = [model.specification.attention[index] for index in indices]
    return stacked(blocks, map(model.stored, blocks), device)


def stacked(
    blocks: Iterable[AttentionBlock], stored: Iterable[Mapping[str, Tensor]], device: str = "cpu"
) -> AttentionWeights:
    """The same, of tensors that are at hand."""
    return stack([block.read(tensors, device) for block, tensors in zip(blocks, stored, strict=True)])
