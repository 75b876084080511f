"""What `align` tells people: a table of layers, and in words what was capped, rounded and verified."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from isobasin.cli.tables import change, heads, layers, number, small, table

if TYPE_CHECKING:
    from rich.table import Table

    from isobasin.alignment import Alignment, StreamMove
    from isobasin.verification import Verification

# Float32 rounds a thousand times finer than this: only 16-bit types, or extreme maps, reach it.
_WORTH_SAYING = 1e-5
# From here on the gauge is worth a word: random maps of condition 10 stay below.
_AMPLIFIED = 3.0
_STATUSES = {"max-iterations": "max steps"}


def alignment_report(alignment: Alignment, max_condition: float | None) -> Iterator[RenderableType]:
    """The table and the warnings below it.

    Args:
        alignment: What `align` found.
        max_condition: The cap that the user chose, or None.
    """
    title = "Attention weights: distance to the reference"
    found = table(
        "layer",
        "heads",
        "before",
        "after",
        "change",
        "condition",
        "steps",
        "status",
        left=("heads", "status"),
        title=title,
    )
    for layer in alignment.layers:
        stats = layer.statistics
        found.add_row(
            str(layer.layer),
            heads([int(i) for i in layer.element.head_permutation()]),
            number(stats.distance_before),
            number(stats.distance_after),
            change(stats.distance_before, stats.distance_after),
            number(stats.condition),
            str(stats.iterations),
            _STATUSES.get(stats.status, stats.status),
        )
    total = alignment.distance()
    found.add_section()
    before, after = total["before"], total["after"]
    found.add_row("all", "", number(before), number(after), change(before, after), style="bold")
    yield found
    if alignment.feedforward:
        yield _feedforward(alignment)
    if alignment.stream is not None:
        yield from _stream(alignment.stream)
    yield from _capped(alignment, max_condition)
    yield from _rounding(alignment)


def _feedforward(alignment: Alignment) -> Table:
    from isobasin.alignment import displaced

    found = table(
        "layer",
        "units",
        "moved",
        "before",
        "after",
        "change",
        "status",
        left=("status",),
        title="Feed-forward weights: distance to the reference",
    )
    for layer in alignment.feedforward:
        stats = layer.statistics
        before, after = stats.distance_before, stats.distance_after
        figures = number(before), number(after), change(before, after)
        experts = f"{layer.group.experts} × " if layer.group.experts else ""
        units = f"{experts}{layer.group.units:,}"
        found.add_row(str(layer.layer), units, f"{displaced(layer.element.permutation):,}", *figures, stats.status)
    total = alignment.feedforward_distance()
    before, after = total["before"], total["after"]
    found.add_section()
    found.add_row("all", "", "", number(before), number(after), change(before, after), style="bold")
    return found


def _stream(move: StreamMove) -> Iterator[RenderableType]:
    """One line about the residual stream, and what couldn't be matched or taken over."""
    stats = move.statistics
    if math.isfinite(stats.distance_before):
        before, after = number(stats.distance_before), number(stats.distance_after)
        share = change(stats.distance_before, stats.distance_after)
        yield (
            f"Residual stream by {move.group}: whole models, normalisations folded, {before} -> {after} ({share}); "
            f"start {stats.start}, {stats.sweeps} {'sweep' if stats.sweeps == 1 else 'sweeps'}."
        )
    if stats.small_gains:
        gains = "1 gain" if stats.small_gains == 1 else f"{stats.small_gains:,} gains"
        yield Text(f"{gains} of the reference too small to divide by: the moved model has larger ones there.", "yellow")
    if stats.unlike:
        tensors = "1 tensor has another shape" if stats.unlike == 1 else f"{stats.unlike} tensors have other shapes"
        yield Text(
            f"{tensors} in the two models: first rows of tables of tokens and positions were matched with each other, "
            "and nothing of any other.",
            "yellow",
        )


def verification_line(verified: Verification | None) -> Text:
    """How the result was verified."""
    if verified is None:
        return Text("Not verified.", "yellow")
    found = Text.assemble(("Verified", "green"), f": {difference(verified)}")
    if (verified.amplification or 0.0) > _AMPLIFIED and verified.max_rel > _WORTH_SAYING:
        times = number(verified.amplification or 0.0)
        found.append(f"\nRounding changes the result {times} times as much as the original.", "yellow")
    return found


def difference(verified: Verification) -> str:
    """The figures of a comparison in words."""
    figures = [f"outputs differ by {small(verified.max_rel)} relative (allowed {small(verified.tolerance)})"]
    if verified.rms is not None:
        figures.append(f"{small(verified.rms)} in the root mean square")
    if verified.kl is not None:
        figures.append(f"{small(verified.kl)} nats as distributions")
    if verified.rounding is not None and verified.rounding.max_rel:
        rounding = f"{small(verified.rounding.max_rel)} and {small(verified.rounding.rms)}"
        figures.append(f"where one rounding of the stored values makes {rounding}")
    text = f"{', '.join(figures)}; {small(verified.max_abs)} absolute; {verified.how}."
    if verified.unequal:
        text += f" Tensor {verified.unequal[0]!r}, which transformers doesn't read, differs."
    return text


def _capped(alignment: Alignment, max_condition: float | None) -> Iterator[Text]:
    capped = [layer for layer in alignment.layers if layer.statistics.status == "capped"]
    if capped:
        cap = max_condition or max(layer.statistics.condition for layer in capped)
        which = layers([layer.layer for layer in capped]).capitalize()
        yield Text(f"{which}: condition capped at {number(cap)}; raise with --max-condition.", "yellow")


def _rounding(alignment: Alignment) -> Iterator[str]:
    """The predicted effect of storing few bits, where it can be seen."""
    figures = [(layer.statistics.rounding, layer.layer) for layer in alignment.layers]
    finite = [item for item in figures if math.isfinite(item[0])]
    if finite and max(finite)[0] >= _WORTH_SAYING:
        worst, layer = max(finite)
        yield f"Predicted rounding: up to {small(worst)} of a head's circuits (layer {layer})."
