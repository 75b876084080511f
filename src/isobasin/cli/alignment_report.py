"""What `align` tells people: a table of layers, and in words what was capped, rounded and verified."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from isobasin.cli.tables import change, heads, layers, number, small, table

if TYPE_CHECKING:
    from rich.table import Table

    from isobasin.alignment import Alignment, AttentionMove, FeedForwardMove, StreamMove
    from isobasin.verification import Verification

# Float32 rounds a thousand times finer than this: only 16-bit types, or extreme maps, reach it.
_WORTH_SAYING = 1e-5
# From here on the gauge is worth a word: random maps of condition 10 stay below.
_AMPLIFIED = 3.0
_STATUSES = {"max-iterations": "max steps"}
_DISTANCES = ("before", "after", "change")


def alignment_report(alignment: Alignment, max_condition: float | None) -> Iterator[RenderableType]:
    """The tables and the warnings below them.

    Args:
        alignment: What `align` found.
        max_condition: The cap that the user chose, or None.
    """
    columns = ("layer", "heads", *_DISTANCES, "condition", "steps", "status")
    yield _table("Attention", columns, ("heads", "status"), map(_heads, alignment.layers), alignment.distance())
    if alignment.feedforward:
        columns = ("layer", "units", "moved", *_DISTANCES, "status")
        total = alignment.feedforward_distance()
        yield _table("Feed-forward", columns, ("status",), map(_units, alignment.feedforward), total)
    if alignment.stream is not None:
        yield from _stream(alignment.stream)
    yield from _capped(alignment, max_condition)
    yield from _rounding(alignment)
    yield from untied_line(alignment)


def _table(
    what: str, columns: Sequence[str], left: Sequence[str], rows: Iterable[Sequence[str]], total: dict[str, float]
) -> Table:
    """A row for every block, and below them how far all of them are from the reference together."""
    found = table(*columns, left=left, title=f"{what} weights: distance to the reference")
    for row in rows:
        found.add_row(*row)
    found.add_section()
    between = [""] * (columns.index(_DISTANCES[0]) - 1)
    found.add_row("all", *between, *_figures(total["before"], total["after"]), style="bold")
    return found


def _figures(before: float, after: float) -> tuple[str, str, str]:
    return number(before), number(after), change(before, after)


def _heads(move: AttentionMove) -> Sequence[str]:
    stats = move.statistics
    figures = _figures(stats.distance_before, stats.distance_after)
    order = heads([int(i) for i in move.element.head_permutation()])
    status = _STATUSES.get(stats.status, stats.status)
    return str(move.layer), order, *figures, number(stats.condition), str(stats.iterations), status


def _units(move: FeedForwardMove) -> Sequence[str]:
    from isobasin.alignment import displaced

    group, stats = move.group, move.statistics
    units = f"{group.experts} × {group.units:,}" if group.experts else f"{group.units:,}"
    figures = _figures(stats.distance_before, stats.distance_after)
    return str(move.layer), units, f"{displaced(move.element.permutation):,}", *figures, stats.status


def _stream(move: StreamMove) -> Iterator[RenderableType]:
    """One line about the residual stream, and what couldn't be matched or taken over."""
    stats = move.statistics
    if math.isfinite(stats.distance_before):
        before, after, share = _figures(stats.distance_before, stats.distance_after)
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


def untied_line(alignment: Alignment | None) -> Iterator[str]:
    """That the written model is of another form than the one that was read, if it is."""
    if alignment is not None and alignment.untied:
        yield "Tied tensors are stored by themselves: config.json has tie_word_embeddings false now."


def verification_line(verified: Verification | None, what: str = "") -> Text:
    """How the result was verified; where there are several, which of them."""
    which = what and f", {what}"
    if verified is None:
        return Text(f"Not verified{which}.", "yellow")
    found = Text.assemble(("Verified", "green"), f"{which}: {difference(verified)}")
    if (verified.amplification or 0.0) > _AMPLIFIED and verified.max_rel > _WORTH_SAYING:
        times = number(verified.amplification or 0.0)
        found.append(f"\nRounding changes the result {times} times as much as the original.", "yellow")
    return found


def difference(verified: Verification) -> str:
    """The figures of a comparison in words."""
    figures = [f"{verified.subject} differ by {small(verified.max_rel)} relative (allowed {small(verified.tolerance)})"]
    if verified.rms is not None:
        figures.append(f"{small(verified.rms)} in the root mean square")
    if verified.kl is not None:
        figures.append(f"{small(verified.kl)} nats as distributions")
    if verified.rounding is not None and verified.rounding.max_rel:
        rounding = f"{small(verified.rounding.max_rel)} and {small(verified.rounding.rms)}"
        figures.append(f"where one rounding of the stored values makes {rounding}")
    figures[-1] += f"; {small(verified.max_abs)} absolute"
    text = f"{verified.misshapen or ', '.join(figures)}; {verified.how}."
    if verified.unequal:
        text += f" {verified.unequal[0]!r}, which transformers doesn't read, differs."
    for part in verified.which_parts:
        text += f" {part[0].upper()}{part[1:]}."
    if verified.configuration:
        text += f" In config.json {', '.join(verified.configuration)} differs: other inputs may show more of that."
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
