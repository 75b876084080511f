"""Experiments so small that their cells take a moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from isobasin.execution.tasks import Failure
from isobasin.experiments.cells import Cell
from isobasin.experiments.settings import ExperimentSettings

CONFIGURATION: dict[str, Any] = {
    "schema_version": 1,
    "title": "small",
    "models": {
        "vit": {"family": "vit", "layers": 2, "width": 16, "heads": 2, "feedforward": 16, "patch": 4},
        "rotary": {
            "family": "vit",
            "positions": "rotary",
            "layers": 2,
            "width": 16,
            "heads": 2,
            "feedforward": 16,
            "patch": 4,
        },
    },
    "data": {"digits": {"source": "digits", "task": "image-classification", "max_train": 40, "max_test": 20}},
    "training": {"quick": {"steps": 2, "batch": 8, "rate": 1e-3}},
    "settings": [{"model": "vit", "data": "digits", "pretrain": "quick", "finetune": "quick"}],
    "scopes": ["first-attention"],
    "seeds": [1, 2],
    "methods": ["none", "gauss-newton"],
    "points": 3,
}


def small(**changes: Any) -> ExperimentSettings:
    """The settings, some entries replaced."""
    return ExperimentSettings.model_validate(CONFIGURATION | changes)


@dataclass
class Seen:
    """A watcher that keeps what it sees, by label."""

    started_cells: list[str] = field(default_factory=list)
    done_cells: list[str] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)

    def started(self, cell: Cell) -> None:
        self.started_cells.append(cell.label)

    def progress(self, cell: Cell, what: str, done: int, total: int) -> None:
        pass

    def done(self, cell: Cell, seconds: float) -> None:
        self.done_cells.append(cell.label)

    def failed(self, cell: Cell, failure: Failure) -> None:
        self.failures[cell.label] = failure
