"""`isobasin verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.choices import Device
from isobasin.cli.alignment_report import difference
from isobasin.cli.console import answer, working
from isobasin.cli.options import AllowPickleOption, DeviceOption, FirstArgument, JsonOption, SecondArgument, SeedOption

EXAMPLE = "isobasin verify runs/seed1 runs/seed1-aligned"


def verify(
    a: FirstArgument,
    b: SecondArgument,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="X",
            help="Relative difference that counts as equal; by default what rounding does, measured.",
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.cpu,
    allow_pickle: AllowPickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the outputs of two checkpoints on random inputs: exit code 0 if they are equal, 1 if not."""
    with working("verifying"):
        from isobasin.verbs.verify import verify

        found = verify(a, b, tolerance=tolerance, seed=seed, device=device, allow_pickle=allow_pickle)
    verdict = "Equal" if found.equal else "Not equal"
    answer(found.to_json, [f"{verdict}: {difference(found)}"], as_json, holds=found.equal)
