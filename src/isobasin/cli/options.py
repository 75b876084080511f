"""Arguments and options that several commands share, and what verbs are called with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from isobasin import choices
from isobasin.ahead import read_ahead
from isobasin.text import near

DATA = ("data", "split", "name", "columns", "max_examples", "length", "task", "tokenizer", "skip_unknown")
"""The options that say which data are read, and how."""

ENGINE = ("engine", "ray_address", "workers", "threads")
"""Those that say what runs tasks."""

Record = TypeVar("Record")


def choose(flag: str, kind: type[choices.Choice], more: str = "", **how: Any) -> Any:
    """An option that takes one of several names; its help says what each of them means."""
    text = "\n\n".join([f"{kind.what()} {more}", *kind.listed()])
    return typer.Option(flag, metavar=flag.removeprefix("--").upper(), help=text, **how)


def _device(name: str) -> str:
    """Refuse what is no name of a device; whether it is there is known when torch is imported."""
    if not re.fullmatch(rf"{'|'.join(choices.Device)}|cuda:\d{{1,4}}|mps", name):
        raise typer.BadParameter(f"{name!r} is no device: {near(name, [*choices.Device, 'cuda:1'])}")
    return name


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command, its `locals()`, as the library takes them: it calls them the same.

    Raises:
        typer.BadParameter: One says how data are read, and none are named.
    """
    if "data" in arguments and arguments["data"] is None:
        # Every command has a number of examples, given or not.
        for name in DATA:
            if arguments.get(name) and name != "max_examples":
                raise typer.BadParameter(f"--{name.replace('_', '-')} says how data are read: give --data as well")
    found = {name: value for name, value in arguments.items() if name not in ("as_json", "no_verify", "dry_run")}
    found |= {"verify": not arguments["no_verify"]} if "no_verify" in arguments else {}
    found |= {"dtype": arguments["dtype"].resolve()} if "dtype" in arguments else {}
    return found | ({"device": _here(arguments["device"])} if "device" in arguments else {})


def _here(device: str) -> str:
    """The device that is meant, which is there: said before anything is read."""
    from isobasin.verbs.settings import chosen_device

    return chosen_device(device)


def record(kind: Callable[..., Record], arguments: Mapping[str, Any], **more: Any) -> Record:
    """What a verb takes as one: a dataclass, whose fields are called as the options that they are."""
    own = {field.name for field in fields(cast(Any, kind))}
    return kind(**{name: value for name, value in arguments.items() if name in own} | more)


def checkpoint(metavar: str, what: str, *, weights: bool = True) -> Any:
    """An argument that names a checkpoint; where its `weights` are read, that begins while the rest is imported."""
    text = f"Local folder or hub id (ID@REVISION) of {what}"
    return typer.Argument(metavar=metavar, help=text, callback=_begin if weights else None)


def _begin(context: typer.Context, named: Any) -> Any:
    """Read ahead the checkpoint, or the several, that an argument names, unless headers will do."""
    # A shell that asks how its words could end parses them too.
    if not (context.resilient_parsing or context.params.get("dry_run")):
        read_ahead(*([named] if isinstance(named, str) else named))
    return named


Models = Annotated[list[str], checkpoint("MODELS", "two or more checkpoints: A B C ...")]
Model = Annotated[str, checkpoint("MODEL", "a checkpoint; it isn't changed.")]
Reference = Annotated[str, checkpoint("REFERENCE", "the checkpoint that stays as it is.")]
First = Annotated[str, checkpoint("A", "the first checkpoint.")]
Second = Annotated[str, checkpoint("B", "the second checkpoint.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write; it appears complete or not at all.")
]
Method = Annotated[choices.Method, choose("--method", choices.Method)]
Device = Annotated[
    str, choose("--device", choices.Device, callback=_device, autocompletion=lambda: [str(x) for x in choices.Device])
]
Dtype = Annotated[choices.Dtype, choose("--dtype", choices.Dtype)]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Don't compare the outputs of the models before and after.")
]
NoRun = Annotated[bool, typer.Option("--no-verify", help="Don't verify the moves, and don't run the result.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load pickled weights too, with weights_only loading alone.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        is_eager=True,  # known before arguments are read ahead
        help="Only say what would be matched and written, in what memory and time.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random numbers.")]
HeadCost = Annotated[choices.HeadCost, choose("--head-cost", choices.HeadCost)]
Scope = Annotated[choices.Scope, choose("--scope", choices.Scope)]
KeepGains = Annotated[
    bool,
    typer.Option(
        "--keep-gains",
        help="With --scope model: gains of normalisations stay with their coordinates, which leaves permutations.",
    ),
]
Objective = Annotated[choices.Objective, choose("--objective", choices.Objective, "Data are those of --data.")]
Untie = Annotated[
    bool,
    typer.Option(
        "--untie",
        help="Store tied tensors, a head that is the embedding, by themselves (tie_word_embeddings: false): the same "
        "function. With --scope model it frees rotations of the residual stream.",
    ),
]
MaxCondition = Annotated[
    float | None,
    typer.Option(
        "--max-condition",
        metavar="X",
        help="Cap on any map's condition number; by default 1e8 for float64, 1e4 for float32, 100 for 16 bits.",
    ),
]
TakeConfig = Annotated[
    bool,
    typer.Option(
        "--take-config", help="Take A's configuration, labels and tokenizer where the others' mean something else."
    ),
]
ByName = Annotated[
    bool, typer.Option("--by-name", help="Reorder the others' rows of tokens and labels where their names say how.")
]
CommonRows = Annotated[
    bool,
    typer.Option("--common-rows", help="Average the leading rows that tables have in common; A's further rows stay."),
]
Engine = Annotated[choices.Runner, choose("--engine", choices.Runner)]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="ADDRESS", help="Of the Ray cluster; by default one is started here."),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Tasks at once: that many processes, or tasks of Ray."),
]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="Threads of each process.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Hub id of a data set (ID@REVISION:CONFIGURATION:SPLIT), or local: parquet, csv, jsonl, text, npz, or a "
        "folder; or generated: texts that the models write themselves.",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Data as in `barrier`: --scope model chooses the residual stream's map by them, --objective activations "
        "weighs by them, `merge` measures losses.",
    ),
]
Split = Annotated[
    str | None, typer.Option("--split", metavar="SPLIT", help='Part of the data, as in "test" or "train[:10%]".')
]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Configuration of the hub's data set, if --data doesn't say it."),
]
Columns = Annotated[
    str | None,
    typer.Option("--columns", metavar="ROLE=COLUMN,...", help="Which column is image, text, text_pair or label."),
]
MaxExamples = Annotated[
    int | None, typer.Option("--max-examples", metavar="N", help="At most so many examples, chosen at random.")
]
LearnedExamples = Annotated[
    int | None,
    typer.Option(
        "--max-examples",
        metavar="N",
        show_default="4096, generated 1024",
        help="At most so many examples, chosen at random.",
    ),
]
Length = Annotated[
    int | None,
    typer.Option("--length", metavar="N", help="Tokens of an example; by default what the model takes, generated 128."),
]
Task = Annotated[
    choices.TaskKind | None, choose("--task", choices.TaskKind, "By default what their configuration says.")
]
Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="TOKENIZER", help="Folder, hub id, or JSON of characters, if not A's own."),
]
SkipUnknown = Annotated[
    bool,
    typer.Option("--skip-unknown", help="Leave out characters that a tokenizer of single characters doesn't know."),
]
