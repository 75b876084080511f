"""From what a family says of its residual stream to where the stream runs through a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from isobasin.architectures.blocks import AttentionBlock, Block
from isobasin.architectures.entries import Shapes
from isobasin.architectures.stream import Readout, StreamFacts, of_block
from isobasin.architectures.view import View
from isobasin.errors import ArchitectureError, TensorError
from isobasin.symmetries.along import Along, Norm, Reader, Role, Stream
from isobasin.symmetries.stream import StreamGroup


@dataclass(frozen=True)
class _Checkpoint:
    """What a stream is looked for in, by canonical names; shapes are those of the tensors that are there."""

    stream: StreamFacts
    layers: Sequence[tuple[Block, ...]]
    shapes: Shapes
    view: View

    @property
    def readouts(self) -> list[Readout]:
        """The readouts that the model has, stored or tied."""
        reading = [h for h in self.stream.readouts if h.behind is None or f"{h.behind}.weight" not in self.shapes]
        return [h for h in reading if f"{h.module}.weight" in self.shapes or self.tied(h)]

    def tied(self, readout: Readout) -> bool:
        """Whether a readout is an embedding."""
        return readout.tied and f"{readout.module}.weight" in self.view.ties

    def of_tokens(self, readout: str) -> bool:
        """Whether a readout's weight has a row for every token: as many as the first table of embeddings."""
        return self.shapes[readout] == self.shapes.get(self.stream.embeddings[0][0])

    def bias(self, module: str) -> str | None:
        """The name of a module's bias, if it has one."""
        return f"{module}.bias" if f"{module}.bias" in self.shapes else None

    @property
    def blocks(self) -> Iterator[Block]:
        """All blocks, layer by layer."""
        return (block for layer in self.layers for block in layer)

    def kept_norm(self, module: str) -> Iterator[Along]:
        """A normalisation that is never folded, by itself."""
        return _kept(Norm(f"{module}.weight", self.bias(module)))


def find(
    stream: StreamFacts, layers: Sequence[tuple[Block, ...]], shapes: Shapes, view: View, *, keep_gains: bool = False
) -> Stream:
    """The residual stream of a checkpoint, by the names that it is stored under.

    A normalisation is folded unless it is after a block or the sum; unless an embedding reads it, which can't take a
    gain in and still write what it wrote; and unless `keep_gains`. Writers take in factors of what blocks return.

    Args:
        stream: The family's facts.
        layers: The attention and the feed-forward blocks of every layer, with canonical names.
        shapes: Name and shape of every stored tensor.
        view: Which tensor each is.
        keep_gains: Fold nothing: every gain stays with its coordinate, which leaves permutations.
        stored: From canonical names to those of the checkpoint.

    Raises:
        TensorError: A tensor is there of which nothing is known.
        ArchitectureError: The stream is itself an output of the model.
    """
    checkpoint = _Checkpoint(stream, layers, {n: tuple(shapes[x]) for n, x in view.tensors.items()}, view)
    reading = _reading(checkpoint)
    bare = [reader.along for reader in reading.get(None, ())]
    norms = [*_norms(checkpoint, reading), *_scales(checkpoint)]
    everything_kept = stream.post or keep_gains
    # An embedding that reads the last normalisation can't take its gain in.
    last = f"{stream.final_norm}.weight" if any(map(checkpoint.tied, checkpoint.readouts)) else None
    kept = [norm for norm in norms if everything_kept or norm.gain == last]
    folded = tuple(norm for norm in norms if norm not in kept)
    along = (*_writers(checkpoint), *bare, *(item for norm in kept for item in _kept(norm)))
    inside = {item for norm in folded for item in norm.writers}
    found = Stream(
        StreamGroup(layers[0][0].width, stream.basis(kept=keep_gains or bool(kept)), keep_gains=keep_gains),
        tuple(item for item in dict.fromkeys(along) if item not in inside),
        folded,
        stream.mean,
    )
    _check_explained(found, checkpoint)
    _check_read(checkpoint)
    _check_sizes(found, checkpoint)
    return found.named({name: view.stored(name) for name in found.names()})


def _reading(checkpoint: _Checkpoint) -> dict[str | None, list[Reader]]:
    """All that reads the stream, by the module of the normalisation before it; None where that has no parameters."""
    stream, shapes = checkpoint.stream, checkpoint.shapes
    reading: dict[str | None, list[Reader]] = {}
    for block in checkpoint.blocks:
        # After a sum the norm is read by the next block instead: that makes no difference, as it isn't folded.
        readers = reading.setdefault(stream.norm_of(block), [])
        readers += [Reader(x.weight, x.layout.width_axis, x.bias) for x in block.readers.values()]
        for template in () if isinstance(block, AttentionBlock) else stream.feedforward_readers:
            weight = f"{template.format(layer=block.layer)}.weight"
            readers += [Reader(weight, 1, None)] if weight in shapes else []
    modules = [h.module for h in checkpoint.readouts if f"{h.module}.weight" in shapes]
    readouts = [Reader(f"{m}.weight", 1, checkpoint.bias(m), checkpoint.of_tokens(f"{m}.weight")) for m in modules]
    reading.setdefault(stream.final_norm, []).extend(readouts)
    return reading


def _norms(checkpoint: _Checkpoint, reading: Mapping[str | None, Sequence[Reader]]) -> Iterator[Norm]:
    """Every normalisation of the layers and the last one, in order, with all that reads it."""
    offset = checkpoint.stream.gain_offset
    for module, readers in reading.items():
        if module is not None:
            yield Norm(f"{module}.weight", checkpoint.bias(module), tuple(dict.fromkeys(readers)), offset=offset)


def _scales(checkpoint: _Checkpoint) -> Iterator[Norm]:
    """Every factor of what a block returns, with what writes it."""
    for block in checkpoint.blocks:
        factor = of_block(checkpoint.stream.scales, block)
        if factor is not None:
            yield Norm(factor, None, writers=tuple(_written(block, checkpoint.shapes)))


def _kept(norm: Norm) -> Iterator[Along]:
    """A normalisation that isn't folded, and its readers."""
    yield Along(norm.gain, 0, Role.gain)
    if norm.bias is not None:
        yield Along(norm.bias, 0)
    yield from norm.scaled


def _written(block: Block, shapes: Shapes) -> Iterator[Along]:
    """What a block writes with."""
    for writer in block.writers:
        yield Along(writer.weight, writer.layout.width_axis)
        if writer.bias is not None:
            yield Along(writer.bias, len(shapes[writer.bias]) - 1)


def _writers(checkpoint: _Checkpoint) -> Iterator[Along]:
    """What writes into the stream, embeddings first."""
    stream = checkpoint.stream
    for name, axis in stream.embeddings:
        if name in checkpoint.shapes:
            yield Along(name, axis, table=axis == 1 and len(checkpoint.shapes[name]) == 2)
    if stream.embedding_norm is not None:
        yield from checkpoint.kept_norm(stream.embedding_norm)
    for block in checkpoint.blocks:
        yield from _written(block, checkpoint.shapes)
        norm = of_block(stream.after, block)
        if norm is not None:
            yield from checkpoint.kept_norm(norm)
    for readout in checkpoint.readouts:
        if readout.transform is not None:
            bias = checkpoint.bias(readout.module)
            yield Along(f"{readout.module}.weight", 0)
            yield from () if bias is None else (Along(bias, 0),)
            yield from checkpoint.kept_norm(readout.transform)
            reading = (f"{name}.weight" for name in readout.then)
            there = [name for name in reading if name in checkpoint.shapes]
            yield from (Along(name, 1, Role.covector, checkpoint.of_tokens(name)) for name in there)


def _check_explained(found: Stream, checkpoint: _Checkpoint) -> None:
    """Check that every tensor's part in the stream is known: another one might read or write it."""
    known = found.names() | {name for block in checkpoint.blocks for name in block.shapes()}
    known |= {f"{readout.module}.bias" for readout in checkpoint.readouts}
    beginnings = (*checkpoint.stream.outside, *checkpoint.stream.before)
    for name in checkpoint.shapes:
        if not (name in known or name.startswith(beginnings)):
            raise TensorError(
                f"tensor {checkpoint.view.stored(name)!r} has no known part in the residual stream, so no move of it "
                "is known exact"
            )


def _check_read(checkpoint: _Checkpoint) -> None:
    """Check that a head reads the stream. One of which nothing is known was said to be so before."""
    outside = any(name.startswith(checkpoint.stream.outside) for name in checkpoint.shapes)
    if not outside and all(readout.base for readout in checkpoint.readouts):
        raise ArchitectureError(
            "the checkpoint has no head, so its hidden states are its output and their basis can't move: give the "
            "model with its head, or use --scope block"
        )


def _check_sizes(found: Stream, checkpoint: _Checkpoint) -> None:
    """Check that every axis along the stream is as wide as it, or holds as many vectors of it as the readout reads."""
    copies = {(f"{readout.module}.weight", 1): readout.copies for readout in checkpoint.readouts}
    axes = [(item.tensor, item.axis) for item in found.axes()]
    for name, axis in (*axes, *((name, 0) for name in found.normalising())):
        if name not in checkpoint.shapes:
            raise TensorError(f"no tensor {checkpoint.view.stored(name)!r}, which the residual stream runs through")
        shape, expected = checkpoint.shapes[name], found.group.width * copies.get((name, axis), 1)
        if shape[axis : axis + 1] != (expected,):
            raise TensorError(
                f"tensor {checkpoint.view.stored(name)!r} has shape {list(shape)}: the residual stream needs "
                f"{expected} along axis {axis}"
            )
