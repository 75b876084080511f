"""`isobasin barrier`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isobasin.choices import WAYS, Device, HeadCost, Scope, Way
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.data_options import (
    ColumnsOption,
    DataOption,
    LengthOption,
    MaxExamplesOption,
    NameOption,
    SplitOption,
    TaskOption,
    TokenizerOption,
    examples_for,
    parsed_columns,
    recorded,
)
from isobasin.cli.options import (
    AllowPickleOption,
    DeviceOption,
    HeadCostOption,
    JsonOption,
    ScopeOption,
    SeedOption,
    TakeConfigOption,
    choose,
)

if TYPE_CHECKING:
    from isobasin.records.file import Measured

_WAYS = list(WAYS)

EXAMPLE = "isobasin barrier runs/seed0 runs/seed1 --data fancyzhx/ag_news -o barriers"


def barrier(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODELS", help="Local folders or hub ids of two or more checkpoints: A B C ..."),
    ],
    data: DataOption,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", help="Folder for records, tables, figures and report.html."),
    ],
    split: SplitOption = None,
    name: NameOption = None,
    columns: ColumnsOption = None,
    max_examples: MaxExamplesOption = None,
    length: LengthOption = None,
    task: TaskOption = None,
    tokenizer: TokenizerOption = None,
    method: Annotated[
        list[Way],
        choose("--method", Way, "Repeat it for more."),
    ] = _WAYS,
    head_cost: HeadCostOption = HeadCost.rotary,
    scope: ScopeOption = Scope.attention,
    points: Annotated[int, typer.Option("--points", metavar="N", help="Points of each line, with its ends.")] = 25,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Examples of a forward pass.")] = 32,
    no_temperature: Annotated[
        bool, typer.Option("--no-temperature", help="Leave out the losses with a calibrated softmax temperature.")
    ] = False,
    take_config: TakeConfigOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = Device.cpu,
    force: Annotated[bool, typer.Option("--force", help="Drop another run's records in OUT.")] = False,
    allow_pickle: AllowPickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the loss barriers between checkpoints, naive and aligned, on real data.

    An interrupted run goes on where it stopped when the same command is given again. Several devices share the work
    under `accelerate launch -m isobasin barrier ...`.
    """
    with working("reading") as progress:
        from isobasin.lines.ends import Measuring
        from isobasin.lines.measure import measure
        from isobasin.reports.write import write_report
        from isobasin.tasks.data import DataOptions

        options = DataOptions(
            source=data,
            name=name,
            split=split,
            columns=parsed_columns(columns),
            max_examples=max_examples,
            length=length,
            seed=seed,
        )
        how = Measuring(
            methods=tuple(dict.fromkeys(method)),
            points=points,
            batch_size=batch_size,
            device=device,
            head_cost=head_cost,
            scope=scope,
            temperature=not no_temperature,
            take_config=take_config,
        )
        with _processes(device) as accelerator:
            found = measure(
                models,
                examples_for(models[0], options, task, tokenizer, allow_pickle),
                output,
                how,
                settings=recorded(options, tokenizer),
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


@contextmanager
def _processes(device: Device) -> Iterator[Any]:
    """Several processes, if `accelerate launch` (or torchrun) started us as one of them; else None."""
    processes = os.environ.get("WORLD_SIZE", "")
    if not processes.isdecimal() or int(processes) < 2:
        yield None
        return
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device is Device.cpu)
    try:
        yield accelerator
    finally:
        # Threads of a process group that nobody ended may abort Python as it exits, with all the work done.
        accelerator.end_training()


def _plain(found: Measured) -> dict[str, Any]:
    """The run and its curves, for `--json`; the points are in the files."""
    return {
        "run": found.run.model_dump(mode="json"),
        "curves": [curve.model_dump(mode="json") for curve in found.curves.values()],
    }
