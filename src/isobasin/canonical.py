"""A checkpoint's tensors under canonical names, of any architecture, whatever tool wrote the files."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

from isobasin.architectures.configuration import Config, known
from isobasin.architectures.description import Description
from isobasin.architectures.view import View
from isobasin.checkpoints import Checkpoint, calling, resolve, temporary_folder
from isobasin.checkpoints.tokens import Tokens, read_tokens
from isobasin.errors import ArchitectureError, TensorError, about
from isobasin.loading import quiet_transformers, untied

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Source = Union[str, "os.PathLike[str]", "PreTrainedModel"]


@dataclass(frozen=True, eq=False)
class Canonical:
    """The tensors of a checkpoint under canonical names, of any architecture.

    Attributes:
        name: What the user called it.
        checkpoint: The files.
        description: What they say before a value is read.
        view: Which tensor each stored one is.
    """

    name: str
    checkpoint: Checkpoint
    description: Description
    view: View

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint) -> Canonical:
        """The canonical view of an open checkpoint of any architecture; tensors that may be tied are compared.

        Raises:
            TensorError: A tensor is there twice under several names.
        """

        def equal(one: str, other: str) -> bool:
            return torch.equal(*checkpoint.read([one, other]).values())

        description = Description(checkpoint.config, checkpoint.shapes)
        try:
            return cls(name, checkpoint, description, View.of(description, equal))
        except TensorError as error:
            raise TensorError(f"{name}: {error}") from error

    def untied(self) -> Canonical:
        """The same function with tied tensors apart, in a view of the files; this one if none are tied.

        Raises:
            ArchitectureError: transformers has no such model of this type.
        """
        with about(self.name):
            checkpoint = untied(self.checkpoint, self.description, self.view)
        return self if checkpoint is self.checkpoint else Canonical.of(self.name, checkpoint)

    @property
    def configuration(self) -> Config | None:
        """The configuration as transformers builds it; None if it doesn't know the model type."""
        return self.description.config if known(self.description.model_type) else None

    @cached_property
    def tokens(self) -> Tokens | None:
        """The tokens of the folder's tokenizer files, which may be long; None if it has none."""
        return read_tokens(self.checkpoint.folder)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor that the function depends on."""
        return {name: self.checkpoint.tensors[stored].shape for name, stored in self.view.tensors.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names, tied ones under any of theirs."""
        stored = {name: self.view.stored(name) for name in names}
        found = self.checkpoint.read(dict.fromkeys(stored.values()))
        return {name: found[there] for name, there in stored.items()}

    def written(self, pieces: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """New values by canonical names under those of the files, once more for every copy."""
        return self.view.written({self.view.stored(name): x for name, x in piece.items()} for piece in pieces)


@contextmanager
def open_canonical(source: Source, *, allow_pickle: bool = False, untie: bool = False) -> Generator[Canonical]:
    """The tensors of what `open_model` opens, whatever its architecture."""
    with open_checkpoint(source, allow_pickle=allow_pickle) as checkpoint:
        found = Canonical.of(name_of(source), checkpoint)
        yield found.untied() if untie else found


def evened(ends: Sequence[Canonical]) -> list[Canonical]:
    """The same functions, none of them tied where another isn't: untied, if that can be, where another one is."""
    stored, found = {name for end in ends for name in end.view.tensors}, list(ends)
    for index, end in enumerate(ends):
        if any(name in stored and end.view.find(name) for name in end.view.ties):
            with suppress(ArchitectureError):  # of families that are always tied
                found[index] = end.untied()
    return found


def name_of(source: Source) -> str:
    """What to call a source in messages."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"{type(source).__name__} in memory"


@contextmanager
def open_checkpoint(source: Source, *, allow_pickle: bool = False) -> Generator[Checkpoint]:
    """The files of what `open_model` opens, whatever its architecture."""
    if isinstance(source, (str, os.PathLike)):
        yield Checkpoint.open(resolve(source, allow_pickle=allow_pickle), allow_pickle=allow_pickle)
        return
    with temporary_folder() as folder:
        with quiet_transformers():
            source.save_pretrained(folder)
        with calling(folder, name_of(source)):
            yield Checkpoint.open(folder)
