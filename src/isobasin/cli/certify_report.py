"""What `certify` tells people: the counts of every block, the groups in words, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from isobasin.cli.tables import layers, small, table

if TYPE_CHECKING:
    from rich.table import Table

    from isobasin.certification.certify import Certificate


def certify_report(found: Certificate) -> Iterator[RenderableType]:
    """The table, the groups in words, what normalisations hide otherwise than derived, and the verdict."""
    yield _counts(found)
    groups: dict[str, list[int]] = {}
    for block in found.blocks:
        groups.setdefault(f"{block.kind}: {block.group}", []).append(block.layer)
    for group, which in groups.items():
        yield f"{layers(which).capitalize()}, {group}"
    for block in found.blocks:
        if block.expected not in (None, block.hidden):
            yield (
                f"Layer {block.layer}, {block.kind}: normalisations hide {block.hidden} more directions, and "
                f"{block.expected} follow from the family's facts."
            )
    if found.made:
        yield "Measured on a small random model of the same kind."
    yield from _verdict(found)


def _counts(found: Certificate) -> Table:
    columns = ("block", "values", "stated", "measured", "gap", "hidden", "derived", "verdict")
    title = f"Directions that the function doesn't see, {found.name}"
    counts = table(*columns, left=("block", "verdict"), title=title)
    for block in found.blocks:
        counts.add_row(
            f"{block.kind} {block.layer}",
            f"{block.parameters:,}",
            f"{block.stated:,}",
            f"{block.measured:,}",
            small(block.gap),
            f"{block.hidden:,}",
            "–" if block.expected is None else f"{block.expected:,}",
            Text(block.verdict.replace(",", ":").partition(":")[0], "green" if block.exact else "red"),
        )
    return counts


def _verdict(found: Certificate) -> Iterator[Text]:
    for block in found.blocks:
        if not block.exact:
            yield Text.assemble(
                (f"Layer {block.layer}, {block.kind}", "bold red"), f": the stated group is {block.verdict}."
            )
    if found.exact:
        yield Text.assemble(("Exact", "bold green"), ": the stated groups are all that the blocks don't see.")
