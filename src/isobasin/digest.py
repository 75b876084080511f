"""SHA-256 of what is matched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from isobasin.architectures.blocks import Block


class Digest:
    """SHA-256 of the tensors that are matched, fed as they are read and computed beside what is done with them."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._worker = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def update(self, block: Block, tensors: Mapping[str, Tensor]) -> None:
        """Add one block, in a fixed order and under names without prefix."""
        labelled: list[tuple[str, Tensor]] = []
        for role, projection in (block.projections | block.others).items():
            for part in ("weight", "bias"):
                name = getattr(projection, part)
                if name is not None:
                    labelled.append((f"{block.layer}.{role}.{part}", tensors[name]))
        self._later(labelled)

    def add(self, label: str, tensor: Tensor) -> None:
        """Add one tensor, which must not change, by a name that says what it is in any checkpoint."""
        self._later([(label, tensor)])

    def _later(self, labelled: Sequence[tuple[str, Tensor]]) -> None:
        # No more than one block waits, so that none is kept in memory that is done with.
        before, self._last = self._last, self._worker.submit(self._add, labelled)
        if before is not None:
            before.result()

    def _add(self, labelled: Sequence[tuple[str, Tensor]]) -> None:
        for label, tensor in labelled:
            self._hash.update(label.encode())
            self._hash.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)

    def hexdigest(self) -> str:
        """The digest so far."""
        if self._last is not None:
            self._last.result()
        return self._hash.hexdigest()
