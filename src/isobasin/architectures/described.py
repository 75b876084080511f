"""Whether a description of one's own architecture fits itself and its tensors: what it leaves out stays behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock, Block
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.projection import Projection
from isobasin.errors import ArchitectureError, TensorError, warn
from isobasin.symmetries.along import Role, Stream
from isobasin.symmetries.stream import Basis

_PERMUTED = (Basis.permutation, Basis.signed)


def check_described(name: str, tensors: Mapping[str, Tensor], blocks: Sequence[Block], stream: Stream | None) -> None:
    """Refuse what can be seen to change a function; whether all is right, only the model itself can say.

    Args:
        name: What to call the model in messages.
        tensors: Its tensors.
        blocks: The blocks that are moved.
        stream: The residual stream, if that is moved.

    Raises:
        ArchitectureError: Groups don't fit layouts, or the stream passes by what the blocks read and write, or by a
            normalisation that doesn't let its maps pass.
        TensorError: There is a bias that the blocks are said not to have, or a tensor isn't as wide as the stream.
    """
    for block in blocks:
        _check_sizes(block)
        for projection in block.projections.values():
            bias = _bias_beside(projection)
            moves = stream is not None or projection not in block.writers
            if moves and bias is not None and bias in tensors and bool(tensors[bias].detach().any()):
                raise TensorError(f"{name}: there is {bias!r}, and {block.name} is said to have no such bias: name it")
    if stream is not None:
        _check_stream(blocks, stream)
        for item in stream.axes():
            shape = tuple(tensors[item.tensor].shape)
            if not shape[item.axis :] or shape[item.axis] % stream.group.width:
                needed = f"the residual stream needs {stream.group.width} along axis {item.axis}"
                raise TensorError(f"{name}: tensor {item.tensor!r} has shape {list(shape)}: {needed}")
        known = stream.names().union(*(block.shapes() for block in blocks))
        places = {tensors[one].data_ptr() for one in known}
        for other, x in tensors.items():
            if x.data_ptr() not in places and x.is_floating_point() and stream.group.width in x.shape:
                warn(f"{other!r} is as wide as the residual stream, and the specification says nothing of it")


def _bias_beside(projection: Projection) -> str | None:
    """What the bias is usually called of a weight that is said to have none."""
    module, _, last = projection.weight.rpartition(".")
    usual = "bias" if last == "weight" else f"b_{last[2:]}" if last.startswith("W_") else None
    return None if projection.bias is not None or usual is None else f"{module}.{usual}" if module else usual


def _check_sizes(block: Block) -> None:
    """Check that layouts have the heads and features, or the units, that the group has."""
    for role, (heads, features) in _sizes(block):
        layout = block.projections[role].layout
        found = layout.read(torch.empty(layout.shape(), device="meta")).shape
        if (found[0], found[-1]) != (heads, features):
            said = f"{found[0]} × {found[-1]} heads and features, and its group {heads} × {features}"
            raise ArchitectureError(f"{block.name}: the layout of its {role} has {said}")


def _sizes(block: Block) -> Iterator[tuple[str, tuple[int, int]]]:
    if isinstance(block, AttentionBlock) and block.group.latent is None:
        group = block.group
        yield "query", (group.heads, group.query_key.features)
        yield "key", (group.kv_heads, group.query_key.features)
        yield "value", (group.kv_heads, group.value_output.features)
        yield "output", (group.heads, group.value_output.features)
    if isinstance(block, FeedForwardBlock):
        for role in block.projections:
            yield role, (1, block.group.units)


def _check_stream(blocks: Sequence[Block], stream: Stream) -> None:
    """Check that it runs through all that the blocks read and write, and that its norms let its maps pass."""
    group, axes = stream.group, {(item.tensor, item.axis) for item in stream.axes()}
    for block in blocks:
        if block.width != group.width:
            raise ArchitectureError(f"{block.name} is {block.width} wide, and the residual stream {group.width}")
        for projection in (*block.readers.values(), *block.writers):
            axis = projection.layout.width_axis
            if (projection.weight, axis) not in axes:
                missing = f"along axis {axis} of {projection.weight!r}"
                raise ArchitectureError(f"{block.name}: the residual stream isn't said to run {missing}")
        for writer in block.writers:
            if writer.bias is not None and writer.bias not in stream.names():
                raise ArchitectureError(f"{block.name}: the residual stream isn't said to run along {writer.bias!r}")
    passing = (*_PERMUTED, Basis.centred) if stream.centred else (*_PERMUTED, Basis.centred, Basis.orthogonal)
    if any(norm.readers for norm in stream.norms) and group.basis not in passing:
        kind = "subtract the mean" if stream.centred else "divide by a root mean square"
        raise ArchitectureError(f"normalisations that {kind} don't let {group.basis} maps pass")
    if group.basis not in _PERMUTED and any(item.role is Role.gain for item in stream.along):
        raise ArchitectureError(f"factors of single coordinates don't let {group.basis} maps pass")
