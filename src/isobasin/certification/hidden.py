"""Which directions of a block the normalisations around it hide, as far as the family's facts tell.

A normalisation that subtracts the mean doesn't see it: what writes into the stream may add any multiple of the vector
of ones to its bias, and to every column of its weight. What reads `y = x̂ g + n` may add `g^{-1} c^T` to its weight:
`x̂` sums to zero, so that this adds the constant `Σ n_i / g_i c` to what it reads, and nothing if there is no n. A
constant is free where something takes it back: the reader's own bias, softmax for keys that don't rotate, the output
bias for values that don't rotate, and without an output bias the mean that the next normalisation subtracts.
"""

from __future__ import annotations

from collections.abc import Container
from math import prod

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.projection import Projection
from isobasin.architectures.stream import StreamFacts


def hidden_directions(block: AttentionBlock | FeedForward, stream: StreamFacts, names: Container[str]) -> int:
    """How many there are beyond the block's own group; RMSNorm hides none.

    Args:
        block: The block.
        stream: What its family says of the residual stream.
        names: The tensors that the checkpoint has, by canonical names.
    """
    if not stream.mean:
        return 0
    written = sum(prod(writer.layout.shape()) // block.width + (writer.bias is not None) for writer in block.writers)
    norm = _read(block, stream)
    if stream.post and norm is None:
        return written
    biased = f"{norm}.bias" in names
    if isinstance(block, AttentionBlock):
        return written + _read_by_attention(block, biased)
    return written + block.group.units * sum(branch.bias is not None or not biased for branch in block.readers.values())


def _read(block: AttentionBlock | FeedForward, stream: StreamFacts) -> str | None:
    """The normalisation that a block reads, if it has parameters; None too where layers are normalised after the sum
    and the block comes before them all.
    """
    if not stream.post:
        return stream.norm_of(block) or stream.embedding_norm
    if isinstance(block, AttentionBlock) and not block.layer:
        return stream.embedding_norm
    attends = isinstance(block, AttentionBlock)
    template = stream.feedforward_norm if attends else stream.attention_norm
    return template and template.format(layer=block.layer - attends, name=block.name)


def _read_by_attention(block: AttentionBlock, biased: bool) -> int:
    """The directions of the projections that read."""
    group, query_key, value_output = block.group, block.group.query_key, block.group.value_output

    def free(projection: Projection) -> bool:
        return projection.bias is not None or not biased

    # The group has those along the vector of ones where another LayerNorm takes these away.
    features = query_key.features - bool(group.means)
    softmax = 0 if group.norm else len(query_key.linear)
    queries = group.heads * features if free(block.query) else 0
    keys = group.kv_heads * (features if free(block.key) else softmax)
    values = group.kv_heads * value_output.features
    if value_output.planes or block.output.bias is not None:
        taken_back = free(block.value) or not value_output.planes
        return queries + keys + (values if taken_back else 0)
    # Constants that move the output along the vector of ones, or not at all; the latter are a value bias's own.
    along, still = max(0, values - block.width + 1), max(0, values - block.width)
    own = along - still if block.value.bias is not None else 0
    return queries + keys + (values if free(block.value) else along) + own
