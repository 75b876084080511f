"""What a checkpoint means: its blocks in order. A specification states facts only; reading and writing follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.symmetries.along import Stream


@dataclass(frozen=True)
class Specification:
    """A checkpoint's architecture: its blocks in order.

    Attributes:
        model_type: As in the configuration, or any name for a home-made architecture.
        attention: The attention blocks.
        feedforwards: The feed-forward blocks in the order of the layers, which may have several. Those of a checkpoint
            are facts about its family, compared with its tensors only where they are used (`Blocks.feedforwards`); none
            for families that don't state them.
        stream: The residual stream of a home-made architecture; None if it stays as it is. A checkpoint's depends
            on which tensors it has (`Blocks.stream`).
    """

    model_type: str
    attention: tuple[AttentionBlock, ...]
    feedforwards: tuple[FeedForward, ...] = ()
    stream: Stream | None = None

    @property
    def ties(self) -> tuple[tuple[int, ...], ...]:
        """Indices of attention blocks that read one table of position biases, so that their heads permute together."""
        found: dict[str, list[int]] = {}
        for index, block in enumerate(self.attention):
            if block.table is not None:
                found.setdefault(block.table.weight, []).append(index)
        return tuple(tuple(indices) for indices in found.values() if len(indices) > 1)

    def named(self, change: Callable[[str], str]) -> Specification:
        """The same facts with all names changed."""
        return replace(
            self,
            attention=tuple(block.named(change) for block in self.attention),
            feedforwards=tuple(block.named(change) for block in self.feedforwards),
        )
