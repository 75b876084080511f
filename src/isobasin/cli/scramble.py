"""`isobasin scramble`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.choices import Device, Dtype, Scope
from isobasin.cli import options
from isobasin.cli.console import working
from isobasin.cli.delivery import show_moved

EXAMPLE = "isobasin scramble runs/seed0 -o scrambled --seed 1 --condition 10"


def scramble(
    model: options.Model,
    output: options.Output,
    seed: options.Seed = 0,
    condition: Annotated[
        float, typer.Option("--condition", metavar="X", help="Condition number of every random map, at least 1.")
    ] = 10.0,
    scope: options.Scope = Scope.attention,
    untie: options.Untie = False,
    device: options.Device = Device.auto,
    dtype: options.Dtype = Dtype.keep,
    force: options.Force = False,
    no_verify: options.NoVerify = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Write the same function with other weights: a random element of the symmetry group, applied."""
    arguments = options.given(locals())
    with working("reading") as progress:
        from isobasin.verbs.scramble import scramble

        moved = scramble(**arguments, progress=progress)
    show_moved(moved, output, as_json)
