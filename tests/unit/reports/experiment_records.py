"""An experiment whose records are made up: every number in its report is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from isobasin.experiments.cells import RECORD, Cell
from isobasin.experiments.run import Experiment
from isobasin.experiments.settings import ExperimentSettings

MODEL = {"family": "vit", "layers": 2, "width": 16, "heads": 2, "feedforward": 16, "patch": 4}
ABLATIONS = {"stage_1": True, "stage_2": True, "head_costs": True, "reinitialise": True, "alignments": {"steps": 5}}
SETTINGS = ExperimentSettings.model_validate(
    {
        "title": "a study",
        "models": {"vit": MODEL, "rotary": {**MODEL, "positions": "rotary"}},
        "data": {"digits": {"source": "digits", "task": "image-classification"}},
        "training": {"quick": {"steps": 2, "batch": 8, "rate": 1e-3}},
        "settings": [
            {
                "model": model,
                "data": "digits",
                "pretrain": "quick",
                "finetune": "quick",
                "ablations": ABLATIONS | ({"symmetry_breaking": [0, 4]} if model == "rotary" else {}),
            }
            for model in ("vit", "rotary")
        ],
        "scopes": ["first-attention", "entire-model"],
        "seeds": [1, 2, 3],
        "methods": ["none", "gauss-newton"],
        "points": 3,
    }
)
# Barriers of the pairs 1-2, 1-3, 2-3; every end has a loss of 1.
NAIVE, OURS = (1.0, 2.0, 4.0), (0.02, 0.5, 0.04)
PAIRS = ((1, 2), (1, 3), (2, 3))


def line(barrier: float | None, naive: float) -> dict[str, Any]:
    return {
        "barrier": barrier,
        "relative": None if barrier is None else barrier / naive,
        "share_of_ends": barrier,
        "losses": [1.0, None if barrier is None else 1 + barrier, 1.0],
        "metrics": {"accuracy": [0.9, 0.5, 0.9]},
    }


def curve(barrier: float, **extra: Any) -> dict[str, Any]:
    return {"barrier": barrier, "t": [0, 0.5, 1], "losses": [1, 1 + barrier, 1], **extra}


def result(cell: Cell) -> dict[str, Any]:
    """What a cell of its kind finds."""
    if cell.kind == "pretrain":
        return {"test": {"loss": 0.5, "metrics": {"accuracy": 0.95}}}
    if cell.kind == "finetune":
        return {"test": {"loss": 1.0, "metrics": {"accuracy": 0.9}}}
    if cell.kind == "reinitialise":
        layers = [{"layer": i, "draws": [{"loss": i + 1.0}, {"loss": i + 2.0}]} for i in range(2)]
        return {"pretrained": {"loss": 0.5}, "layers": layers}
    index = PAIRS.index((cell.needs[0].spec["seed"], cell.needs[1].spec["seed"]))
    naive, ours = NAIVE[index], OURS[index]
    if cell.kind == "pair":
        return {"t": [0, 0.5, 1], "lines": {"none": line(naive, naive), "gauss-newton": line(ours, naive)}}
    if cell.kind == "stage-1":
        rows = [curve(0.1, heads=[1, 0], chosen=False), curve(0.2, heads=[0, 1], chosen=True)]
        return {"layer": 0, "rank": 2, "of": 2, "l_hat": 25.0, "naive": curve(naive), "permutations": rows}
    if cell.kind == "stage-2":
        shares = {"none": 100, "heads": 80, "orthogonal": 12, "paper": 9, "gauss-newton": 8}
        return {"methods": {m: curve(share * naive / 100, percent=share + index) for m, share in shares.items()}}
    if cell.kind == "head-costs":
        rows = {"rotary": curve(0.1, percent=10, heads=[[0, 1]]), "cosine": curve(0.2, percent=20, heads=[[1, 0]])}
        return {"costs": {"none": curve(naive, percent=100), **rows}}
    if cell.kind == "alignments":
        ways = {"none": naive, "attention": ours, "refined": ours / 2}
        found = {way: curve(barrier, percent=100 * barrier / naive, middle=barrier) for way, barrier in ways.items()}
        seconds = {"attention": 1.0 + index, "refined": 60.0}
        return {"ways": found | {"circuits": {"middle": 0.25}}, "seconds": seconds}
    groups = {
        name: curve(barrier, loss=1.0 + rise, loss_before=1.0, change={"0": 0.0, "4": rise})
        for name, barrier, rise in (("H", 0.1, 0.0), ("GL", 0.2, 0.75))
    }
    return {"naive": curve(naive), "groups": groups}


def write(folder: Path, without: tuple[str, ...] = ()) -> Experiment:
    """An experiment, all cells done but those of some kinds."""
    experiment = Experiment.begin(SETTINGS, folder)
    for cell in experiment.cells():
        if cell.kind not in without:
            path = experiment.store.path(cell)
            path.mkdir(parents=True)
            (path / RECORD).write_text(json.dumps({"key": cell.key, "result": result(cell)}))
    return experiment
