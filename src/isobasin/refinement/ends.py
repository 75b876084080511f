"""The two ends of a line: models where it begins, and what moves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.memory import carried
from isobasin.model import Blocks
from isobasin.refinement.chart import Chart
from isobasin.tensor_blocks import TensorBlocks


@dataclass(frozen=True)
class End:
    """One end of the line.

    Attributes:
        start: Its tensors where it begins, real ones in the type of the line.
        types: Those that they are stored in.
        chart: Its coordinates; None if it stays.
    """

    start: Mapping[str, Tensor]
    types: Mapping[str, torch.dtype]
    chart: Chart | None

    @classmethod
    def of(
        cls,
        model: Blocks,
        start: Alignment,
        *,
        moved: bool,
        movable: bool = False,
        device: str = "cpu",
        dtype: torch.dtype = torch.float64,
        stretching: float = 1.0,
    ) -> End:
        """A model as an end of the line.

        Args:
            model: The model.
            start: Where the line begins; its scope says what coordinates there are.
            moved: Whether this is the model that `start` moves.
            movable: Whether it gets coordinates.
            device: Where it is.
            dtype: The type of the line.
            stretching: As of `Chart`.
        """
        types = model.dtypes()
        stored = model.read(types)
        tensors = {
            name: carried(t, device, torch.float64) if t.is_floating_point() else t for name, t in stored.items()
        }
        for changed in start.moved(model, device) if moved else ():
            tensors |= changed
        chart = None
        if movable:
            keep = start.stream is not None and start.stream.group.keep_gains
            stream = None if start.stream is None else model.stream(keep_gains=keep)
            feedforwards = model.feedforwards() if start.feedforward else ()
            described = replace(model.specification, feedforwards=feedforwards, stream=stream)
            blocks = TensorBlocks(model.name, tensors, described)
            chart = Chart(
                blocks,
                feedforward=bool(start.feedforward),
                stream=stream,
                device=device,
                dtype=dtype,
                stretching=stretching,
            )
        cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        return cls(cast, types, chart)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors at the coordinates."""
        return {**self.start, **({} if self.chart is None else self.chart.tensors())}


def ends_of(
    a: Blocks, b: Blocks, start: Alignment, *, moves: tuple[bool, bool], device: str = "cpu"
) -> tuple[End, End]:
    """The ends of the line from a model to another after a move; `moves` says which get coordinates."""
    dtype = type_of(a, b)
    return (
        End.of(a, start, moved=False, movable=moves[0], device=device, dtype=dtype),
        End.of(b, start, moved=True, movable=moves[1], device=device, dtype=dtype),
    )


def type_of(*models: Blocks) -> torch.dtype:
    """The type in which the line between models is computed: single precision, unless one is stored in double."""
    return torch.float64 if any(torch.float64 in model.dtypes().values() for model in models) else torch.float32
