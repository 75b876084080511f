"""`isobasin scramble`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.choices import Device, Dtype, Scope
from isobasin.cli.console import working
from isobasin.cli.delivery import show_moved
from isobasin.cli.options import (
    AllowPickleOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelArgument,
    NoVerifyOption,
    OutputOption,
    ScopeOption,
    SeedOption,
)

EXAMPLE = "isobasin scramble runs/seed0 -o scrambled --seed 1 --condition 10"


def scramble(
    model: ModelArgument,
    output: OutputOption,
    seed: SeedOption = 0,
    condition: Annotated[
        float, typer.Option("--condition", metavar="X", help="Condition number of every random map, at least 1.")
    ] = 10.0,
    scope: ScopeOption = Scope.attention,
    device: DeviceOption = Device.cpu,
    dtype: DtypeOption = Dtype.keep,
    force: ForceOption = False,
    no_verify: NoVerifyOption = False,
    allow_pickle: AllowPickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the same function with other weights: a random element of the symmetry group, applied."""
    with working("reading") as progress:
        from isobasin.verbs.scramble import scramble

        moved = scramble(
            model,
            output,
            seed=seed,
            condition=condition,
            scope=scope,
            device=device,
            dtype=dtype.resolve(),
            verify=not no_verify,
            force=force,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    show_moved(moved, output, as_json)
