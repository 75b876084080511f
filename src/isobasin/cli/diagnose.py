"""`isobasin diagnose`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from isobasin.choices import Device
from isobasin.cli import options
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.tables import layers, listed, small, table

if TYPE_CHECKING:
    from isobasin.diagnosis.findings import Finding
    from isobasin.verbs.diagnose import Diagnosis

EXAMPLE = "isobasin diagnose original converted"


def diagnose(
    a: Annotated[str, options.checkpoint("A", "the original.")],
    b: Annotated[str, options.checkpoint("B", "the conversion that is judged; it isn't changed.")],
    fix: Annotated[bool, typer.Option("--fix", help="Write B without its defects to OUT, verified against A.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="With --fix: the folder to write; complete or not at all."),
    ] = None,
    device: options.Device = Device.auto,
    force: options.Force = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Ask if B is an exact conversion of A, and if not, which defect explains it, and where: exit code 1 if it isn't.

    Values are compared as they are stored and, where a move that changes no function lies between as well, as what no
    move changes. Rounding to another type alone is no defect, nor is fine-tuning. What B has lost, --fix takes from A.
    """
    if fix and output is None:
        raise typer.BadParameter("--fix needs a folder to write: -o OUT")
    with working("reading") as progress:
        from isobasin.verbs.diagnose import diagnose

        found = diagnose(a, b, output, device=device, force=force, allow_pickle=allow_pickle, progress=progress)
    if as_json:
        show_json(found.to_json())
    else:
        show(*_report(found))
        if output is not None:
            show_path("Written to", output)
    if not (found.sound or (found.verified is not None and found.verified.equal)):
        raise typer.Exit(1)


def _report(found: Diagnosis) -> Iterator[RenderableType]:
    """The defects in a table, each with its fix, what else differs, and the verdict."""
    if found.findings:
        yield _table(found)
        for finding in found.findings:
            yield Text.assemble(
                (f"{finding.defect}", "bold"), f"{_where(finding)}: {finding.words}. Fix: {finding.fix}."
            )
    if found.moved:
        yield f"Blocks of {layers(found.moved)} differ by a move of their group as well, which changes no function."
    if found.left:
        worst = sorted(found.left.items(), key=lambda one: -one[1])
        names = [
            f"{name} ({small(size) if math.isfinite(size) else 'in one only, or of other shapes'})"
            for name, size in worst
        ]
        yield f"No known defect explains what is left in {listed(names)}."
    yield f"Difference of all tensors, relative: {small(found.before)}, without the defects {small(found.after)}."
    yield _verdict(found)
    if found.verified is not None:
        from isobasin.cli.alignment_report import verification_line

        yield verification_line(found.verified, "mended B against A")


def _table(found: Diagnosis) -> RenderableType:
    rows = table("defect", "where", "before", "after", left=("defect", "where"), title="Relative differences")
    for finding in found.findings:
        place = layers(finding.layers) if finding.layers else listed(finding.tensors, 2)
        rows.add_row(str(finding.defect), place, *map(_size, (finding.before, finding.after)))
    return rows


def _size(value: float | None) -> str:
    return "–" if value is None else small(value)


def _where(finding: Finding) -> str:
    names = listed([name.removesuffix(".weight") for name in finding.tensors], 3)
    return f" ({names})" if names else ""


def _verdict(found: Diagnosis) -> Text:
    style = "bold green" if found.sound else "bold red"
    more = f" (a map of {found.stream})" if found.stream else ""
    return Text.assemble((f"{found.judgement}".capitalize(), style), f": {found.judgement.meaning}{more}.")
