"""`isobasin canonicalize`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isobasin.choices import Device, Dtype, Scope
from isobasin.cli import options
from isobasin.cli.console import show, working
from isobasin.cli.delivery import show_moved

if TYPE_CHECKING:
    from isobasin.alignment import Alignment

EXAMPLE = "isobasin canonicalize scrambled -o canonical --scope block"


def canonicalize(
    model: options.Model,
    output: options.Output,
    scope: options.Scope = Scope.attention,
    device: options.Device = Device.auto,
    dtype: options.Dtype = Dtype.keep,
    force: options.Force = False,
    no_verify: options.NoVerify = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Write the same function in the one gauge that all its scrambled copies share, up to rounding."""
    arguments = options.given(locals())
    with working("reading") as progress:
        from isobasin.verbs.canonicalize import canonicalize

        moved = canonicalize(**arguments, progress=progress)
    assert moved.alignment is not None
    statuses = {move.block: move.statistics.status for move in moved.alignment.moves}
    if not as_json:
        _show_not_unique(moved.alignment)
    show_moved(moved, output, as_json, blocks=statuses)


def _show_not_unique(alignment: Alignment) -> None:
    """Where rounding decides the gauge, and what of it."""
    from isobasin.cli.tables import layers
    from isobasin.verbs.canonicalize import CANONICAL

    found: dict[str, list[int]] = {}
    for kind, entries in (("attention", alignment.layers), ("feed-forward", alignment.feedforward)):
        for entry in entries:
            if entry.statistics.status != CANONICAL:
                found.setdefault(f"{kind} is {entry.statistics.status}", []).append(entry.layer)
    if found:
        show("Rounding decides a part of the gauge, in which a copy that was rounded otherwise may differ:")
        show(*(f"{layers(which).capitalize()}: {what}." for what, which in found.items()))
