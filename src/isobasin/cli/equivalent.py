"""`isobasin equivalent`."""

from __future__ import annotations

from isobasin.choices import Device
from isobasin.cli import options
from isobasin.cli.console import answer, working
from isobasin.cli.equivalence_report import equivalence_report

EXAMPLE = "isobasin equivalent runs/seed0 scrambled"


def equivalent(
    a: options.First,
    b: options.Second,
    device: options.Device = Device.auto,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Ask if a move that changes no function carries B to A: exit code 0 for yes, 1 for no."""
    with working("reading") as progress:
        from isobasin.verbs.equivalent import equivalent

        found = equivalent(a, b, device=device, allow_pickle=allow_pickle, progress=progress)
    answer(found.to_json, equivalence_report(found), as_json, holds=found.equivalent)
