"""The demo's plot, in the paper's form: loss against t, one panel for every pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isobasin.demo.measure import ALIGNED, HEADS, NAIVE, Pair
from isobasin.demo.recipe import EXTRA
from isobasin.errors import DependencyError

# Okabe and Ito's colours, told apart by every eye; dashes and markers tell them apart in grey.
_STYLES: dict[str, dict[str, Any]] = {
    NAIVE: {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    HEADS: {"color": "#666666", "linestyle": ":", "marker": "^"},
    ALIGNED: {"color": "#0072B2", "linestyle": "-", "marker": "o"},
}


def require_matplotlib() -> Any:
    """The figure class of matplotlib, which needs no display.

    Raises:
        DependencyError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(f"the demo needs matplotlib: {EXTRA}") from error
    return Figure


def draw(pairs: Sequence[Pair], paths: Sequence[Path]) -> None:
    """Draw the losses of all pairs, and save the figure under every name given; the suffix is the format."""
    figure = require_matplotlib()(figsize=(3.6 * len(pairs), 3.9), layout="constrained")
    axes = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for pair, axis in zip(pairs, axes, strict=True):
        for way, curve in pair.curves.items():
            axis.plot(pair.t, curve.losses, label=way, markersize=3.5, linewidth=1.6, markevery=2, **_STYLES[way])
        heights = ", ".join(f"{way} {curve.height:.2f}" for way, curve in pair.curves.items())
        axis.set_title(f"model {pair.first} to model {pair.second}\n", fontsize=11)
        axis.text(0.5, 1.03, f"barrier: {heights}", fontsize=8.5, ha="center", transform=axis.transAxes)
        axis.set_xlabel(rf"$t$: weights $(1-t)\,\theta_{pair.first} + t\,\theta_{pair.second}$")
        axis.set_xlim(0, 1)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test loss (cross-entropy)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_STYLES), frameon=False)
    figure.get_layout_engine().set(w_pad=0.12)
    figure.suptitle("The line between two ViTs whose first attention layers were trained apart", fontsize=12)
    for path in paths:
        figure.savefig(path, dpi=160)
