"""What `equivalent` tells people: the verdict, the evidence of every layer, and what else differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from isobasin.cli.tables import heads, layers, listed, number, small, table

if TYPE_CHECKING:
    from rich.table import Table

    from isobasin.verbs.equivalent import Equivalence, LayerEvidence


def equivalence_report(found: Equivalence) -> Iterator[RenderableType]:
    """The table, where the theorem's conditions fail, what else differs, and the verdict."""
    yield _evidence(found)
    for layer in found.layers:
        yield from _degenerate(layer)
    if found.stream:
        yield f"Residual streams are the same after a map of {found.stream}; all else is compared after it."
    if found.feedforward:
        which = layers(found.feedforward)
        yield f"Feed-forward blocks of {which} are equal after a move of their units."
    if found.other_tensors:
        yield f"Outside attention, tensors that differ: {listed([_shaped(found, n) for n in found.other_tensors])}."
    if found.configuration:
        yield f"In config.json, entries that differ: {listed(found.configuration)}."
    yield _verdict(found)


def _shaped(found: Equivalence, name: str) -> str:
    """A tensor's name, with its shapes where they differ."""
    if name not in found.shapes:
        return name
    ours, theirs = (" x ".join(map(str, shape)) for shape in found.shapes[name])
    return f"{name} ({ours} in A, {theirs} in B)"


def _evidence(found: Equivalence) -> Table:
    columns = ("layer", "equal", "heads", "circuits", "biases", "allowed", "distance", "condition")
    evidence = table(*columns, left=("equal", "heads"), title="Relative differences after the best move")
    for layer in found.layers:
        evidence.add_row(
            str(layer.layer),
            Text("yes", "green") if layer.equivalent else Text("no", "red"),
            heads(layer.head_permutation),
            *map(small, (layer.circuit_error, layer.bias_error, layer.tolerance, layer.distance)),
            number(layer.condition),
        )
    return evidence


def _degenerate(layer: LayerEvidence) -> Iterator[str]:
    """Where the theorem's conditions fail in one layer."""
    by_projection: dict[str, list[int]] = {}
    for projection, head in layer.degeneracy.rank_deficient:
        by_projection.setdefault(projection, []).append(head)
    for projection, which in by_projection.items():
        names = listed([str(head) for head in which])
        yield f"Layer {layer.layer}: {projection} is rank-deficient in head{'s' * (len(which) > 1)} {names}."
    if layer.degeneracy.duplicates:
        pairs = listed([f"{i} and {j}" for i, j in layer.degeneracy.duplicates])
        yield f"Layer {layer.layer}: duplicate heads, with equal attention scores: {pairs}."


def _verdict(found: Equivalence) -> Text:
    if found.equivalent:
        moved = "attention and feed-forward" if found.feedforward else "attention"
        moved = "residual stream, attention and feed-forward" if found.stream else moved
        return Text.assemble(("Equivalent", "bold green"), f": a move of the {moved} weights carries B to A.")
    reasons: list[str] = []
    unequal = [layer.layer for layer in found.layers if not layer.equivalent]
    if unequal:
        reasons.append(f"attention in {layers(unequal)}")
    if found.other_tensors:
        count = len(found.other_tensors)
        reasons.append(f"{count} other tensor{'s' * (count != 1)}")
    if found.configuration:
        reasons.append("config.json")
    # Whatever the heads are like, tensors that no move in scope touches can't be carried anywhere.
    proof = "" if found.conclusive else " The theorem's conditions fail, so attention that differs is no proof."
    return Text.assemble(("Not equivalent", "bold red"), f": {'; '.join(reasons)}.{proof if unequal else ''}")
