"""`isobasin verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.choices import Device
from isobasin.cli import options
from isobasin.cli.alignment_report import difference
from isobasin.cli.console import answer, working

EXAMPLE = "isobasin verify runs/seed1 runs/seed1-aligned"


def verify(
    a: options.First,
    b: options.Second,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="X",
            help="Relative difference that counts as equal; by default what rounding does, measured.",
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = Device.auto,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Compare the outputs of two checkpoints on random inputs: exit code 0 if they are equal, 1 if not."""
    arguments = options.given(locals())
    with working("verifying"):
        from isobasin.verbs.verify import verify

        found = verify(**arguments)
    verdict = "Equal" if found.equal else "Not equal"
    answer(found.to_json, [f"{verdict}: {difference(found)}"], as_json, holds=found.equal)
