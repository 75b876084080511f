"""What a pair's records say, without how long it took: what is compared, and shown, of its lines."""

from __future__ import annotations

from typing import Any

from isobasin.records.curves import finished_curves
from isobasin.records.file import Measured

_CURVE = (
    "barrier",
    "worst_t",
    "barrier_error",
    "relative",
    "share_of_ends",
    "calibrated_barrier",
    "calibrated_worst_t",
)


def line_results(measured: Measured) -> dict[str, Any]:
    """The lines of a pair, by method, as plain values: losses, metrics, barriers.

    Args:
        measured: The records of two models.
    """
    curves = {method: curve for (_, method), curve in finished_curves(measured).items()}
    lines: dict[str, Any] = {}
    for method in measured.run.methods:
        points = measured.points[(0, 1), method]
        lines[method] = {name: getattr(curves[method], name) for name in _CURVE} | {
            "losses": [point.loss for point in points],
            "metrics": {name: [point.metrics[name] for point in points] for name in points[0].metrics},
        }
    return {
        "models": [model.sha256 for model in measured.run.models],
        "test_data": measured.run.data.model_dump(mode="json"),
        "t": list(measured.run.t),
        "lines": lines,
    }
