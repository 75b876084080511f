"""`isobasin interpolate`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.cli.console import show_json, show_path, working
from isobasin.cli.options import (
    AllowPickleOption,
    ByNameOption,
    CommonRowsOption,
    FirstArgument,
    ForceOption,
    JsonOption,
    OutputOption,
    SecondArgument,
    TakeConfigOption,
)

EXAMPLE = "isobasin interpolate runs/seed0 runs/seed1-aligned -t 0.5 -o midpoint"


def interpolate(
    a: FirstArgument,
    b: SecondArgument,
    output: OutputOption,
    t: Annotated[
        float,
        typer.Option("-t", "--at", metavar="T", help="Place on the line: 0 is A, 1 is B; beyond, it goes on."),
    ] = 0.5,
    take_config: TakeConfigOption = False,
    by_name: ByNameOption = False,
    common_rows: CommonRowsOption = False,
    force: ForceOption = False,
    allow_pickle: AllowPickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the point (1 - t) A + t B of the straight line between two checkpoints."""
    with working("reading") as progress:
        from isobasin.verbs.interpolate import interpolate

        interpolate(
            a,
            b,
            t,
            output,
            take_config=take_config,
            by_name=by_name,
            common_rows=common_rows,
            force=force,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    if as_json:
        show_json({"output": str(output), "verified": None, "t": t})
        return
    show_path("Written to", output)
