"""The demo from training to the last line that it prints."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from isobasin.checkpoints.output import disk_errors
from isobasin.demo import place, report
from isobasin.demo.digits import Images, evaluate, load_digits, new_model, train, with_new_attention
from isobasin.demo.figure import draw
from isobasin.demo.measure import Pair, Undone, measure_pair, scramble_and_undo
from isobasin.demo.recipe import EXTRA, QUICK, Recipe
from isobasin.demo.report import Reporter
from isobasin.lines.path import points
from isobasin.reports.figures import require_matplotlib
from isobasin.text import as_json


def run_demo(
    output: str | os.PathLike[str] = "demo-output",
    *,
    force: bool = False,
    quick: bool = False,
    console: Console | None = None,
    progress: Console | None = None,
) -> dict[str, Any]:
    """Train small ViTs on digits, align them, measure the barriers; scramble one and undo it.

    What is trained and measured is in `Recipe`. The models are left in the output folder as ordinary checkpoints,
    with the plot and all figures.

    Args:
        output: Folder to write to. It may exist if it is empty or an earlier demo's, whose files are replaced.
        force: Write into a folder that isn't the demo's; only files with the names of the demo's are replaced.
        quick: A few steps of training only, to try the demo itself.
        console: Where the results are printed; None for standard output.
        progress: Where progress is shown; None for standard error.

    Returns:
        All figures, as plain values: "models", "pairs", "scramble", "recipe", "plots", "output", "seconds".

    Raises:
        DependencyError: scikit-learn or matplotlib is missing.
        OutputError: The output folder can't or may not be written.
    """
    started = time.monotonic()
    recipe = QUICK if quick else Recipe()
    reporter = Reporter(console or Console(), progress or Console(stderr=True))
    require_matplotlib(EXTRA)
    with reporter.steps("loading transformers and the digits", 1) as advance:
        train_set, test_set = load_digits(recipe.split_seed)
        folder = place.prepare(output, len(recipe.seeds), force)
        import_module("transformers.models.vit.modeling_vit")
        advance()
    with _one_thread(), _no_loading_bars():
        models = _train_models(folder, recipe, train_set, test_set, reporter)
        reporter.results.print(report.models_table(models))
        pairs = _measure_pairs(folder, recipe, test_set, reporter)
        plots = [folder / f"{place.PLOT}.{suffix}" for suffix in ("png", "svg")]
        with disk_errors(folder):
            draw(pairs, plots)
        reporter.results.print(report.barriers_table(pairs))
        reporter.say(f"Plot: {plots[0]}")
        with reporter.steps("scrambling a model and undoing it", 1) as advance:
            undone = scramble_and_undo(folder, recipe.scramble_seed, recipe.condition)
            advance()
    figures: dict[str, Any] = {
        "output": str(folder),
        "recipe": asdict(recipe),
        "models": models,
        "pairs": [pair.to_json() for pair in pairs],
        "plots": [str(path) for path in plots],
        "scramble": asdict(undone),
        "seconds": time.monotonic() - started,
    }
    with disk_errors(folder):
        (folder / place.FIGURES).write_text(as_json(figures, indent=2) + "\n")
    _finish(folder, undone, figures["seconds"], reporter)
    return figures


def _train_models(
    folder: Path, recipe: Recipe, train_set: Images, test_set: Images, reporter: Reporter
) -> list[dict[str, Any]]:
    """Train the base and the models made from it; save the latter."""
    base = new_model(recipe.base_seed)
    steps, rate = recipe.base_steps, recipe.base_rate
    with reporter.steps("training the base model", steps) as advance:
        settings: dict[str, Any] = {"recipe": recipe, "advance": advance}
        train(base, base.parameters(), train_set, steps=steps, rate=rate, seed=recipe.base_seed, **settings)
    rows = [_row("base", base, test_set)]
    steps, rate = recipe.tuning_steps, recipe.tuning_rate
    for number, seed in enumerate(recipe.seeds, start=1):
        name = place.model_name(number)
        with reporter.steps(f"training a new first attention layer: {name}", steps) as advance:
            model, layer = with_new_attention(base, seed)
            train(model, layer, train_set, steps=steps, rate=rate, recipe=recipe, seed=seed, advance=advance)
        with disk_errors(folder):
            model.save_pretrained(folder / name)
        rows.append(_row(name, model, test_set))
    return rows


def _row(name: str, model: Any, test_set: Images) -> dict[str, Any]:
    loss, accuracy = evaluate(model, test_set)
    return {"name": name, "test_loss": loss, "test_accuracy": accuracy}


def _measure_pairs(folder: Path, recipe: Recipe, test_set: Images, reporter: Reporter) -> list[Pair]:
    """Align every pair and measure its barriers."""
    found: list[Pair] = []
    for first, second in place.pairs(len(recipe.seeds)):
        what = f"aligning models {first} and {second}, losses along 3 lines"
        with reporter.steps(what, 3 * recipe.points) as advance:
            found.append(measure_pair(folder, first, second, test_set, points(recipe.points), advance))
    return found


def _finish(folder: Path, undone: Undone, seconds: float, reporter: Reporter) -> None:
    """The scrambled model's lines, and what to try next."""
    reporter.say()
    for line in report.undone_lines(undone):
        reporter.say(line)
    reporter.say()
    reporter.say(f"Done in {seconds:.0f} s. Try next, on the models of this demo:")
    for line in report.next_commands(folder):
        reporter.say(f"  {line}")
    reporter.say("and on your own checkpoints, folders or hub ids:")
    for line in report.own_commands():
        reporter.say(f"  {line}")


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    """Torch on one thread: these models are so small that two are hardly faster, and far slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _no_loading_bars() -> Generator[None]:
    """No progress bars of transformers' own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
