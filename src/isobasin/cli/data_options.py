"""What the verbs that read data have in common: which data, and how a model sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isobasin.choices import TaskKind
from isobasin.cli.options import choose

if TYPE_CHECKING:
    from isobasin.tasks.data import DataOptions


DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Hub id of a data set, or local: parquet, csv, jsonl, text, npz, or a folder.",
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Data as in `barrier`: --scope model chooses the residual stream's map by them, --objective activations "
        "weighs by them.",
    ),
]
SplitOption = Annotated[
    str | None, typer.Option("--split", metavar="SPLIT", help='Part of the data, as in "test" or "train[:10%]".')
]
NameOption = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Configuration of the hub's data set.")]
ColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", metavar="ROLE=COLUMN,...", help="Which column is image, text, text_pair or label."),
]
MaxExamplesOption = Annotated[
    int | None, typer.Option("--max-examples", metavar="N", help="At most so many examples, chosen at random.")
]
LengthOption = Annotated[
    int | None, typer.Option("--length", metavar="N", help="Tokens of an example; by default what the model takes.")
]
TaskOption = Annotated[
    TaskKind | None,
    choose("--task", TaskKind, "By default what their configuration says."),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="TOKENIZER", help="Folder, hub id, or JSON of characters, if not A's own."),
]


def parsed_columns(text: str | None) -> dict[str, str]:
    """`text=review,label=stars` as a mapping."""
    parts = [part.partition("=") for part in (text or "").split(",") if part]
    for role, equals, column in parts:
        if not (role.strip() and equals and column.strip()):
            raise typer.BadParameter(f"{role}{equals}{column}: write ROLE=COLUMN,..., as in text=review,label=stars")
    return {role.strip(): column.strip() for role, _, column in parts}


def examples_for(
    model: str, options: DataOptions, task: TaskKind | None, tokenizer: str | None, allow_pickle: bool
) -> Any:
    """The data as the first model sees them."""
    from isobasin.model import open_checkpoint
    from isobasin.tasks.data import prepare, read_dataset
    from isobasin.tasks.kind import kind_of
    from isobasin.tasks.processors import config_of, load_processor

    with open_checkpoint(model, allow_pickle=allow_pickle) as checkpoint:
        config = config_of(model, checkpoint)
        kind = kind_of(checkpoint.config) if task is None else task
        processor = load_processor(checkpoint.folder, kind, tokenizer)
        return prepare(read_dataset(options, kind), kind, processor, options, config=config)


def recorded(options: DataOptions, tokenizer: str | None) -> dict[str, Any]:
    """What is recorded of the options, besides what the data's own line says."""
    return {
        "seed": options.seed,
        "name": options.name,
        "columns": dict(options.columns),
        "max_examples": options.max_examples,
        "length": options.length,
        "tokenizer": tokenizer,
    }
