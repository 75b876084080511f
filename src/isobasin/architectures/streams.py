"""From what a family says of its residual stream to where the stream runs through a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from isobasin.architectures.blocks import AttentionSite, Site
from isobasin.architectures.residual import Along, Norm, Reader, Residual, Role
from isobasin.errors import ArchitectureError, TensorError
from isobasin.symmetries.residual import Basis, ResidualGroup

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Head:
    """What a model's outputs are read with.

    Attributes:
        module: An `nn.Linear` that reads the stream's last normalisation.
        tied: Whether its weight is the embedding where the configuration ties them.
        base: Whether it belongs to the base model, whose prefix its name then has.
        transform: A normalisation after it: then it also writes in the stream's basis, as a masked language model's
            transform does, whose decoder is the embedding.
        behind: A module between it and the stream: where a checkpoint has that, this reads its output instead.
    """

    module: str
    tied: bool = False
    base: bool = False
    transform: str | None = None
    behind: str | None = None


@dataclass(frozen=True)
class Stream:
    """What a family says of its residual stream; names are templates as in its blocks.

    Attributes:
        embeddings: What writes into it before the first layer: tensor and axis; those that a checkpoint lacks are
            passed over.
        heads: Everything that may read it after the last layer.
        attention_norm: The normalisation by attention: before it, or after its sum where `post` is set.
        feedforward_norm: Likewise; equal to `attention_norm` where one serves both.
        final_norm: After the last layer; None if there is none.
        embedding_norm: Right after the embeddings, likewise.
        mean: Whether normalisations subtract the mean (LayerNorm) or not (RMSNorm).
        post: Whether layers are normalised after the sum, so that the stream itself is.
        outside: Name beginnings of tensors that the stream doesn't run through, heads behind a pooler for example.
        feedforward_readers: Modules without bias that read what feed-forward blocks read, and are no part of them; not
            all layers need have them.
    """

    embeddings: tuple[tuple[str, int], ...]
    heads: tuple[Head, ...]
    attention_norm: str
    feedforward_norm: str
    final_norm: str | None
    embedding_norm: str | None = None
    mean: bool = True
    post: bool = False
    outside: tuple[str, ...] = ()
    feedforward_readers: tuple[str, ...] = ()

    def norm_of(self, site: Site) -> str:
        """The normalisation by a block."""
        return self.attention_norm if isinstance(site, AttentionSite) else self.feedforward_norm

    @property
    def tied(self) -> bool:
        """Whether a head may be an embedding that reads the last normalisation, which then can't be folded."""
        return not self.post and any(head.tied for head in self.heads)

    def basis(self, *, kept: bool) -> Basis:
        """Which maps of the stream leave the function unchanged; `kept`: a normalisation isn't folded."""
        if kept or self.post:
            return Basis.permutation if self.mean or self.post else Basis.signed
        return Basis.centred if self.mean else Basis.orthogonal


@dataclass(frozen=True)
class _Checkpoint:
    """What a stream is looked for in."""

    stream: Stream
    sites: Sequence[tuple[Site, ...]]
    shapes: Shapes
    prefix: str
    tied: bool

    @property
    def heads(self) -> list[tuple[Head, str]]:
        """The heads that the model has, stored or tied, with the names of their modules."""
        named = [(head, (self.prefix if head.base else "") + head.module) for head in self.stream.heads]
        reading = [(h, name) for h, name in named if h.behind is None or not self._has(h.behind)]
        # A base model's names have no prefix: nothing reads its hidden states, whatever its configuration ties.
        tied = self.tied and bool(self.prefix)
        return [(h, name) for h, name in reading if f"{name}.weight" in self.shapes or (h.tied and tied)]

    def _has(self, module: str) -> bool:
        return any(f"{start}{module}.weight" in self.shapes for start in ("", self.prefix))

    @property
    def final_norm(self) -> str | None:
        """The module of the last normalisation, if it is one by itself."""
        return None if self.stream.final_norm is None else self.prefix + self.stream.final_norm

    def bias(self, module: str) -> str | None:
        """The name of a module's bias, if it has one."""
        return f"{module}.bias" if f"{module}.bias" in self.shapes else None

    def has_output(self) -> bool:
        """Whether anything stands between the stream and the model's outputs."""
        outside = any(name.startswith(start) for name in self.shapes for start in self.stream.outside)
        return outside or any(not head.base for head, _ in self.heads)


def find(
    stream: Stream,
    sites: Sequence[tuple[Site, ...]],
    shapes: Shapes,
    *,
    prefix: str,
    tied: bool,
    keep_gains: bool = False,
    buffers: Iterable[str] = (),
) -> Residual:
    """The residual stream of a checkpoint.

    A normalisation is folded unless it is after the sum, where it is the stream; unless an embedding reads it, which
    can't take a gain in and still write what it wrote; and unless `keep_gains`.

    Args:
        stream: The family's facts.
        sites: The attention and the feed-forward blocks of every layer, with the checkpoint's names.
        shapes: Name and shape of every tensor there.
        prefix: What the checkpoint puts before the base model's names.
        tied: Whether the configuration ties the head to the embedding.
        keep_gains: Fold nothing: every gain stays with its coordinate, which leaves permutations.
        buffers: Name endings of tensors that are no parameters.

    Raises:
        TensorError: A tensor is there of which nothing is known.
        ArchitectureError: The stream is itself an output of the model.
    """
    checkpoint = _Checkpoint(stream, sites, shapes, prefix, tied)
    if not checkpoint.has_output():
        raise ArchitectureError(
            "the checkpoint has no head, so its hidden states are its output and their basis can't move: give the "
            "model with its head, or use --scope block"
        )
    norms = list(_norms(checkpoint))
    everything_kept = stream.post or keep_gains
    kept = [norm for norm in norms if everything_kept or _reads_embedding(norm, checkpoint)]
    along = (*_writers(checkpoint), *(item for norm in kept for item in _kept(norm)))
    found = Residual(
        ResidualGroup(sites[0][0].width, stream.basis(kept=bool(kept))),
        tuple(dict.fromkeys(along)),
        tuple(norm for norm in norms if norm not in kept),
        stream.mean,
    )
    _check_explained(found, checkpoint, buffers)
    return found


def _reads_embedding(norm: Norm, checkpoint: _Checkpoint) -> bool:
    """Whether the last normalisation is read by a tied embedding."""
    tied = any(h.tied and (checkpoint.tied or f"{m}.weight" not in checkpoint.shapes) for h, m in checkpoint.heads)
    return tied and norm.gain == f"{checkpoint.final_norm}.weight"


def _norms(checkpoint: _Checkpoint) -> Iterator[Norm]:
    """Every normalisation of the layers and the last one, in order, with all that reads it."""
    stream, shapes = checkpoint.stream, checkpoint.shapes
    reading: dict[str, list[Reader]] = {}
    for layer in checkpoint.sites:
        for site in layer:
            # After a sum the norm is read by the next block instead: that makes no difference, as it isn't folded.
            module = checkpoint.prefix + stream.norm_of(site).format(layer=site.layer)
            reading.setdefault(module, []).extend(_readers(site))
            for template in () if isinstance(site, AttentionSite) else stream.feedforward_readers:
                weight = f"{checkpoint.prefix}{template.format(layer=site.layer)}.weight"
                reading[module] += [Reader(weight, 1, None)] if weight in shapes else []
    modules = [module for _, module in checkpoint.heads if f"{module}.weight" in shapes]
    last = checkpoint.final_norm or next(reversed(reading))
    reading.setdefault(last, []).extend(Reader(f"{m}.weight", 1, checkpoint.bias(m)) for m in modules)
    for module, readers in reading.items():
        yield Norm(f"{module}.weight", checkpoint.bias(module), tuple(dict.fromkeys(readers)))


def _readers(site: Site) -> Iterator[Reader]:
    for projection in site.readers.values():
        yield Reader(projection.weight, projection.layout.width_axis, projection.bias)


def _kept(norm: Norm) -> Iterator[Along]:
    """A normalisation that isn't folded, and its readers."""
    yield Along(norm.gain, 0, Role.gain)
    if norm.bias is not None:
        yield Along(norm.bias, 0)
    for reader in norm.readers:
        yield Along(reader.weight, reader.axis, Role.covector)


def _writers(checkpoint: _Checkpoint) -> Iterator[Along]:
    """What writes into the stream, embeddings first."""
    stream, prefix = checkpoint.stream, checkpoint.prefix
    for name, axis in stream.embeddings:
        if prefix + name in checkpoint.shapes:
            yield Along(prefix + name, axis)
    if stream.embedding_norm is not None:
        yield from _kept(Norm(f"{prefix}{stream.embedding_norm}.weight", f"{prefix}{stream.embedding_norm}.bias", ()))
    for site in (site for layer in checkpoint.sites for site in layer):
        for writer in site.writers:
            yield Along(writer.weight, writer.layout.width_axis)
            if writer.bias is not None:
                yield Along(writer.bias, len(checkpoint.shapes[writer.bias]) - 1)
    for head, module in checkpoint.heads:
        if head.transform is not None:
            yield Along(f"{module}.weight", 0)
            yield Along(f"{module}.bias", 0)
            yield from _kept(Norm(f"{head.transform}.weight", f"{head.transform}.bias", ()))


def _check_explained(found: Residual, checkpoint: _Checkpoint, buffers: Iterable[str]) -> None:
    """Check that every tensor's part in the stream is known: another one might read or write it."""
    known = found.names() | {name for layer in checkpoint.sites for site in layer for name in site.shapes()}
    known |= {f"{module}.bias" for _, module in checkpoint.heads}
    endings = tuple(f".{ending}" for ending in buffers)
    for name in checkpoint.shapes:
        if not (name in known or name.startswith(checkpoint.stream.outside) or name.endswith(endings)):
            raise TensorError(
                f"tensor {name!r} has no known part in the residual stream, so no move of the stream is known exact"
            )
