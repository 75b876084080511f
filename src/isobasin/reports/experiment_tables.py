"""An experiment's tables: raw values, as Markdown for people and as CSV for machines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from isobasin.choices import Redrawn
from isobasin.experiments.cells import Cell
from isobasin.experiments.plan import Group, SettingPlan
from isobasin.records.curves import NAIVE, chosen_rank
from isobasin.reports.frames import Table, spread
from isobasin.reports.style import PERCENT, metric_name, percent, styles

Result = dict[str, Any]
Results = Callable[[Cell], Result | None]
"""The result of a cell; None if it isn't done."""

CONNECTED = 0.05
"""Up to this share of the loss of the ends, a barrier counts as none."""

_PLACE = ("setting", "scope")
# Appendix of arXiv 2606.17830: what is left of the naive barrier, in per cent, over its four data sets.
_PAPER_STAGE_2 = {"heads": "62–91", "orthogonal": "10–16", "paper": "7–12"}
# Its findings on linear mode connectivity after matching.
_PAPER_SCOPES = {
    Redrawn.first_attention: ("yes", "yes"),
    Redrawn.first_layer: ("yes", "yes, but on ImageNet"),
    Redrawn.all_attention: ("yes", "mostly"),
    Redrawn.entire_model: ("yes", "no"),
}


_WAYS = ("attention", "activations", "permutations", "model", "model-data", "model-activations", "refined")
WAYS = {
    NAIVE: "naive",
    "heads": "head permutations",
    "orthogonal": "heads, orthogonal maps",
    "paper": "published (start + gradient descent)",
    **{way: style.name for way, style in styles(_WAYS).items()},
    "circuits": "mean circuits after the match",
}
"""What ways to align are called; in the order of `isobasin.experiments.alignments`."""


def tables(plans: Sequence[SettingPlan], results: Results) -> list[Table]:
    """All tables that have a row."""
    built = (ends, barriers, findings, stage_1, stage_2, head_costs, alignments, reinitialise, symmetry_breaking)
    return [table for table in (build(plans, results) for build in built) if len(table.frame)]


def measured(group: Group, results: Results) -> dict[tuple[int, int], Result]:
    """The pairs of a group that are done."""
    found = {seeds: results(cell) for seeds, cell in group.pairs.items()}
    return {seeds: result for seeds, result in found.items() if result is not None}


def _groups(plans: Sequence[SettingPlan]) -> Iterator[tuple[str, Group]]:
    return ((plan.setting.title, group) for plan in plans for group in plan.groups)


def ends(plans: Sequence[SettingPlan], results: Results) -> Table:
    """How well the models do, from the ends of the naive lines."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for title, group in _groups(plans):
        pretrained = results(next(iter(group.finetunes.values())).needs[0])
        before = None if pretrained is None else pretrained["test"]["loss"]
        for seeds, result in measured(group, results).items():
            line = result["lines"][NAIVE]
            for seed, at in zip(seeds, (0, -1), strict=True):
                place = {"setting": title, "scope": group.title, "pretrained loss": before}
                metrics = dict(_metric(name, values[at]) for name, values in line["metrics"].items())
                rows[title, group.title, seed] = place | {"loss": line["losses"][at]} | metrics
    values = list(dict.fromkeys(name for row in rows.values() for name in list(row)[3:])) or ["loss"]
    frame = spread(list(rows.values()), _PLACE, values, **{"pretrained loss": "first"})
    columns = (*_PLACE, "models", "pretrained loss", *values)
    note = "On the test data; mean ± standard deviation over seeds."
    return Table("ends", "The models", note, columns, frame.rename(columns={"pairs": "models"}))


def _metric(name: str, value: float | None) -> tuple[str, float | None]:
    """A metric as it is shown: its column and its value, in per cent if it is a share."""
    return (f"{metric_name(name)}, %", _hundredfold(value)) if name in PERCENT else (metric_name(name), value)


def barriers(plans: Sequence[SettingPlan], results: Results) -> Table:
    """Every scope and method: the barrier, its share of the naive one, and whether the models are connected."""
    by, values = (*_PLACE, "method"), ("barrier", "% of naive", "% of the ends' loss")
    rows: list[tuple[Any, ...]] = []
    for title, group in _groups(plans):
        pairs = measured(group, results).values()
        for method, style in styles([method for result in pairs for method in result["lines"]]).items():
            for line in (result["lines"][method] for result in pairs if method in result["lines"]):
                shares = line["relative"], line["share_of_ends"]
                rows.append((title, group.title, style.name, line["barrier"], *map(_hundredfold, shares), shares[1]))
    note = (
        "Mean ± standard deviation over pairs of seeds. Connected: the barrier is at most "
        f"{percent(CONNECTED)} of the mean loss of the ends."
    )
    frame = spread(rows, by, values, connected=_connected)
    return Table("barriers", "Barriers", note, (*by, "pairs", *values, "connected"), frame)


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _connected(shares: Iterable[float | None]) -> str:
    """Whether all pairs are connected, or how many. A barrier that isn't finite is no connection."""
    found = [share is not None and share <= CONNECTED for share in shares]
    return "yes" if all(found) else f"{sum(found)} of {len(found)}" if any(found) else "no"


def findings(plans: Sequence[SettingPlan], results: Results) -> Table:
    """For each setting and scope, whether there is linear mode connectivity after matching; last the paper's."""
    answers = {
        plan.setting.title: {scope: answer for scope in _PAPER_SCOPES if (answer := _answer(plan, scope, results))}
        for plan in plans
    }
    scopes = [scope for scope in _PAPER_SCOPES if any(scope in found for found in answers.values())]
    rows = [(title, *map(found.get, scopes)) for title, found in answers.items() if found]
    if rows:
        small, large = zip(*(_PAPER_SCOPES[scope] for scope in scopes), strict=True)
        rows += [("paper: small data", *small), ("paper: large data", *large)]
    columns = ("setting", *(scope.value for scope in scopes))
    note = (
        "Connected by the method that leaves least on average, of all that were measured, which is named; in brackets "
        "without any."
    )
    return Table("findings", "Is there linear mode connectivity?", note, columns, pd.DataFrame(rows, columns=columns))


def _answer(plan: SettingPlan, scope: Redrawn, results: Results) -> str:
    """Of all groups of one scope: with the best method, and as they are."""
    shares: dict[str, list[float]] = {}
    for group in (group for group in plan.groups if group.scope is scope):
        for seeds, result in measured(group, results).items():
            for method, share in _shares(result, done(group, "alignments", results).get(seeds)).items():
                shares.setdefault(method, []).append(share)
    naive = shares.pop(NAIVE, None)
    if naive is None:
        return ""
    known = {method: found for method, found in shares.items() if len(found) == len(naive)}
    if not known:
        return f"– ({_connected(naive)})"
    best = min(known, key=lambda method: math.fsum(known[method]))
    return f"{_connected(known[best])}, {best} ({_connected(naive)})"


def _shares(result: Result, ways: Result | None) -> dict[str, float]:
    """What every method and every way to align one pair leaves, as a share of the ends' loss; infinite if unknown."""
    lines, naive = result["lines"], result["lines"][NAIVE]["losses"]
    found = {name if name == NAIVE else _name(name): line["share_of_ends"] for name, line in lines.items()}
    loss = (naive[0] + naive[-1]) / 2
    for way, row in {} if ways is None else ways["ways"].items():
        if way != NAIVE and row.get("barrier") is not None:
            found[WAYS[way]] = row["barrier"] / loss if loss > 0 else None
    return {name: math.inf if share is None else share for name, share in found.items()}


def _name(method: str) -> str:
    return styles([method])[method].name


def done(group: Group, kind: str, results: Results) -> dict[tuple[int, int], Result]:
    """The results of one ablation of a group that are there, by pair."""
    found = {seeds: results(cell) for seeds, cell in group.ablations.get(kind, {}).items()}
    return {seeds: result for seeds, result in found.items() if result is not None}


def _ablated(
    plans: Sequence[SettingPlan], results: Results, kind: str
) -> Iterator[tuple[str, str, dict[tuple[int, int], Result]]]:
    """Title, scope and results by pair of every group that was ablated so."""
    for title, group in _groups(plans):
        if found := done(group, kind, results):
            yield title, group.title, found


def stage_1(plans: Sequence[SettingPlan], results: Results) -> Table:
    """The rank of the chosen head permutation."""
    rows = [
        (title, scope, f"{a} and {b}", rank, result["of"], result["l_hat"], result["naive"]["barrier"])
        for title, scope, pairs in _ablated(plans, results, "stage-1")
        for (a, b), result in pairs.items()
        for rank in [chosen_rank(result["permutations"])]
    ]
    columns = ("setting", "scope", "seeds", "rank", "of", "L̂", "naive barrier")
    note = (
        "Of the head permutation that stage 1 chose for the first layer, each followed by stage 2. "
        "L̂ = 100 (L_chosen − L_best) / (L_naive − L_best), with barriers L."
    )
    frame = pd.DataFrame(rows, columns=columns)
    return Table("stage-1", "Stage 1: rank of the chosen head permutation", note, columns, frame)


def stage_2(plans: Sequence[SettingPlan], results: Results) -> Table:
    """What is left of the naive barrier by the parts of stage 2."""
    by, values = (*_PLACE, "stage 2"), ("barrier", "% of naive")
    rows = [
        (title, scope, style.name, row["barrier"], row["percent"], _PAPER_STAGE_2.get(method))
        for title, scope, pairs in _ablated(plans, results, "stage-2")
        for method, style in styles([method for result in pairs.values() for method in result["methods"]]).items()
        for row in (result["methods"][method] for result in pairs.values())
    ]
    frame = spread(rows, by, values, **{"paper, %": "first"})
    note = "Mean ± standard deviation over pairs. The paper's ranges are over its four data sets, with other models."
    return Table("stage-2", "Stage 2: what is left of the naive barrier", note, (*by, *values, "paper, %"), frame)


def head_costs(plans: Sequence[SettingPlan], results: Results) -> Table:
    """Barriers by what stage 1 compares heads by."""
    by, values = (*_PLACE, "head cost"), ("barrier", "% of naive")
    rows: list[tuple[Any, ...]] = []
    for title, scope, pairs in _ablated(plans, results, "head-costs"):
        for result in pairs.values():
            naive, *others = result["costs"].items()
            best = min((row for _, row in others), key=lambda row: row["barrier"])
            for cost, row in (("naive", naive[1]), *others):
                same = row["heads"] == best["heads"] if "heads" in row else None
                rows.append((title, scope, cost, row["barrier"], row["percent"], same))
    frame = spread(rows, by, values, **{"heads of the best": _how_often})
    note = "Mean ± standard deviation over pairs; the last column says how often the heads are those of the best cost."
    return Table("head-costs", "What heads are compared by", note, (*by, *values, "heads of the best"), frame)


def _how_often(same: Iterable[bool | None]) -> str | None:
    known = [bool(one) for one in same if one in (True, False)]
    return f"{sum(known)} of {len(known)}" if known else None


def alignments(plans: Sequence[SettingPlan], results: Results) -> Table:
    """Barriers after every way to align, and what they cost."""
    by, values = (*_PLACE, "model B is moved by"), ("barrier", "% of naive", "at the middle", "seconds")
    rows = [
        (title, scope, WAYS[way], *map(row.get, ("barrier", "percent", "middle")), result["seconds"].get(way))
        for title, scope, pairs in _ablated(plans, results, "alignments")
        for result in pairs.values()
        for way, row in result["ways"].items()
    ]
    note = (
        "Mean ± standard deviation over pairs. Every move keeps function and shapes, verified; permutations of heads, "
        "orthogonal maps, the paper's method and permutations of everything are what others do. At the middle: loss "
        "above the mean of the ends'; circuits have no line but a merged model."
    )
    return Table("alignments", "Aligned in every way", note, (*by, "pairs", *values), spread(rows, by, values))


def reinitialise(plans: Sequence[SettingPlan], results: Results) -> Table:
    """Losses of the pretrained models with the attention of one layer drawn anew."""
    rows: list[tuple[Any, ...]] = []
    for plan in plans:
        result = None if plan.reinitialise is None else results(plan.reinitialise)
        if result is not None:
            drawn = [(str(layer["layer"]), draw) for layer in result["layers"] for draw in layer["draws"]]
            found = ("none", result["pretrained"]), *drawn
            rows += [(plan.setting.title, layer, one["loss"]) for layer, one in found]
    frame = spread(rows, ("setting", "layer"), ("loss",))
    note = "Nothing is trained after that; mean ± standard deviation over draws."
    return Table("reinitialise", "One attention layer drawn anew", note, ("setting", "layer", "loss"), frame)


def symmetry_breaking(plans: Sequence[SettingPlan], results: Results) -> Table:
    """Rotary pairs aligned by the wrong group and by the right one."""
    rows = [
        {
            **dict(zip((*_PLACE, "group"), (title, scope, group), strict=True)),
            "loss added": _difference(row["loss"], row["loss_before"]),
            "naive barrier": result["naive"]["barrier"],
            "barrier": row["barrier"],
            **{f"n = {offset}": change for offset, change in row["change"].items()},
        }
        for title, scope, pairs in _ablated(plans, results, "symmetry-breaking")
        for result in pairs.values()
        for group, row in result["groups"].items()
    ]
    by = (*_PLACE, "group")
    values = list(dict.fromkeys(name for row in rows for name in list(row)[3:])) or ["barrier"]
    note = (
        "GL(d_h) keeps Q Kᵀ and is the group without rotary positions; H(d_h) keeps Q R_n Kᵀ for every distance n. "
        "Loss added: to model B by the move itself. Last columns: relative change of the forms Q R_n Kᵀ by the move."
    )
    frame = spread(rows, by, values)
    return Table("symmetry-breaking", "Aligned by the wrong group", note, (*by, *values), frame)


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
