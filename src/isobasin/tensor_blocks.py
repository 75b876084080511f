"""Tensors in memory whose meaning somebody says: the blocks of an architecture of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.schema import Specification
from isobasin.errors import ArchitectureError, TensorError, warn
from isobasin.model import Blocks
from isobasin.symmetries.along import Stream


@dataclass(frozen=True, eq=False)
class TensorBlocks(Blocks):
    """Tensors in memory with an architecture that their owner describes.

    Attributes:
        name: What to call them in messages.
        tensors: By name; those that the specification doesn't name are left alone.
        specification: What they mean.

    Raises:
        TensorError: A tensor is missing or misshapen.
    """

    name: str
    tensors: Mapping[str, Tensor]
    specification: Specification

    def __post_init__(self) -> None:
        if not isinstance(self.tensors, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            given = f"{type(self.tensors).__name__}, and not tensors by name"
            raise TensorError(f"{self.name}: is a {given}: give what a module's state_dict() returns")
        for block in (*self.specification.attention, *self.specification.feedforwards):
            shapes = block.shapes()
            self._there(shapes)
            for name, shape in shapes.items():
                if tuple(self.tensors[name].shape) != shape:
                    found = tuple(self.tensors[name].shape)
                    raise TensorError(f"{self.name}: tensor {name!r} has shape {found}, the specification says {shape}")

    def _there(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.tensors:
                other = next((there for there in self.tensors if there.endswith(f".{name}")), None)
                but = "" if other is None else f", and there is {other!r}"
                raise TensorError(f"{self.name}: tensor {name!r} is missing; the specification names it{but}")
            tensor = self.tensors[name]
            if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TensorError(f"{self.name}: {name!r} is a {type(tensor).__name__}: give tensors of torch")
            if tensor.device.type == "meta":
                raise TensorError(f"{self.name}: tensor {name!r} is on the device meta, where it has no values")

    def shared(self, moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New tensors by name, and for all names that one tensor in memory has, as tied ones in a `state_dict()` do.

        So has a copy that the specification doesn't name, which is said: as in files, equal values are taken for tied.

        Raises:
            TensorError: What is one tensor would be several.
        """
        places: dict[Any, list[str]] = {}
        for name, x in self.tensors.items():
            if x.numel():
                places.setdefault((x.device, x.data_ptr(), x.shape, x.stride()), []).append(name)
        found = dict(moved)
        for names in places.values():
            new = [(name, moved[name]) for name in names if name in moved]
            for name, x in new[1:]:
                eps = torch.finfo(x.dtype).eps
                if not torch.allclose(x, new[0][1], rtol=2 * eps, atol=1e-9 * float(x.abs().max())):
                    apart = f"{new[0][0]!r} and {name!r} are one tensor in memory and would be two"
                    raise TensorError(f"{self.name}: {apart}: describe them as one, or clone one, which unties them")
            found |= {name: new[0][1] for name in names if new}
        stream, blocks = self.specification.stream, (*self.specification.attention, *self.specification.feedforwards)
        named = set[str]().union(() if stream is None else stream.names(), *(block.shapes() for block in blocks))
        for name in [name for name in self.tensors if name not in named | found.keys()]:
            other = next((there for there in moved if self._alike(name, there)), None)
            if other is not None:
                found[name] = moved[other]
                warn(f"{name!r}, of which the specification says nothing, is {other!r} again, and moves with it")
        return found

    def _alike(self, one: str, other: str) -> bool:
        """Whether two matrices have the same values, and not all of them one value, as zeros."""
        x, y = self.tensors[one], self.tensors[other]
        if x.ndim < 2 or x.shape != y.shape or x.dtype != y.dtype or x.device != y.device:
            return False
        return torch.equal(x, y) and bool((x != x.flatten()[0]).any())

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names."""
        return {name: self.tensors[name].detach() for name in names}

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The type of every tensor."""
        return {name: tensor.dtype for name, tensor in self.tensors.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self.tensors[name].shape)

    def feedforwards(self) -> tuple[FeedForward, ...]:
        """The feed-forward blocks that the specification names."""
        if not self.specification.feedforwards:
            raise ArchitectureError(f"{self.name}: the specification names no feed-forward blocks")
        return self.specification.feedforwards

    def stream(self, *, keep_gains: bool = False) -> Stream:
        """The residual stream that the specification states."""
        if self.specification.stream is None:
            raise ArchitectureError(f"{self.name}: the specification says nothing of the residual stream")
        self._there(self.specification.stream.ordered())
        return self.specification.stream
