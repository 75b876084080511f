"""Tensors that know how they are made instead of holding values.

transformers renames, merges, splits and casts them like any others while it loads a model: what it does is written down
and done once their values are asked for, as often as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


class Deferred(Tensor):
    """A tensor on the CPU without values; operations on it, but for those in place, give others of its kind.

    Attributes:
        shaped: What it is like, on no device.
        make: Makes a new tensor of its values.
    """

    shaped: Tensor
    make: Callable[[], Tensor]

    def __new__(cls, shaped: Tensor, make: Callable[[], Tensor]) -> Deferred:
        """Stands for what `make` makes."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            shaped.size(),
            strides=shaped.stride(),
            storage_offset=int(shaped.storage_offset()),
            dtype=shaped.dtype,
            device=torch.device("cpu"),
        )
        made.shaped, made.make = shaped, make
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What an operation would give, to be made later."""
        if func._schema.is_mutable:
            raise NotImplementedError(f"{func} on a tensor whose values are not there")
        given = args, dict(kwargs or {})

        def done(index: int) -> Tensor:
            real = tree_map(lambda x: made(x) if isinstance(x, Tensor) else x, given)
            return tree_leaves(func(*real[0], **real[1]))[index]

        shaped = tree_map(lambda x: x.shaped if isinstance(x, Deferred) else x, given)
        leaves, structure = tree_flatten(func(*shaped[0], **{k: x for k, x in shaped[1].items() if k != "device"}))
        return tree_unflatten([cls(leaf, partial(done, index)) for index, leaf in enumerate(leaves)], structure)


def made(tensor: Tensor) -> Tensor:
    """A tensor with its values."""
    return tensor.make() if isinstance(tensor, Deferred) else tensor
