"""A checkpoint's tensors under canonical names, of any architecture, whatever tool wrote the files."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor

from isobasin.architectures.configuration import Config, known
from isobasin.architectures.description import Description
from isobasin.architectures.view import View, canonical_names
from isobasin.checkpoints import (
    Adapter,
    Checkpoint,
    calling,
    described,
    headers_on_hub,
    resolve,
    temporary_folder,
    write_checkpoint,
)
from isobasin.checkpoints.kinds import ADAPTER
from isobasin.checkpoints.tokens import Tokens, read_tokens
from isobasin.errors import ArchitectureError, CheckpointError, TensorError, about, refusing, warn
from isobasin.loading import quiet_transformers, untied
from isobasin.reads import reading

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
        with about(self.name):
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

    def targets(self, adapter: Adapter) -> dict[str, str]:
        """The stored tensors that an adapter adds to, with the module of each.

        Raises:
            TensorError: There is none for a module, or one for two.
        """
        found: dict[str, str] = {}
        canonical = canonical_names(self.description)
        for module in adapter.factors:
            # The path in memory has what comes before the family's own names, and may have newer ones than the file.
            parts = f"{module}.weight".split(".")
            ends = (".".join(parts[first:]) for first in range(len(parts) - 1))
            there = (self.view.find(own) for end in ends for own in (end, canonical(end)))
            stored = next((name for name in there if name is not None), None)
            if stored is None or stored in found:
                why = "has no such weight" if stored is None else f"ties it to that of {found[stored]!r}"
                raise TensorError(f"{adapter.folder}: adds to {module!r}, and {self.name} {why}: give its own base")
            if module in adapter.copies and not torch.equal(
                adapter.copies[module], self.checkpoint.read([stored])[stored]
            ):
                raise TensorError(
                    f"{adapter.folder}: has a {module!r} of its own, and not its base's: merge the two first"
                )
            found[stored] = module
        return found

    def written(self, pieces: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """New values by canonical names under those of the files, once more for every copy."""
        return self.view.written({self.view.stored(name): x for name, x in piece.items()} for piece in pieces)


@contextmanager
def open_canonical(
    source: Source, *, allow_pickle: bool = False, untie: bool = False, headers: bool = False
) -> Generator[Canonical]:
    """The tensors of what `open_model` opens, whatever its architecture."""
    with open_checkpoint(source, allow_pickle=allow_pickle, headers=headers) as checkpoint:
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
def open_checkpoint(source: Source, *, allow_pickle: bool = False, headers: bool = False) -> Generator[Checkpoint]:
    """The files of what `open_model` opens, whatever its architecture.

    Tensors that are made while they are open are on the CPU unless it is said where, whatever torch's default is.
    """
    cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    with cpu, _files_of(source, allow_pickle=allow_pickle, headers=headers) as checkpoint:
        yield checkpoint


@contextmanager
def _files_of(source: Source, *, allow_pickle: bool, headers: bool) -> Generator[Checkpoint]:
    """`open_checkpoint`, on whatever device is the default."""
    if isinstance(source, (str, os.PathLike)):
        with headers_on_hub(source) if headers else nullcontext() as checkpoint:
            if checkpoint is not None:
                yield checkpoint
                return
        folder = resolve(source, allow_pickle=allow_pickle)
        if not Adapter.there(folder):
            with reading(folder):
                yield Checkpoint.open(folder, allow_pickle=allow_pickle)
            return
        adapter = Adapter.open(folder)
        with (
            reading(folder),
            base_of(adapter, allow_pickle=allow_pickle) as base,
            merged(os.fspath(source), adapter, base) as checkpoint,
        ):
            yield checkpoint
        return
    with temporary_folder() as folder:
        _save(source, folder)
        with calling(folder, name_of(source)):
            yield Checkpoint.open(folder)


def _save(model: Any, folder: Path) -> None:
    """Save a model in memory.

    Raises:
        CheckpointError: It is no model of transformers, has no values, or hasn't its own weights alone.
    """
    name = name_of(model)
    if not hasattr(model, "save_pretrained") or not hasattr(model, "named_parameters"):
        inner = ": pass its .module" if hasattr(getattr(model, "module", None), "save_pretrained") else ""
        raise CheckpointError(
            f"{name}: neither a path, a hub id nor a transformers model{inner or ': pass one of those'}"
        )
    if getattr(model, "peft_config", None):
        advice = "pass what its merge_and_unload() returns, or save the adapter and pass that folder"
        raise CheckpointError(f"{name}: has an adapter that is no part of its weights: {advice}")
    bare = next((n for n, x in model.named_parameters() if x.is_meta), None)
    if bare is not None:
        raise CheckpointError(f"{name}: {bare!r} has no values (device meta): load them first")
    made = next((n for n, _ in model.named_parameters() if ".parametrizations." in n or n.endswith("_orig")), None)
    if made is not None:
        advice = "make that permanent first (remove_parametrizations, or prune.remove)"
        raise CheckpointError(f"{name}: of {made!r} a weight is made whenever it is used: {advice}")
    own = next((n or "it" for n, module in model.named_modules() if _has_code(module)), None)
    if own is not None:
        warn(f"{name}: {own!r} has a hook or a forward of its own, and weights and config.json are all that is read")
    said = f"{name}: save_pretrained fails"
    with (
        quiet_transformers(),
        refusing(CheckpointError, lambda reason: f"{said} ({reason}): make it one that can be saved"),
    ):
        model.save_pretrained(folder)


# Whose hooks and forwards compute what a model's files do: they only look, or place what is computed.
_LIBRARIES = ("transformers.", "accelerate.", "torch.")


def _has_code(module: Any) -> bool:
    """Whether something was put into a module of a model in memory that its class doesn't have."""
    found = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), vars(module).get("forward")]
    whose = (getattr(getattr(x, "func", x), "__module__", None) or "" for x in found if x is not None)
    return not all(name.startswith(_LIBRARIES) for name in whose)


def adapter_in(source: Source) -> Adapter | None:
    """The LoRA adapter that a folder or hub id is; None if it is something else, of which nothing more is fetched.

    Raises:
        CheckpointError: It can't be found, or its factors can't be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        return None
    return Adapter.open(resolve(source)) if Adapter.there(described(source)) else None


@contextmanager
def base_of(adapter: Adapter, *, allow_pickle: bool = False, untie: bool = False) -> Generator[Canonical]:
    """The model that an adapter adds to, opened as `open_canonical` does.

    Raises:
        CheckpointError: What its configuration names can't be found or read.
    """
    try:
        resolve(adapter.base, allow_pickle=allow_pickle)
    except CheckpointError as error:
        raise CheckpointError(f"{adapter.folder}: the base that its {ADAPTER} names can't be had: {error}") from error
    with open_canonical(adapter.base, allow_pickle=allow_pickle, untie=untie) as base:
        yield base


@contextmanager
def merged(name: str, adapter: Adapter, base: Canonical) -> Generator[Checkpoint]:
    """A temporary checkpoint of a model with what an adapter adds, as peft merges the two.

    A tied tensor that it adds to is taken apart from the other one, which stays.

    Args:
        name: What the user called the adapter.
        adapter: What is added.
        base: To which.
    """
    ties = base.view.ties
    if {base.view.stored(tied) for tied in ties} & base.targets(adapter).keys():
        base = base.untied()
    warn(f"{name}: a LoRA adapter, merged into its base {base.name}")
    with temporary_folder() as folder, calling(folder / "merged", name):
        yield Checkpoint.open(write_merged(base, adapter, folder / "merged"))


def write_merged(
    base: Canonical,
    adapter: Adapter,
    folder: Path,
    pieces: Iterable[Mapping[str, Tensor]] = (),
    *,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model with what an adapter adds, as peft merges the two.

    Args:
        base: What is written.
        adapter: What is added to it.
        folder: Where to.
        pieces: Tensors that the base has instead of its own, by stored name.
        dtype: The type to store; None keeps each tensor's.
    """
    factors = {name: adapter.factors[module] for name, module in base.targets(adapter).items()}

    def added() -> Iterator[dict[str, Tensor]]:
        left = dict(factors)
        for piece in pieces:
            own = {name: left.pop(name).product(x.shape) for name, x in piece.items() if name in left}
            yield {name: x.double().cpu() + own[name] if name in own else x for name, x in piece.items()}
        for name, last in left.items():
            weight = base.checkpoint.read([name])[name]
            yield {name: weight.double() + last.product(weight.shape)}

    write_checkpoint(base.checkpoint, folder, base.view.written(added()), dtype=dtype)
    return folder
