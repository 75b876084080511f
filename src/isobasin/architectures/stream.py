"""What a family says of its residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from isobasin.architectures.blocks import AttentionBlock, Block
from isobasin.symmetries.stream import Basis


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
        norm = of_block((self.attention_norm, self.feedforward_norm), block)
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


def of_block(names: tuple[str | None, str | None] | None, block: Block) -> str | None:
    """Which of two templates, of attention and of feed-forward blocks, is a block's, and what it says there."""
    if names is None:
        return None
    template = names[0] if isinstance(block, AttentionBlock) else names[1]
    return None if template is None else template.format(layer=block.layer, name=block.name)
