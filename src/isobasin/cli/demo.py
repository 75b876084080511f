"""`isobasin demo`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from isobasin.cli import options
from isobasin.cli.console import console, quiet, show, show_json, show_path
from isobasin.cli.tables import table
from isobasin.errors import DEMO_EXTRA, needing

EXAMPLE = "isobasin demo -o demo-output"


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for the models, the plot and the figures.")
    ] = Path("demo-output"),
    quick: Annotated[bool, typer.Option("--quick", help="Train a few steps only, to see that it runs.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that isn't the demo's, beside what it holds.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Train small models on digits, align them, and show what happens to the loss between them."""
    with quiet():
        from isobasin.cli.experiment_progress import watching

        with needing("the demo trains and draws", DEMO_EXTRA):
            from isobasin.demo import run_demo

        screen = console(stderr=True)
        found = run_demo(output, quick=quick, force=force, watching=partial(watching, screen=screen))
    if as_json:
        show_json(found)
        return
    show(_models(found), _barriers(found))
    show_path("Plot:", found["plots"][0])
    show("", *_undone(found["scramble"]), "")
    print(f"Done in {found['seconds']:.0f} s. Try next, on the models of this demo:")
    print(*(f"  {line}" for line in _next(output)), sep="\n")
    print("and on your own checkpoints, folders or hub ids:")
    program = _program()
    print(f"  {program} align path/to/reference path/to/model -o aligned")
    print(f"  {program} interpolate path/to/reference aligned -t 0.5 -o merged")


def _models(found: dict[str, Any]) -> Table:
    rows = table("model", "loss", "accuracy", left=["model"], title="On test images")
    for model in found["models"]:
        rows.add_row(model["name"], f"{model['test_loss']:.3f}", f"{100 * model['test_accuracy']:.1f} %")
    return rows


def _barriers(found: dict[str, Any]) -> Table:
    naive, *ways = found["pairs"][0]["curves"]
    columns = (part for way in ways for part in (way, "%"))
    rows = table("models", naive, *columns, left=["models"], title="Loss barriers, and % of naive")
    for pair in found["pairs"]:
        row = [" and ".join(map(str, pair["models"])), f"{pair['curves'][naive]['barrier']:.3f}"]
        for way in ways:
            curve = pair["curves"][way]
            percent = curve["percent_of_naive"]
            row += [f"{curve['barrier']:.3f}", "–" if percent is None else f"{percent:.1f}"]
        rows.add_row(*row)
    return rows


def _undone(found: dict[str, Any]) -> Iterator[str]:
    """How scrambling and undoing it went."""
    yield (
        f"model-1 scrambled by a random group element: heads permuted, biases shifted, every map of condition number "
        f"{found['condition']:g}."
    )
    yield f"  its outputs change by      {found['function_difference']:.1e} (relative)"
    before, after = found["distance_before"], found["distance_after"]
    yield f"  distance of the weights    {before:.4g} scrambled, {after:.1e} after align"
    yield f"  heads in their own place   {found['heads_restored']} of {found['heads']}"


def _next(folder: Path) -> Iterator[str]:
    """What to try next: every line runs as it stands, on the demo's models."""
    program, quoted = _program(), lambda name: shlex.quote(str(folder / name))
    one, two, aligned = quoted("model-1"), quoted("model-2"), quoted("try-aligned")
    yield f"{program} align {one} {two} -o {aligned}"
    yield f"{program} verify {two} {aligned}"
    yield f"{program} interpolate {one} {aligned} -t 0.5 -o {quoted('try-middle')}"
    yield f"{program} equivalent {one} {quoted('model-1-scrambled')}"
    yield f"{program} symmetry {one}"


def _program() -> str:
    """How this program can be started from here."""
    here = Path(sys.executable).with_name("isobasin")
    found = shutil.which("isobasin")
    if found is not None and (not here.exists() or Path(found).samefile(here)):
        return "isobasin"
    if not here.exists():
        return f"{shlex.quote(sys.executable)} -m isobasin"
    inside = here.is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(here) if inside else str(here))
