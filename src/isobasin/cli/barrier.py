"""`isobasin barrier`."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.options import (
    AllowPickleOption,
    Device,
    DeviceOption,
    HeadCost,
    HeadCostOption,
    JsonOption,
    Scope,
    ScopeOption,
    SeedOption,
)

if TYPE_CHECKING:
    from isobasin.records.file import Measured
    from isobasin.tasks.data import DataOptions

EXAMPLE = "isobasin barrier runs/seed0 runs/seed1 --data fancyzhx/ag_news -o barriers"


class Task(StrEnum):
    """What the models are measured at."""

    image_classification = "image-classification"
    text_classification = "text-classification"
    causal_lm = "causal-lm"
    masked_lm = "masked-lm"


class Way(StrEnum):
    """How B is moved before the line is drawn."""

    none = "none"
    heads = "heads"
    orthogonal = "orthogonal"
    paper = "paper"
    gauss_newton = "gauss-newton"


_DEFAULT_WAYS = [Way.none, Way.heads, Way.paper, Way.gauss_newton]


def barrier(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODELS", help="Local folders or hub ids of two or more checkpoints: A B C ..."),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Hub id of a data set, or local: parquet, csv, jsonl, text, npz, or a folder.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", help="Folder for records, tables, figures and report.html."),
    ],
    split: Annotated[
        str | None, typer.Option("--split", metavar="SPLIT", help='Part of the data, as in "test" or "train[:10%]".')
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Configuration of the hub's data set.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="ROLE=COLUMN,...", help="Which column is image, text, text_pair or label."),
    ] = None,
    max_examples: Annotated[
        int | None, typer.Option("--max-examples", metavar="N", help="At most so many examples, chosen at random.")
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", metavar="N", help="Tokens of an example; by default what the model takes.")
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option("--task", metavar="TASK", help="What the models do, if their configuration doesn't say."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="TOKENIZER", help="Folder, hub id, or JSON of characters, if not A's own."),
    ] = None,
    method: Annotated[
        list[Way],
        typer.Option(
            "--method",
            metavar="METHOD",
            help="How B is moved (repeat it): none, heads, orthogonal, paper, gauss-newton.",
        ),
    ] = _DEFAULT_WAYS,
    head_cost: HeadCostOption = HeadCost.rotary,
    scope: ScopeOption = Scope.attention,
    points: Annotated[int, typer.Option("--points", metavar="N", help="Points of each line, with its ends.")] = 25,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Examples of a forward pass.")] = 32,
    no_temperature: Annotated[
        bool, typer.Option("--no-temperature", help="Leave out the losses with a calibrated softmax temperature.")
    ] = False,
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
        from isobasin.connectivity.measure import Measuring, measure
        from isobasin.matching.heads import HeadCost as LibraryHeadCost
        from isobasin.pipeline.settings import Scope as LibraryScope
        from isobasin.reports.write import write_report
        from isobasin.tasks.data import DataOptions

        options = DataOptions(
            source=data,
            name=name,
            split=split,
            columns=_columns(columns),
            max_examples=max_examples,
            length=length,
            seed=seed,
        )
        how = Measuring(
            methods=tuple(way.value for way in dict.fromkeys(method)),
            points=points,
            batch_size=batch_size,
            device=device.value,
            head_cost=LibraryHeadCost(head_cost.value),
            scope=LibraryScope(scope.value),
            temperature=not no_temperature,
        )
        accelerator = _accelerator(device)
        found = measure(
            models,
            _examples(models[0], options, task, tokenizer, allow_pickle),
            output,
            how,
            settings=_recorded(options, tokenizer),
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


def _columns(text: str | None) -> dict[str, str]:
    """`text=review,label=stars` as a mapping."""
    parts = [part.partition("=") for part in (text or "").split(",") if part]
    for role, equals, column in parts:
        if not (role.strip() and equals and column.strip()):
            raise typer.BadParameter(f"{role}{equals}{column}: write ROLE=COLUMN,..., as in text=review,label=stars")
    return {role.strip(): column.strip() for role, _, column in parts}


def _accelerator(device: Device) -> Any:
    """Several processes, if `accelerate launch` (or torchrun) started us as one of them."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=device is Device.cpu)


def _examples(model: str, options: DataOptions, task: Task | None, tokenizer: str | None, allow_pickle: bool) -> Any:
    """The data as the first model sees them."""
    from transformers import AutoConfig

    from isobasin.model import open_checkpoint
    from isobasin.tasks.data import prepare, read_dataset
    from isobasin.tasks.kind import TaskKind, kind_of, register_own_models
    from isobasin.tasks.processors import load_processor

    with open_checkpoint(model, allow_pickle=allow_pickle) as checkpoint:
        kind = kind_of(checkpoint.config) if task is None else TaskKind(task.value)
        register_own_models()
        config = AutoConfig.from_pretrained(checkpoint.folder)
        processor = load_processor(checkpoint.folder, kind, tokenizer)
        return prepare(read_dataset(options, kind), kind, processor, options, config=config)


def _recorded(options: DataOptions, tokenizer: str | None) -> dict[str, Any]:
    """What is recorded of the options, besides what the data's own line says."""
    return {
        "seed": options.seed,
        "name": options.name,
        "columns": dict(options.columns),
        "max_examples": options.max_examples,
        "length": options.length,
        "tokenizer": tokenizer,
    }


def _plain(found: Measured) -> dict[str, Any]:
    """The run and its curves, for `--json`; the points are in the files."""
    return {
        "run": found.run.model_dump(mode="json"),
        "curves": [curve.model_dump(mode="json") for curve in found.curves.values()],
    }
