"""`isobasin compare`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from isobasin.choices import Device
from isobasin.cli import options
from isobasin.cli.console import answer, working
from isobasin.cli.tables import number, table

if TYPE_CHECKING:
    from isobasin.verbs.compare import Comparison

EXAMPLE = "isobasin compare runs/seed0 finetuned"


def compare(
    a: options.First,
    b: options.Second,
    device: options.Device = Device.auto,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Say if B comes from A: the same function or body, fine-tuned from it, an obfuscated copy, or unrelated."""
    with working("reading") as progress:
        from isobasin.verbs.compare import compare

        found = compare(a, b, device=device, allow_pickle=allow_pickle, progress=progress)
    answer(found.to_json, _report(found), as_json)


def _report(found: Comparison) -> Iterator[RenderableType]:
    """The score of every block, with the distances that say if it was moved, and the verdict."""
    rows = table(
        "block", "score", "distance", "after matching", "moved", left=("block", "moved"), title="Is B's block A's?"
    )
    for block in found.blocks:
        figures = (f"{block.score:.3f}", number(block.before), number(block.after))
        partner = "" if block.partner == block.layer else f" ~ {block.partner}"
        rows.add_row(f"{block.kind} {block.layer}{partner}", *figures, "yes" if block.moved else "")
    rows.add_section()
    rows.add_row("all", f"{found.score:.3f}", style="bold")
    yield rows
    if (stream := found.stream) is not None:
        yield f"Embeddings correlate by {stream.before:.3f} as they are, {stream.after:.3f} in A's basis of the stream."
        if stream.said < 1:
            yield f"They say {stream.said:.0%} of that basis, in which blocks were compared."
    if found.verdict is found.verdict.parts:
        yield f"Blocks of A's are in it: {', '.join(f'{x.kind} {x.layer}' for x in found.blocks if x.taken)}."
    yield Text.assemble("B, given A: ", (str(found.verdict), "bold"), ".")
    if found.verdict in (found.verdict.finetuned, found.verdict.obfuscated, found.verdict.parts):
        yield "Which of the two was first, or whether both come from a third, weights don't say."
