"""`isobasin scan`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from isobasin.choices import Device
from isobasin.cli import options
from isobasin.cli.console import answer, working
from isobasin.cli.tables import number, table

if TYPE_CHECKING:
    from isobasin.verbs.scan import Kin, Scan

EXAMPLE = "isobasin scan finetuned fingerprints/"


def scan(
    model: Annotated[str, options.checkpoint("MODEL", "a checkpoint, or a fingerprint's file.")],
    fingerprints: Annotated[
        list[str],
        typer.Argument(metavar="FINGERPRINTS", help="Files that `isobasin fingerprint` wrote, or folders of them."),
    ],
    device: options.Device = Device.auto,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Find a model's relatives among fingerprints, nearest first, whatever basis their residual streams are in."""
    with working("reading") as progress:
        from isobasin.verbs.scan import scan

        found = scan(model, fingerprints, device=device, allow_pickle=allow_pickle, progress=progress)
    answer(found.to_json, _report(found), as_json)


def _report(found: Scan) -> Iterator[RenderableType]:
    """One row for every fingerprint: how far blocks correlate, by kind, and which layers have a partner."""
    rows = table(
        "fingerprint", "score", "attention", "feed-forward", "layers", "invariants", "", left=("fingerprint", "")
    )
    # A long name is folded, and what is said of it goes on in the next line: figures must not be cut.
    for column in (rows.columns[0], rows.columns[-1]):
        column.no_wrap, column.overflow = False, "fold"
    for kin in found.kin:
        score = "" if kin.score is None else f"{kin.score:.3f}"
        kinds = (_span(kin, kind) for kind in ("attention", "feed-forward"))
        gap = "other shapes" if kin.invariants is None else number(kin.invariants)
        rows.add_row(kin.name, score, *kinds, str(len(kin.layers) or ""), gap, kin.words)
    yield rows
    yield f"{len(found.relatives)} of {len(found.kin)} related."


def _span(kin: Kin, kind: str) -> str:
    """The lowest and the highest score of a kind of block."""
    scores = [layer.scores[kind] for layer in kin.layers if kind in layer.scores]
    return f"{min(scores):.2f}–{max(scores):.2f}" if scores else ""
