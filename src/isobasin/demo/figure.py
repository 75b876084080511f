"""The demo's plot, in the paper's form: loss against t, one panel for every pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isobasin.demo.measure import ALIGNED, HEADS, NAIVE, Pair
from isobasin.reports import figures
from isobasin.reports.style import styles

_METHODS = {"none": NAIVE, "heads": HEADS, "gauss-newton": ALIGNED}
_LOOKS = {_METHODS[method]: replace(style, name=_METHODS[method]) for method, style in styles(list(_METHODS)).items()}


def draw(pairs: Sequence[Pair], paths: Sequence[Path]) -> None:
    """Draw the losses of all pairs, and save the figure under every name given; the suffix is the format."""
    title = "The line between two ViTs whose first attention layers were trained apart"
    row = figures.Row("test loss (cross-entropy)", [_panel(pair) for pair in pairs])
    figures.draw([row], _LOOKS, title, paths)


def _panel(pair: Pair) -> figures.Panel:
    first, second = pair.first, pair.second
    return figures.Panel(
        {way: (pair.t, curve.losses) for way, curve in pair.curves.items()},
        title=f"model {first} to model {second}",
        note=figures.folded({"barrier": [f"{way} {curve.height:.2f}" for way, curve in pair.curves.items()]}),
        below=rf"$t$: weights $(1-t)\,\theta_{first} + t\,\theta_{second}$",
    )
