"""`isobasin barrier`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isobasin.choices import WAYS, Device, HeadCost, Scope, Way
from isobasin.cli import options
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.examples import data_of
from isobasin.cli.processes import processes
from isobasin.errors import needing

if TYPE_CHECKING:
    from isobasin.records.file import Measured

_WAYS = list(WAYS)

EXAMPLE = "isobasin barrier runs/seed0 runs/seed1 --data fancyzhx/ag_news -o barriers"


def barrier(
    models: options.Models,
    data: options.Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for records, tables, figures and report.html.")
    ],
    split: options.Split = None,
    name: options.Name = None,
    columns: options.Columns = None,
    max_examples: options.MaxExamples = None,
    length: options.Length = None,
    task: options.Task = None,
    tokenizer: options.Tokenizer = None,
    skip_unknown: options.SkipUnknown = False,
    method: Annotated[list[Way], options.choose("--method", Way, "Repeat it for more.")] = _WAYS,
    aligned: Annotated[
        list[str] | None,
        typer.Option(
            "--aligned",
            metavar="FOLDER",
            help="What `align` or `refine` wrote of A and B: one more line, in the same tables and figures. Repeat it.",
        ),
    ] = None,
    head_cost: options.HeadCost = HeadCost.rotary,
    scope: options.Scope = Scope.attention,
    points: Annotated[int, typer.Option("--points", metavar="N", help="Points of each line, with its ends.")] = 25,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", metavar="N", help="Examples of a forward pass.", rich_help_panel="Running"),
    ] = 32,
    no_temperature: Annotated[
        bool, typer.Option("--no-temperature", help="Leave out the losses with a calibrated softmax temperature.")
    ] = False,
    take_config: options.TakeConfig = False,
    untie: options.Untie = False,
    seed: options.Seed = 0,
    device: options.Device = Device.auto,
    force: Annotated[bool, typer.Option("--force", help="Drop another run's records in OUT.")] = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Measure the loss barriers between checkpoints, naive and aligned, on real data.

    An interrupted run goes on where it stopped when the same command is given again. Several devices share the work
    under `accelerate launch -m isobasin barrier ...`.
    """
    arguments = options.given(locals())
    with working("reading") as progress:
        from isobasin.lines.ends import Measuring
        from isobasin.lines.measure import measure

        with needing("reports need pandas"):
            from isobasin.reports.write import write_report

        ways, temperature = tuple(dict.fromkeys(method)), not no_temperature
        with processes(device) as accelerator:
            found = measure(
                models,
                data_of(arguments),
                output,
                options.record(Measuring, arguments, methods=ways, temperature=temperature),
                aligned=aligned or (),
                allow_pickle=allow_pickle,
                force=force,
                accelerator=accelerator,
                progress=progress,
            )
        if accelerator is not None and not accelerator.is_main_process:
            return
        written = write_report(output)
    if as_json:
        show_json({"output": str(output), "files": [str(p) for p in written], **_plain(found)})
        return
    from isobasin.cli.barrier_report import barrier_report

    show(*barrier_report(found))
    show_path("Report:", output / "report.html")


def _plain(found: Measured) -> dict[str, Any]:
    """The run and its curves, for `--json`; the points are in the files."""
    return {
        "run": found.run.model_dump(mode="json"),
        "curves": [curve.model_dump(mode="json") for curve in found.curves.values()],
    }
