"""`isobasin fingerprint`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from isobasin.choices import Device
from isobasin.cli import options
from isobasin.cli.console import answer, show_path, working
from isobasin.cli.tables import number, table

if TYPE_CHECKING:
    from isobasin.verbs.fingerprint import Fingerprint

EXAMPLE = "isobasin fingerprint runs/seed0 -o seed0.json"


def fingerprint(
    model: options.Model,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write: .json, or .safetensors for long ones."),
    ] = None,
    device: options.Device = Device.auto,
    force: options.Force = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Show the numbers of every block that no move inside its group changes: equal for all scrambled copies."""
    with working("reading"):
        from isobasin.verbs.fingerprint import fingerprint

        found = fingerprint(model, device=device, allow_pickle=allow_pickle)
        if output is not None:
            found.save(output, force=force)
    answer(found.to_json, _report(found), as_json)
    if output is not None and not as_json:
        show_path("Written to", output)


def _report(found: Fingerprint) -> Iterator[RenderableType]:
    """How many invariants there are of each kind, and their largest, root mean square and smallest."""
    rows = table("invariants", "count", "largest", "root mean square", "smallest", left=("invariants",))
    for name, values in found.tensors.items():
        figures = values.max(), values.square().mean().sqrt(), values.min()
        rows.add_row(name, f"{values.numel():,}", *(number(float(x)) for x in figures))
    yield rows
