"""What a user may choose, checked once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from isobasin.bounds import check_number
from isobasin.choices import Device, Dtype, HeadCost, Method, Objective, Scope
from isobasin.errors import DependencyError, IsobasinError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of its steps are, and how many there are."""

# Condition numbers up to which a move's rounding stays small in the type that its result is stored in.
MAX_CONDITION = {torch.float64: 1e8, torch.float32: 1e4, torch.float16: 1e2, torch.bfloat16: 1e2}


def silent(what: str, done: int, total: int) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Matching:
    """How two models are matched.

    Attributes:
        method: Stage-2 solver.
        head_cost: What stage 1 compares.
        max_condition: Largest condition number of any map on GL(n); None: by the type of the result;
            infinity: none is too large.
        scope: What of the models is matched.
        keep_gains: Whole models only: leave the gains of normalisations with their coordinates, so that the residual
            stream is permuted only.
        objective: What is brought near.
        untie: Open models with tied tensors apart, which frees the residual stream where a tied head holds it.
    """

    method: Method = Method.gauss_newton
    head_cost: HeadCost = HeadCost.rotary
    max_condition: float | None = None
    scope: Scope = Scope.attention
    keep_gains: bool = False
    objective: Objective = Objective.weights
    untie: bool = False

    def __post_init__(self) -> None:
        if self.max_condition is not None:
            check_number("max condition", self.max_condition, 1, math.inf)
        if self.keep_gains and self.scope is not Scope.model:
            raise IsobasinError("--keep-gains is about the residual stream: it goes with --scope model")

    @property
    def feedforward(self) -> bool:
        """Whether feed-forward blocks are matched as well as attention."""
        return self.scope.feedforward

    def limit(self, dtype: torch.dtype) -> float:
        """The largest condition number for a result stored in `dtype`."""
        return MAX_CONDITION.get(dtype, 1e2) if self.max_condition is None else self.max_condition


class Calibration(Protocol):
    """What data say of models; see `isobasin.refinement.calibration`."""

    def moments(self, model: Any, names: Collection[str]) -> dict[str, Tensor]:
        """Second moments of what weights of these names multiply, `E[[x, 1]^T [x, 1]]`, by name."""
        ...

    def starts(self, a: Any, b: Any, stream: Any) -> dict[str, Tensor]:
        """Further maps of the residual stream to start from, by name."""
        ...

    def scores(self, a: Any, b: Any, alignments: Sequence[Any]) -> list[float]:
        """What the best of several alignments has least of, for each."""
        ...


class Evaluating(Calibration, Protocol):
    """A calibration that also says how well a model does."""

    def loss(self, model: Any) -> float:
        """The loss of a model."""
        ...


_DTYPES = tuple(dtype.resolve() for dtype in Dtype)


@dataclass(frozen=True)
class Running:
    """Where work is done, what is written, and who is told.

    Attributes:
        device: Where the work is done; "auto" becomes the device that it stands for.
        dtype: Type of the moved weights; None keeps each tensor's.
        verify: Compare the functions before and after.
        force: Replace an existing output folder.
        progress: Called as the work goes on.
    """

    device: str = "cpu"
    dtype: torch.dtype | None = None
    verify: bool = True
    force: bool = False
    progress: Progress = silent

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise IsobasinError(f"dtype is {self.dtype!r}: give {', '.join(map(str, _DTYPES[1:]))}, or None")
        object.__setattr__(self, "device", chosen_device(self.device))


def chosen_device(device: str) -> str:
    """Where work is done: what "auto" stands for here, or the device that is named.

    Raises:
        DependencyError: It isn't there, or can't do what is asked of it (float64 and all).
    """
    if device == "auto":
        return "cuda" if _cuda_works() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is not None and found.type == "mps":
        raise DependencyError(f"device {device!r}: it has no float64, which the work is done in; use --device cpu")
    if found is None or found.type not in list(Device):
        raise DependencyError(f"device {device!r}: this is none of ours; use {', '.join(Device)} or cuda:N")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise DependencyError(f"device {device!r}: this torch sees no CUDA device; use --device cpu")
        if (found.index or 0) >= count:
            raise DependencyError(f"device {device!r}: the last one that this torch sees is cuda:{count - 1}")
    return str(device)


def _cuda_works() -> bool:
    """Whether there is a CUDA device that this torch can compute on: one may be too old for it, or its driver."""
    if not torch.cuda.is_available():
        return False
    try:
        return bool((torch.ones(1, dtype=torch.float64).to("cuda") + 1).cpu() == 2)
    except RuntimeError:
        return False
