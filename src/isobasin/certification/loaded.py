"""A loaded transformers model, and where the stored values of its blocks are in its memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from math import prod

import torch
from torch import Tensor, nn

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.checkpoints import stand_in
from isobasin.errors import ArchitectureError
from isobasin.loading import load
from isobasin.model import Model


@dataclass(frozen=True, eq=False)
class Loaded:
    """A block of a loaded model.

    Attributes:
        block: What is stated of it.
        stored: Its stored tensors in float64.
        parameters: The parameters in memory that hold its values, and perhaps others.
        order: Where each stored value is among those parameters, flattened and joined.
        readers: The modules that read the block's input.
        writer: The module whose output is the block's output.
    """

    block: AttentionBlock | FeedForward
    stored: dict[str, Tensor]
    parameters: list[Tensor]
    order: Tensor
    readers: list[nn.Module]
    writer: nn.Module


def loaded_blocks(model: Model, blocks: Iterable[AttentionBlock | FeedForward]) -> tuple[nn.Module, list[Loaded]]:
    """The model in float64, ready for derivatives by the parameters of these blocks.

    A copy of the checkpoint whose values are all different numbers is loaded beside it: where a number turns up in
    memory, the value of that number went, however transformers renames, fuses or stacks tensors there.

    Raises:
        ArchitectureError: transformers makes other values of the stored ones than they are.
    """
    module = load(model.checkpoint.folder, torch.float64).requires_grad_(False)
    numbers, first = _numbered(model)
    return module, [_block(model, block, module, numbers, first) for block in blocks]


def _numbered(model: Model) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The number of each value of the parameters in memory, and the first number of each stored tensor."""
    values: dict[str, Tensor] = {}
    first: dict[str, int] = {}
    total = 0
    for name, info in model.checkpoint.tensors.items():
        first[name], size = total, prod(info.shape)
        values[name] = torch.arange(total, total + size, dtype=torch.float64).reshape(info.shape)
        total += size
    with stand_in(model.checkpoint, values) as folder:
        probe = load(folder, torch.float64)
    return {name: parameter.detach().flatten() for name, parameter in probe.named_parameters()}, first


def _block(
    model: Model,
    block: AttentionBlock | FeedForward,
    module: nn.Module,
    numbers: dict[str, Tensor],
    first: dict[str, int],
) -> Loaded:
    """One block: which parameters hold its values, and which modules they belong to."""

    def wanted(names: Iterable[str]) -> Tensor:
        return torch.cat([first[n] + torch.arange(prod(block.shapes()[n]), dtype=torch.float64) for n in names])

    def holding(names: Iterable[str]) -> list[str]:
        sought = wanted(names)
        return [name for name, held in numbers.items() if bool(torch.isin(held, sought).any())]

    shapes = [name for name in block.shapes() if name not in block.deciding]
    places = holding(shapes)
    held = torch.cat([numbers[name] for name in places]) if places else torch.empty(0)
    ordered, order = held.sort()
    where = torch.searchsorted(ordered, wanted(shapes)).clamp(max=max(len(ordered) - 1, 0))
    if not places or not torch.equal(ordered[where], wanted(shapes)):
        raise ArchitectureError(
            f"{model.name}: transformers makes other values of the tensors of {block.name} than are stored, so the "
            "block can't be certified"
        )
    parameters = dict(module.named_parameters())
    writers = [name for writer in block.writers for name in (writer.weight, writer.bias) if name is not None]
    return Loaded(
        block,
        model.double(block.shapes()),
        [parameters[name].requires_grad_() for name in places],
        order[where],
        [module.get_submodule(_owner([name])) for name in holding(part.weight for part in block.readers.values())],
        module.get_submodule(_owner(holding(writers))),
    )


def _owner(names: list[str]) -> str:
    """The innermost module that holds all of these parameters."""
    paths = [name.split(".")[:-1] for name in names]
    return ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
