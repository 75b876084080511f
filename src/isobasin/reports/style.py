"""How methods, metrics, models and numbers are named and drawn, wherever they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from isobasin.records.curves import NAIVE
from isobasin.text import printable


@dataclass(frozen=True)
class Style:
    """How one method looks; colours, dashes and markers each tell the methods apart.

    Attributes:
        name: What people read.
        short: The same in one word, where there is little room.
        color: On white.
        dark_color: On a dark page.
        dash: Lengths of strokes and gaps in line widths; empty for a solid line.
        marker: In matplotlib's letters.
    """

    name: str
    short: str
    color: str
    dark_color: str
    dash: tuple[float, ...]
    marker: str


# Okabe and Ito's colours, told apart by every eye; the dark page has lighter ones.
_STYLES = {
    NAIVE: Style("naive", "naive", "#D55E00", "#F58A4B", (3.5, 1.5), "s"),
    "heads": Style("heads only", "heads", "#666666", "#A8ADB4", (1, 1.5), "^"),
    "orthogonal": Style("orthogonal only", "orthogonal", "#B0568F", "#DE9CC3", (5, 1.5, 1, 1.5), "D"),
    "paper": Style("published (start + gradient descent)", "published", "#009E73", "#3FC79E", (2, 1), "v"),
    "gauss-newton": Style("Gauss-Newton", "Gauss-Newton", "#0072B2", "#56B4E9", (), "o"),
    # Further ways of `experiments.alignments`.
    "attention": Style("attention", "attention", "#70757E", "#A8ADB4", (6, 2), "^"),
    "activations": Style("attention by activations", "activations", "#A67C00", "#E9B949", (4, 1, 1, 1), "<"),
    "permutations": Style("permutations of stream, units, heads", "permutations", "#B0568F", "#DE9CC3", (2, 1), "D"),
    "model": Style("whole model", "model", "#2F8FC8", "#8CCBF2", (3, 1), "o"),
    "model-data": Style("whole model, chosen by data", "by data", "#1F4E9E", "#86AAF0", (), "o"),
    "model-activations": Style("whole model by activations", "by activations", "#1F7A8C", "#6CC3D5", (4, 2), ">"),
    "refined": Style("refined", "refined", "#7A4FBF", "#B79BEA", (), "P"),
}
_GIVEN = replace(_STYLES[NAIVE], name="as given", short="given")
_NONE: Mapping[str, str] = MappingProxyType({})
_OTHERS = (("#A67C00", "#E9B949"), ("#7A4FBF", "#B79BEA"), ("#8C4A2F", "#D09A80"), ("#1F7A8C", "#6CC3D5"))

PERCENT = ("accuracy",)
"""Metrics that are shares, shown in per cent."""

STEEP = ("perplexity",)
"""Metrics that grow so fast between models that they are drawn on a logarithmic scale."""


def styles(methods: Sequence[str], moved: bool = False, given: Mapping[str, str] = _NONE) -> dict[str, Style]:
    """How every method looks, in the order of drawing: the known ones first, others under their own name.

    Args:
        methods: Their names.
        moved: Whether models were moved before they were measured, so that their lines as given aren't naive ones.
        given: What moved the models of further lines before, by method.
    """
    known = {**_STYLES, **({NAIVE: _GIVEN} if moved else {})}
    found = {method: style for method, style in known.items() if method in methods and method not in given}
    for index, method in enumerate(method for method in methods if method not in found):
        light, dark = _OTHERS[index % len(_OTHERS)]
        short = printable(method)
        by = _moved_by(given[method]) if method in given else short
        name = short if by == short else f"{by}: {short}"
        found[method] = Style(name, short, light, dark, (4, 1 + index, 1, 1), "P")
    return found


def _moved_by(how: str) -> str:
    """What moved a model before, as people read it."""
    return _STYLES[how].name if how in _STYLES else {"refine": "refined"}.get(how, printable(how))


def labels(names: Sequence[str]) -> list[str]:
    """Models as figures name them: the last part of a path or hub id where that tells them apart."""
    whole = [printable(name) for name in names]
    short = [name.rstrip("/").rsplit("/", 1)[-1] or name for name in whole]
    for found in (short, whole):
        if len(set(found)) == len(found):
            return found
    return [f"{name} ({index})" for index, name in enumerate(whole, start=1)]


def metric_name(metric: str) -> str:
    """A metric or quantity as people read it."""
    return printable(metric.replace("_", " "))


def number(value: float | None) -> str:
    """Three decimals or two digits, whichever is more; a dash for what isn't known."""
    if value is None:
        return "–"
    size = abs(value)
    if value == 0:
        return "0"
    if 1e-4 <= size < 1e-2:
        return f"{value:.2g}"
    return f"{value:.3f}" if 1e-2 <= size < 100 else f"{value:.0f}" if 100 <= size < 1e6 else f"{value:.1e}"


def alike(value: float, other: float | None) -> str:
    """A number to as many places as `number` gives another one: an error beside its value."""
    text = number(other)
    places = len(text.partition(".")[2])
    return f"{value:.{places}f}" if "." in text and "e" not in text else number(value)


def brief(value: float) -> str:
    """Two digits, for a sentence."""
    return f"{value:.2g}" if 1e-4 <= abs(value) < 10 else number(value) if abs(value) < 1e-4 else f"{value:.0f}"


def percent(share: float | None) -> str:
    """A share in per cent; a dash for what isn't known."""
    return "–" if share is None else f"{100 * share:.1f} %" if abs(share) < 10 else f"{100 * share:.0f} %"
