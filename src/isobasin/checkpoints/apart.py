"""A checkpoint with further tensors, each with the values of one that it has; its files stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from isobasin.checkpoints.files import WatchedFile
from isobasin.checkpoints.layout import Header, make_header
from isobasin.checkpoints.reader import Checkpoint, TensorInfo
from isobasin.checkpoints.shards import Shard


@dataclass(frozen=True, eq=False)
class _Extended:
    """A weight file with further tensors; see `Shard`.

    Attributes:
        shard: The file.
        further: Names of further tensors, and whose values each has.
        header: How the file would be stored with them.
    """

    shard: Shard
    further: Mapping[str, str]
    header: Header

    @classmethod
    def of(cls, shard: Shard, further: Mapping[str, str]) -> _Extended:
        """Lay out a file with further tensors, which come last in its header."""
        names = {**{name: name for name in shard.header.slots}, **further}
        slots = {name: shard.header.slots[own] for name, own in names.items()}
        laid = make_header({name: (slot.shape, slot.dtype) for name, slot in slots.items()}, shard.header.metadata)
        return cls(shard, further, laid)

    @property
    def file(self) -> WatchedFile:
        """The file, which has no further tensors."""
        return self.shard.file

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """See `Shard.read`; raises CheckpointError."""
        names = list(names)
        found = self.shard.read(dict.fromkeys(self.further.get(name, name) for name in names))
        return {name: found[self.further[name]].clone() if name in self.further else found[name] for name in names}

    def pieces(self, names: Iterable[str]) -> Iterator[tuple[str, int, Tensor]]:
        """See `Shard.pieces`; raises CheckpointError."""
        names = list(names)
        yield from self.shard.pieces([name for name in names if name not in self.further])
        for name in names:
            if name in self.further:
                yield from ((name, at, piece) for _, at, piece in self.shard.pieces([self.further[name]]))


def extended(checkpoint: Checkpoint, further: Mapping[str, str], config: dict[str, Any]) -> Checkpoint:
    """A checkpoint as if it had further tensors and another configuration.

    Args:
        checkpoint: The files.
        further: Names of further tensors, and which stored tensor's values each has: it lies in that one's file.
        config: The contents of its config.json.
    """
    tensors, shards = dict(checkpoint.tensors), dict(checkpoint.shards)
    for file, shard in checkpoint.shards.items():
        own = {name: source for name, source in further.items() if tensors[source].file == file}
        if own:
            shards[file] = _Extended.of(shard, own)
            tensors |= {name: TensorInfo(tensors[x].shape, tensors[x].dtype, file) for name, x in own.items()}
    index = checkpoint.index
    if index is not None:
        files = {name: tensors[name].file for name in further}
        index = replace(index, content={**index.content, "weight_map": {**index.weight_map, **files}})
    return replace(checkpoint, config=config, tensors=tensors, shards=shards, index=index, original=checkpoint)
