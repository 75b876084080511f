"""The demo: proof, on models trained here and now by a packaged experiment, that aligning lowers the loss barrier."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from isobasin.checkpoints import check_output, temporary_folder
from isobasin.checkpoints.output import disk_errors, install, replace_text, staged
from isobasin.errors import DEMO_EXTRA, OutputError
from isobasin.experiments.cells import MODEL, TRAINED, Cell
from isobasin.experiments.configuration import read
from isobasin.experiments.data import data_root, rows
from isobasin.experiments.plan import Seeds
from isobasin.experiments.run import Experiment, Watcher, perform
from isobasin.experiments.settings import ExperimentSettings
from isobasin.experiments.work import RunOptions
from isobasin.plain import as_json
from isobasin.records.curves import NAIVE
from isobasin.reports.experiment_figures import curves
from isobasin.reports.figures import require_matplotlib
from isobasin.verbs.align import align
from isobasin.verbs.apply import apply
from isobasin.verbs.scramble import random_alignment

MARKER, FIGURES, PLOTS = ".isobasin-demo", "figures.json", ("barriers.png", "barriers.svg")
SCRAMBLED, RESTORED = "model-1-scrambled", "model-1-restored"
WAYS = {NAIVE: "naive", "heads": "heads only", "gauss-newton": "aligned"}
"""What the methods are called."""

# Steps of training and points of a line, to see only that it runs.
_QUICK = {"pretrain": 12, "finetune": 6}, 5
# Condition number of every map of the random group element.
_CONDITION = 100.0

Watching = Callable[[Sequence[Cell]], AbstractContextManager[Watcher]]


class _Nobody(Watcher):
    """Looks away."""


def run_demo(
    output: str | os.PathLike[str] = "demo-output",
    *,
    force: bool = False,
    quick: bool = False,
    watching: Watching = lambda _: nullcontext(_Nobody()),
) -> dict[str, Any]:
    """Train small ViTs on digits, align them, measure the barriers; scramble one and undo it.

    What is trained and measured is the packaged experiment "demo". The models are left in the output folder as ordinary
    checkpoints, with the plot and all figures.

    Args:
        output: Folder to write to. It may exist if it is empty or an earlier demo's, whose files are replaced.
        force: Write into a folder that isn't the demo's; only files with the names of the demo's are replaced.
        quick: A few steps of training only, to try the demo itself.
        watching: From the cells of the experiment to who is told how they go.

    Returns:
        All figures, as plain values: "models", "pairs", "scramble", "recipe", "plots", "output", "seconds".

    Raises:
        DependencyError: scikit-learn or matplotlib is missing.
        OutputError: The output folder can't or may not be written.
    """
    started = time.monotonic()
    require_matplotlib(DEMO_EXTRA)
    settings = _settings(quick)
    rows(settings.data["digits"], "train", data_root())
    folder = prepare(output, settings.seeds, force)
    with _one_thread(), temporary_folder() as scratch:
        experiment = Experiment.begin(settings, Path(scratch) / "experiment")
        models = _trained(experiment, folder, watching)
        (plan,) = experiment.plans
        plots = curves(plan, partial(_result, experiment), folder, PLOTS)
        pairs = [_pair(_result(experiment, cell), seeds, folder) for seeds, cell in plan.groups[0].pairs.items()]
        undone = _scramble_and_undo(folder)
    figures: dict[str, Any] = {
        "output": str(folder),
        "recipe": settings.model_dump(mode="json"),
        "models": models,
        "pairs": pairs,
        "plots": [str(path) for path in plots],
        "scramble": undone,
        "seconds": time.monotonic() - started,
    }
    replace_text(folder / FIGURES, as_json(figures, indent=2) + "\n")
    return figures


def prepare(output: str | os.PathLike[str], seeds: Sequence[int], force: bool) -> Path:
    """Make the output folder, without what an earlier demo left there; other files in it stay.

    Args:
        output: The folder.
        seeds: Of the models that are trained.
        force: Whether a folder that no demo made may be written into.

    Raises:
        OutputError: It isn't empty and no demo made it, or it can't be written.
    """
    folder = Path(output)
    check_output(folder, force=True)
    if folder.is_dir() and any(folder.iterdir()) and not (force or (folder / MARKER).is_file()):
        raise OutputError(f"{output}: exists and isn't a demo's: name another folder, or write into it with --force")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text("Made by `isobasin demo`, which replaces its own files here when it runs again.\n")
        for path in (folder / name for name in own_names(seeds)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return folder


def own_names(seeds: Sequence[int]) -> list[str]:
    """Everything that a demo writes, by name."""
    aligned = [_aligned_name(first, second) for second in seeds for first in seeds if first < second]
    return [*map(_model_name, seeds), *aligned, SCRAMBLED, RESTORED, *PLOTS, FIGURES]


def _model_name(seed: int) -> str:
    return f"model-{seed}"


def _aligned_name(first: int, second: int) -> str:
    return f"{_model_name(second)}-aligned-to-{first}"


def _settings(quick: bool) -> ExperimentSettings:
    settings = read("demo")
    if not quick:
        return settings
    steps, points = _QUICK
    training = {name: one.model_copy(update={"steps": steps[name]}) for name, one in settings.training.items()}
    return settings.model_copy(update={"training": training, "points": points})


def _trained(experiment: Experiment, folder: Path, watching: Watching) -> list[dict[str, Any]]:
    """Do all cells, and keep the models that were made from the base; how well all of them do."""
    cells, options = experiment.cells(), RunOptions("cpu", data_root())
    with watching(cells) as watcher:
        for cell in cells:
            watcher.started(cell)
            seconds = perform(cell, partial(watcher.progress, cell), out=experiment.folder, options=options)
            watcher.done(cell, seconds)
    models: list[dict[str, Any]] = []
    for cell in cells:
        if cell.kind in TRAINED:
            name, test = "base", _result(experiment, cell)["test"]
            if cell.needs:
                name = _model_name(cell.spec["seed"])
                with disk_errors(folder), staged(folder / name) as staging:
                    shutil.copytree(experiment.store.path(cell) / MODEL, staging)
                    install(staging, folder / name, force=False)
            models.append({"name": name, "test_loss": test["loss"], "test_accuracy": test["metrics"]["accuracy"]})
    return models


def _result(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    record = experiment.store.record(cell)
    assert record is not None
    return record["result"]


def _pair(result: dict[str, Any], seeds: Seeds, folder: Path) -> dict[str, Any]:
    """The curves of two models, the second of which is left aligned to the first."""
    first, second = seeds
    alignment = align(folder / _model_name(first), folder / _model_name(second), folder / _aligned_name(*seeds))
    curves = {
        WAYS[method]: {
            "barrier": line["barrier"],
            "worst_t": line["worst_t"],
            "percent_of_naive": None if line["relative"] is None else 100 * line["relative"],
            "losses": line["losses"],
        }
        for method, line in result["lines"].items()
    }
    return {"models": list(seeds), "t": result["t"], "distance": alignment.distance(), "curves": curves}


def _scramble_and_undo(folder: Path) -> dict[str, Any]:
    """Scramble the first model, and align it to what it was.

    Both results are stored in float64, so that what is measured is the method and not the rounding of a file.
    """
    model, scrambled = folder / _model_name(1), folder / SCRAMBLED
    planted = random_alignment(model, condition=_CONDITION)
    verified = apply(planted, model, scrambled, dtype=torch.float64).verified
    assert verified is not None
    found = align(model, scrambled, folder / RESTORED)
    home = [
        there.element.head_permutation()[back.element.head_permutation()].tolist()
        for there, back in zip(planted.layers, found.layers, strict=True)
    ]
    distance = found.distance()
    return {
        "condition": _CONDITION,
        "function_difference": verified.max_rel,
        "distance_before": distance["before"],
        "distance_after": distance["after"],
        "heads": sum(map(len, home)),
        "heads_restored": sum(head == place for heads in home for place, head in enumerate(heads)),
    }


@contextmanager
def _one_thread() -> Generator[None]:
    """Torch on one thread: these models are so small that two are hardly faster, and far slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
