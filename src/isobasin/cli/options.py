"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isobasin.choices import Choice, Device, Dtype, HeadCost, Method, Objective, Scope


def choose(flag: str, choices: type[Choice], more: str = "") -> Any:
    """An option that takes one of several names; its help says what each of them means."""
    return typer.Option(
        flag, metavar=flag.removeprefix("--").upper(), help="\n\n".join([f"{choices.what()} {more}", *choices.listed()])
    )


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Local folder or hub id of a checkpoint; it isn't changed.")
]
FirstArgument = Annotated[str, typer.Argument(metavar="A", help="Local folder or hub id of the first checkpoint.")]
SecondArgument = Annotated[str, typer.Argument(metavar="B", help="Local folder or hub id of the second checkpoint.")]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write; it appears complete or not at all.")
]
MethodOption = Annotated[Method, choose("--method", Method)]
DeviceOption = Annotated[Device, choose("--device", Device)]
DtypeOption = Annotated[Dtype, choose("--dtype", Dtype)]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]
NoVerifyOption = Annotated[
    bool, typer.Option("--no-verify", help="Don't compare the outputs of the models before and after.")
]
AllowPickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Load pickled weights too, with weights_only loading alone.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random numbers.")]
HeadCostOption = Annotated[HeadCost, choose("--head-cost", HeadCost)]
ScopeOption = Annotated[Scope, choose("--scope", Scope)]
KeepGainsOption = Annotated[
    bool,
    typer.Option(
        "--keep-gains",
        help="With --scope model: gains of normalisations stay with their coordinates, which leaves permutations.",
    ),
]
ObjectiveOption = Annotated[Objective, choose("--objective", Objective, "Data are those of --data.")]
TakeConfigOption = Annotated[
    bool,
    typer.Option(
        "--take-config", help="Take A's configuration, labels and tokenizer where the others' mean something else."
    ),
]
ByNameOption = Annotated[
    bool,
    typer.Option("--by-name", help="Reorder the others' rows of tokens and labels where their names say how."),
]
CommonRowsOption = Annotated[
    bool,
    typer.Option("--common-rows", help="Average the leading rows that tables have in common; A's further rows stay."),
]
