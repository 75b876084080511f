"""`isobasin demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from isobasin.cli.console import console, quiet, show_json
from isobasin.cli.options import JsonOption

EXAMPLE = "isobasin demo -o demo-output"


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for the models, the plot and the figures.")
    ] = Path("demo-output"),
    quick: Annotated[bool, typer.Option("--quick", help="Train a few steps only, to see that it runs.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that isn't the demo's, beside what it holds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train small models on digits, align them, and show what happens to the loss between them."""
    with quiet():
        from isobasin.demo import run_demo

        results = Console(file=sys.stderr, quiet=True) if as_json else console()
        found = run_demo(output, quick=quick, force=force, console=results, progress=console(stderr=True))
    if as_json:
        show_json(found)
