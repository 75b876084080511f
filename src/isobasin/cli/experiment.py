"""`isobasin experiment`: init, schema, run, list, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isobasin.choices import Device, Runner
from isobasin.cli import options
from isobasin.cli.console import complain, console, quiet, show, show_json, show_path
from isobasin.cli.engines import engine_of
from isobasin.cli.tables import table
from isobasin.errors import EXPERIMENT_EXTRA, needing
from isobasin.plain import as_json as json_text
from isobasin.signals import Terminated

if TYPE_CHECKING:
    from isobasin.experiments.run import Experiment, Summary

EXAMPLE = "isobasin experiment run digits --smoke -o digits-smoke"
FAILED = 1
"""Exit code when cells failed."""

experiment = typer.Typer(
    name="experiment",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=f"Example: {EXAMPLE}",
)


FolderArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of an experiment that was run.")]


@experiment.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Pretrain, draw parts anew, fine-tune, match, measure, ablate: whole studies from one file."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


@experiment.command(epilog=f"Example: {EXAMPLE}")
def run(
    configuration: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a packaged configuration such as digits."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Folder for the results; an earlier run in it is continued."
        ),
    ] = None,
    engine: options.Engine = Runner.local,
    ray_address: options.RayAddress = None,
    workers: options.Workers = None,
    threads: options.Threads = None,
    device: options.Device = Device.auto,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Make all of it tiny and the data up, to see in seconds that it runs.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="SETTING", help="Only settings whose name has this in it; repeat it for more."),
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models/--no-keep-models", help="Whether models stay that nothing needs any more.")
    ] = True,
    as_json: options.Json = False,
) -> None:
    """Run an experiment, cell by cell; what is done already stays."""
    began = time.monotonic()
    folder = output or Path(f"experiment-{Path(configuration).stem}{'-smoke' if smoke else ''}")
    with quiet():
        from isobasin.cli.experiment_progress import watching
        from isobasin.execution.local import Here
        from isobasin.experiments.configuration import read
        from isobasin.experiments.data import data_root
        from isobasin.experiments.run import Experiment, run
        from isobasin.experiments.work import RunOptions
        from isobasin.verbs.settings import chosen_device

        place = chosen_device(device)
        runs = engine_of(engine, ray_address, workers, threads, place, folder) or Here()
        found = Experiment.begin(read(configuration), folder, smoke=smoke, only=only or ())
        cells = found.cells(only or ())
        try:
            with watching(found.left(cells), console(stderr=True)) as watcher:
                summary = run(found, cells, runs, RunOptions(place, data_root()), watcher, keep_models=keep_models)
        except (KeyboardInterrupt, Terminated):
            console(stderr=True).print("What is done is kept: the same command goes on from here.", soft_wrap=True)
            raise
    _show_summary(found, summary, time.monotonic() - began, as_json)


def _show_summary(found: Experiment, summary: Summary, seconds: float, as_json: bool) -> None:
    """What became of the run, on stdout; failures on stderr."""
    if as_json:
        ended = {"output": str(found.folder), "smoke": found.smoke, **vars(summary), "seconds": seconds}
        show_json(ended, "experiment run")
    else:
        lost = f", {len(summary.failed)} failed, {summary.blocked} not begun" if summary.failed else ""
        show(f"{summary.cells} cells: {summary.done} done now, {summary.kept} before or not needed{lost}.")
        show_path("Results:", found.folder)
        show_path("Tables and figures: isobasin experiment report", found.folder)
    for label, message in summary.failed.items():
        complain(f"{label}: {message}")
    if summary.failed:
        raise typer.Exit(FAILED)


@experiment.command(epilog="Example: isobasin experiment init digits > my.yaml")
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A packaged configuration; `experiment list` has them.")],
) -> None:
    """Print a packaged configuration, as a file of your own to begin with."""
    with quiet():
        from isobasin.experiments.configuration import packaged_text

        print(packaged_text(name), end="")


@experiment.command(epilog="Example: isobasin experiment schema > experiment.schema.json")
def schema() -> None:
    """Print the JSON Schema of configurations, by which editors complete and check them."""
    with quiet():
        from isobasin.experiments.keys import schema

        print(json_text(schema(), indent=2))


@experiment.command("list", epilog="Example: isobasin experiment list")
def list_(
    output: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Folder of an experiment: the state of its cells.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the packaged configurations, or the state of an experiment's cells."""
    with quiet():
        found = _packaged() if output is None else _state(output)
    if as_json:
        show_json(found, "experiment list")
    elif output is None:
        rows = table("name", "cells", "title", left=["name", "title"])
        # Titles are long: they are folded, and the names, which are to be copied, stay whole.
        rows.columns[-1].no_wrap = False
        for row in found["configurations"]:
            rows.add_row(row["name"], str(row["cells"]), row["title"])
        show(rows)
    else:
        rows = table("kind", *_STATES, left=["kind"])
        for kind, counts in found["cells"].items():
            rows.add_row(kind, *(str(counts.get(state, 0)) for state in _STATES))
        show(found["title"], rows)
        for label, message in found["failed"].items():
            show(f"failed: {label}: {message}")


_STATES = ("done", "to do", "failed", "not needed")


def _packaged() -> dict[str, Any]:
    from isobasin.experiments.configuration import packaged, read
    from isobasin.experiments.plan import all_cells, plans

    counts = {name: len(all_cells(plans(read(name)))) for name in packaged()}
    rows = [{"name": name, "title": title, "cells": counts[name]} for name, title in packaged().items()]
    return {"configurations": rows}


def _state(output: Path) -> dict[str, Any]:
    from isobasin.experiments.run import Experiment

    found = Experiment.open(output)
    return {"title": found.settings.title, "smoke": found.smoke, "cells": found.state(), "failed": found.failures()}


@experiment.command(epilog="Example: isobasin experiment report digits-smoke")
def report(output: FolderArgument, as_json: options.Json = False) -> None:
    """Write tables and figures of what is done so far into the experiment's folder."""
    with quiet():
        with needing("reports need pandas", EXPERIMENT_EXTRA):
            from isobasin.reports.experiment import write_experiment_report

        files = write_experiment_report(output)
    if as_json:
        show_json({"output": str(output), "files": [str(file) for file in files]}, "experiment report")
        return
    for file in files:
        show_path("Written:", file)
