"""A measure of the line and its gradient, step by step or replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from isobasin.errors import IsobasinError, first_line, warn

# Steps before a graph is recorded: libraries choose and allocate what they need in the first ones.
_WARM = 3

AnyMeasure = Callable[[Tensor, Any], Tensor]


class Gradients(Protocol):
    """Puts the gradient of a measure at a point of the line, on a batch, into the coordinates; returns the measure."""

    def __call__(self, t: Tensor, batch: Any) -> Tensor:
        """One gradient."""
        ...


class Stepwise:
    """Every operation is launched when it is asked for."""

    def __init__(self, measure: AnyMeasure, coordinates: Sequence[Tensor]) -> None:
        """Take gradients of a measure by coordinates."""
        self._measure, self._coordinates = measure, coordinates

    def __call__(self, t: Tensor, batch: Any) -> Tensor:
        """One gradient."""
        for x in self._coordinates:
            x.grad = None
        loss = self._measure(t, batch)
        loss.backward()
        return loss.detach()


class Replayed:
    """All operations are recorded once, for batches of one shape, and launched together from then on.

    A step of a small model is thousands of small operations, and a GPU waits for each of them to be launched. Batches
    of other shapes, and models that can't be recorded since they ask for values, go step by step.
    """

    def __init__(self, measure: AnyMeasure, coordinates: Sequence[Tensor]) -> None:
        """Take gradients of a measure by coordinates; both are on a GPU."""
        self._stepwise, self._coordinates = Stepwise(measure, coordinates), coordinates
        self._steps = 0
        self._shapes: Any = None
        self._graph: Any = None

    @property
    def recorded(self) -> bool:
        """Whether there is a graph."""
        return self._graph is not None

    def __call__(self, t: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """One gradient."""
        self._steps += 1
        if self._steps == _WARM:
            self._record(t, batch)
        if self._graph is None or _shapes(batch) != self._shapes:
            return self._stepwise(t, batch)
        self._t.copy_(t)
        for name, x in batch.items():
            if isinstance(x, Tensor):
                self._batch[name].copy_(x)
        self._graph.replay()
        for x, slope in zip(self._coordinates, self._slopes, strict=True):
            x.grad = slope
        return self._loss.clone()

    def _record(self, t: Tensor, batch: Mapping[str, Any]) -> None:
        self._shapes = _shapes(batch)
        self._t, self._batch = t.clone(), {n: x.clone() if isinstance(x, Tensor) else x for n, x in batch.items()}
        try:
            beside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                self._stepwise(self._t, self._batch)
            torch.cuda.current_stream().wait_stream(beside)
            with torch.cuda.graph(graph):
                self._loss = self._stepwise(self._t, self._batch)
        except (RuntimeError, IsobasinError) as error:
            # Step by step either it goes well, or what is wrong is said.
            warn(f"a step can't be recorded as one CUDA graph, and so takes several times as long: {first_line(error)}")
            return
        self._slopes, self._graph = [x.grad for x in self._coordinates], graph


def _shapes(batch: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, x.shape if isinstance(x, Tensor) else x) for name, x in batch.items()]


def gradients(measure: AnyMeasure, coordinates: Sequence[Tensor], *, recordable: bool) -> Gradients:
    """How gradients are taken: replayed where there is a GPU and a line whose batches are on it."""
    on_gpu = all(x.is_cuda for x in coordinates)
    return Replayed(measure, coordinates) if recordable and on_gpu else Stepwise(measure, coordinates)
