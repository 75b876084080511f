"""From what a family says of its residual stream to where the stream runs through a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from isobasin.architectures.blocks import AttentionBlock, Block
from isobasin.errors import ArchitectureError, TensorError
from isobasin.symmetries.along import Along, Norm, Reader, Role, Stream
from isobasin.symmetries.stream import Basis, StreamGroup

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Readout:
    """What a model's outputs are read with.

    Attributes:
        module: An `nn.Linear` that reads the stream's last normalisation.
        tied: Whether its weight is the embedding where the configuration ties them.
        base: Whether it belongs to the base model.
        transform: A normalisation after it: then it also writes in the stream's basis, as a masked language model's
            transform does, whose decoder is the embedding. An activation lies between, so that basis is only permuted.
        then: Modules that read what that normalisation returns.
        copies: How many vectors of the stream it reads, one after the other.
        behind: A module between it and the stream: where a checkpoint has that, this reads its output instead.
    """

    module: str
    tied: bool = False
    base: bool = False
    transform: str | None = None
    then: tuple[str, ...] = ()
    copies: int = 1
    behind: str | None = None


@dataclass(frozen=True)
class StreamFacts:
    """What a family says of its residual stream; names are templates as in its blocks.

    Attributes:
        embeddings: What writes into it before the first layer: tensor and axis; those that a checkpoint lacks are
            passed over.
        readouts: Everything that may read it after the last layer.
        attention_norm: The normalisation by attention: before it, or after its sum where `post` is set; None where it
            has no parameters, or where there is none. The template may have the block's name too.
        feedforward_norm: Likewise; equal to `attention_norm` where one serves both.
        final_norm: After the last layer; None if there is none.
        embedding_norm: Right after the embeddings, likewise.
        after: Normalisations of what attention and feed-forward blocks return, before the sum; None without.
        scales: Factors of the same, likewise.
        absent: Names of normalisations by these rules that aren't there: the block reads the stream as it is, whose
            coordinates must be held then.
        before: Beginnings of names of tensors whose values pass through the embeddings stated.
        gain_offset: What is added to all gains as they are stored.
        mean: Whether normalisations subtract the mean (LayerNorm) or not (RMSNorm).
        post: Whether layers are normalised after the sum, so that the stream itself is.
        outside: Name beginnings of tensors that the stream doesn't run through, readouts behind a pooler for example.
        feedforward_readers: Modules without bias that read what feed-forward blocks read, and are no part of them; not
            all layers need have them.
    """

    embeddings: tuple[tuple[str, int], ...]
    readouts: tuple[Readout, ...]
    attention_norm: str | None
    feedforward_norm: str | None
    final_norm: str | None
    embedding_norm: str | None = None
    after: tuple[str, str] | None = None
    scales: tuple[str, str] | None = None
    absent: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    gain_offset: float = 0.0
    mean: bool = True
    post: bool = False
    outside: tuple[str, ...] = ()
    feedforward_readers: tuple[str, ...] = ()

    def norm_of(self, block: Block) -> str | None:
        """The normalisation by a block; None if it has none with parameters."""
        norm = _of((self.attention_norm, self.feedforward_norm), block)
        return None if norm in self.absent else norm

    @property
    def held(self) -> bool:
        """Whether the coordinates are held by gains that nothing can take in, whatever the readouts are."""
        return self.post or self.embedding_norm is not None or self.after is not None

    @property
    def tied(self) -> bool:
        """Whether a readout may be an embedding that reads the last normalisation, which then can't be folded."""
        return not self.held and self.final_norm is not None and any(readout.tied for readout in self.readouts)

    def basis(self, *, kept: bool) -> Basis:
        """Which maps of the stream leave the function unchanged; `kept`: a normalisation isn't folded."""
        if kept or self.held:
            return Basis.permutation if self.mean or self.post else Basis.signed
        return Basis.centred if self.mean else Basis.orthogonal


def _of(names: tuple[str | None, str | None] | None, block: Block) -> str | None:
    """Which of two templates, of attention and of feed-forward blocks, is a block's, and what it says there."""
    if names is None:
        return None
    template = names[0] if isinstance(block, AttentionBlock) else names[1]
    return None if template is None else template.format(layer=block.layer, name=block.name)


@dataclass(frozen=True)
class _Checkpoint:
    """What a stream is looked for in, by canonical names; shapes are those of the tensors that are there."""

    stream: StreamFacts
    layers: Sequence[tuple[Block, ...]]
    shapes: Shapes
    ties: Mapping[str, str]
    stored: Callable[[str], str]

    @property
    def readouts(self) -> list[tuple[Readout, str]]:
        """The readouts that the model has, stored or tied, with the names of their modules."""
        reading = [h for h in self.stream.readouts if h.behind is None or f"{h.behind}.weight" not in self.shapes]
        return [(h, h.module) for h in reading if f"{h.module}.weight" in self.shapes or self.tied(h)]

    def tied(self, readout: Readout) -> bool:
        """Whether a readout is an embedding."""
        return readout.tied and f"{readout.module}.weight" in self.ties

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

    def has_output(self) -> bool:
        """Whether anything stands between the stream and the model's outputs."""
        outside = any(name.startswith(start) for name in self.shapes for start in self.stream.outside)
        return outside or any(not readout.base for readout, _ in self.readouts)


def find(
    stream: StreamFacts,
    layers: Sequence[tuple[Block, ...]],
    shapes: Shapes,
    ties: Mapping[str, str],
    *,
    keep_gains: bool = False,
    stored: Callable[[str], str] = str,
) -> Stream:
    """The residual stream of a checkpoint, by the names that it is stored under.

    A normalisation is folded unless it is after a block or the sum; unless an embedding reads it, which can't take a
    gain in and still write what it wrote; and unless `keep_gains`. Writers take in factors of what blocks return.

    Args:
        stream: The family's facts.
        layers: The attention and the feed-forward blocks of every layer, with canonical names.
        shapes: Canonical name and shape of every tensor that the function depends on.
        ties: Canonical names of tensors that are another one's, with that one's.
        keep_gains: Fold nothing: every gain stays with its coordinate, which leaves permutations.
        stored: From canonical names to those of the checkpoint.

    Raises:
        TensorError: A tensor is there of which nothing is known.
        ArchitectureError: The stream is itself an output of the model.
    """
    checkpoint = _Checkpoint(stream, layers, shapes, ties, stored)
    if not checkpoint.has_output():
        raise ArchitectureError(
            "the checkpoint has no head, so its hidden states are its output and their basis can't move: give the "
            "model with its head, or use --scope block"
        )
    reading = _reading(checkpoint)
    bare = [reader.along for reader in reading.get(None, ())]
    norms = [*_norms(checkpoint, reading), *_scales(checkpoint)]
    everything_kept = stream.post or keep_gains
    kept = [norm for norm in norms if everything_kept or _reads_embedding(norm, checkpoint)]
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
    _check_sizes(found, checkpoint)
    return found.named({name: stored(name) for name in found.names()})


def _reads_embedding(norm: Norm, checkpoint: _Checkpoint) -> bool:
    """Whether the last normalisation is read by a tied embedding."""
    tied = any(checkpoint.tied(readout) for readout, _ in checkpoint.readouts)
    return tied and norm.gain == f"{checkpoint.stream.final_norm}.weight"


def _reading(checkpoint: _Checkpoint) -> dict[str | None, list[Reader]]:
    """All that reads the stream, by the module of the normalisation before it; None where that has no parameters."""
    stream, shapes = checkpoint.stream, checkpoint.shapes
    reading: dict[str | None, list[Reader]] = {}
    for block in checkpoint.blocks:
        # After a sum the norm is read by the next block instead: that makes no difference, as it isn't folded.
        readers = reading.setdefault(stream.norm_of(block), [])
        readers += _readers(block)
        for template in () if isinstance(block, AttentionBlock) else stream.feedforward_readers:
            weight = f"{template.format(layer=block.layer)}.weight"
            readers += [Reader(weight, 1, None)] if weight in shapes else []
    modules = [module for _, module in checkpoint.readouts if f"{module}.weight" in shapes]
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
        factor = _of(checkpoint.stream.scales, block)
        if factor is not None:
            yield Norm(factor, None, writers=tuple(_written(block, checkpoint.shapes)))


def _readers(block: Block) -> Iterator[Reader]:
    for projection in block.readers.values():
        yield Reader(projection.weight, projection.layout.width_axis, projection.bias)


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
        norm = _of(stream.after, block)
        if norm is not None:
            yield from checkpoint.kept_norm(norm)
    for readout, module in checkpoint.readouts:
        if readout.transform is not None:
            bias = checkpoint.bias(module)
            yield Along(f"{module}.weight", 0)
            yield from () if bias is None else (Along(bias, 0),)
            yield from checkpoint.kept_norm(readout.transform)
            reading = (f"{name}.weight" for name in readout.then)
            there = [name for name in reading if name in checkpoint.shapes]
            yield from (Along(name, 1, Role.covector, checkpoint.of_tokens(name)) for name in there)


def _check_explained(found: Stream, checkpoint: _Checkpoint) -> None:
    """Check that every tensor's part in the stream is known: another one might read or write it."""
    known = found.names() | {name for block in checkpoint.blocks for name in block.shapes()}
    known |= {f"{module}.bias" for _, module in checkpoint.readouts}
    beginnings = (*checkpoint.stream.outside, *checkpoint.stream.before)
    for name in checkpoint.shapes:
        if not (name in known or name.startswith(beginnings)):
            raise TensorError(
                f"tensor {checkpoint.stored(name)!r} has no known part in the residual stream, so no move of it "
                "is known exact"
            )


def _check_sizes(found: Stream, checkpoint: _Checkpoint) -> None:
    """Check that every axis along the stream is as wide as it, or holds as many vectors of it as the readout reads."""
    copies = {(f"{module}.weight", 1): readout.copies for readout, module in checkpoint.readouts}
    axes = [(item.tensor, item.axis) for item in found.axes()]
    for name, axis in (*axes, *((name, 0) for name in found.normalising())):
        if name not in checkpoint.shapes:
            raise TensorError(f"no tensor {checkpoint.stored(name)!r}, which the residual stream runs through")
        shape, expected = checkpoint.shapes[name], found.group.width * copies.get((name, axis), 1)
        if shape[axis : axis + 1] != (expected,):
            raise TensorError(
                f"tensor {checkpoint.stored(name)!r} has shape {list(shape)}: the residual stream needs {expected} "
                f"along axis {axis}"
            )
