"""Measurements with numbers as real ones look, without measuring anything."""

import math
import random
from collections.abc import Sequence
from itertools import combinations, islice
from pathlib import Path

from isobasin.records.curves import finished_curves
from isobasin.records.file import Measured, RecordFile
from isobasin.records.schema import (
    AlignmentRecord,
    DataRecord,
    LayerRecord,
    ModelRecord,
    PointRecord,
    RunRecord,
    StreamRecord,
    UnitsRecord,
)

METHODS = ("none", "heads", "paper", "gauss-newton")
_HEIGHT = {"none": 2.4, "heads": 1.3, "orthogonal": 0.7, "paper": 0.33, "gauss-newton": 0.14}


def run(
    names: Sequence[str] = ("model-1", "model-2", "model-3"),
    methods: Sequence[str] = METHODS,
    points: int = 25,
    batches: int = 3,
    task: str = "image-classification",
) -> RunRecord:
    """The first line of a measurement."""
    return RunRecord(
        models=tuple(
            ModelRecord(name=name, sha256=f"{index:x}3e9a0" * 10) for index, name in enumerate(names, start=1)
        ),
        data=DataRecord(source="digits", split="test", task=task, examples=540, sha256="7f31c2" * 10),
        t=tuple(i / (points - 1) for i in range(points)),
        methods=tuple(methods),
        group_weights=(256.0,) * (batches - 1) + (28.0,),
        settings={"seed": 0, "max_condition": 100.0, "columns": None, "device": "cpu", "methods": list(methods)},
        versions={"isobasin": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
    )


def point(run: RunRecord, pair: tuple[int, int], method: str, t: float) -> PointRecord:
    """A smooth bump between two ends that all methods share, with an accuracy that falls where it rises."""
    chance = random.Random(f"{pair} {method}")
    bump = _HEIGHT.get(method, 1.0) * chance.uniform(0.6, 1.1) * math.sin(math.pi * t) ** 3
    loss = (1 - t) * (0.11 + 0.01 * pair[0]) + t * (0.11 + 0.01 * pair[1]) + bump
    noise = random.Random(f"{pair} {method} {t}")
    metrics = {"accuracy": max(0.1, 0.97 - 0.32 * bump)}
    if run.data.task.endswith("lm"):
        metrics = {"perplexity": math.exp(3 * loss), "bits_per_character": loss / math.log(2)}
    return PointRecord(
        pair=pair,
        method=method,
        t=t,
        loss=loss,
        group_losses=tuple(loss * (1 + noise.uniform(-0.05, 0.05)) for _ in run.group_weights),
        metrics=metrics,
        calibrated_loss=loss - 0.4 * bump,
        temperature=1 + 0.8 * bump,
        seconds=0.31,
        interpolation_seconds=0.012,
    )


def alignment(pair: tuple[int, int], method: str, layers: int = 2, heads: int = 4) -> AlignmentRecord:
    """Layers whose costs are low where the heads were paired; of Gauss-Newton, units and stream too."""
    chance, maps = random.Random(f"{pair}"), random.Random(f"{pair} {method}")
    found: list[LayerRecord] = []
    for layer in range(layers):
        permutation = list(range(heads))
        chance.shuffle(permutation)
        costs = [
            [chance.uniform(0.8, 1.6) * (0.25 if permutation[i] == j else 1.0) for j in range(heads)]
            for i in range(heads)
        ]
        before = chance.uniform(6, 11)
        found.append(
            LayerRecord(
                layer=layer,
                distance_before=before,
                distance_after=before * (0.25 + 0.3 * _HEIGHT.get(method, 1.0)),
                condition=1.0 if method in ("heads", "orthogonal") else math.exp(maps.uniform(0.7, 4.0)),
                iterations=0 if method in ("heads", "orthogonal") else maps.randint(4, 30),
                status="exact" if method in ("heads", "orthogonal") else "converged",
                head_permutation=tuple(permutation),
                head_costs=tuple(map(tuple, costs)),
            )
        )
    record = AlignmentRecord(pair=pair, method=method, seconds=0.8, layers=tuple(found))
    if method != "gauss-newton":
        return record
    units = tuple(
        UnitsRecord(
            block=str(layer),
            distance_before=9.0 + layer,
            distance_after=8.0 + layer / 2,
            status="optimal",
            units=64,
            moved_units=16 * (layer + 1),
        )
        for layer in range(layers)
    )
    stream = StreamRecord(
        group="O(63)", width=64, distance_before=31.5, distance_after=20.25, condition=1.0, start="embeddings", sweeps=7
    )
    return record.model_copy(update={"feedforward": units, "stream": stream})


def write(
    folder: Path, run: RunRecord, *, layers: int = 2, heads: int = 4, points: int | None = None, most: int | None = None
) -> Measured:
    """Write a measurement to `folder`: all of it, or only its first `points` points."""
    file = RecordFile(folder)
    file.append(run)
    keys = [(pair, method) for pair in combinations(range(len(run.models)), 2) for method in run.methods]
    lines = ((key, t) for key in islice(keys, most) for t in run.t)
    for (pair, method), t in islice(lines, points):
        if t == 0 and method != "none":
            file.append(alignment(pair, method, layers, heads))
        file.append(point(run, pair, method, t))
    for curve in finished_curves(RecordFile.read(folder)).values():
        file.append(curve)
    return RecordFile.read(folder)
