"""An experiment's tables: raw values, as Markdown for people and as CSV for machines."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from isobasin.choices import Redrawn
from isobasin.experiments.cells import Cell
from isobasin.experiments.plan import Group, SettingPlan
from isobasin.records.curves import NAIVE, chosen_rank
from isobasin.reports.style import PERCENT, alike, metric_name, number, percent, styles
from isobasin.text import csv_cell, markdown

Result = dict[str, Any]
Results = Callable[[Cell], Result | None]
"""The result of a cell; None if it isn't done."""

CONNECTED = 0.05
"""Up to this share of the loss of the ends, a barrier counts as none."""

_MISSING = "–"
# Appendix of arXiv 2606.17830: what is left of the naive barrier, in per cent, over its four data sets.
_PAPER_STAGE_2 = {"heads": "62–91", "orthogonal": "10–16", "paper": "7–12"}
# Its findings on linear mode connectivity after matching.
_PAPER_SCOPES = {
    Redrawn.first_attention: ("yes", "yes"),
    Redrawn.first_layer: ("yes", "yes, but on ImageNet"),
    Redrawn.all_attention: ("yes", "mostly"),
    Redrawn.entire_model: ("yes", "no"),
}


@dataclass(frozen=True)
class Spread:
    """Several values of one quantity."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """The values that are known."""
        return cls(tuple(value for value in values if value is not None))

    @property
    def mean(self) -> float | None:
        """Their mean."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Their standard deviation; None of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, tenths: bool = False) -> str:
        """Mean and standard deviation; with one decimal, or as many as `number` gives the mean."""
        if self.mean is None:
            return number(None)
        mean = f"{self.mean:.1f}" if tenths else number(self.mean)
        if self.deviation is None:
            return mean
        return f"{mean} ± {f'{self.deviation:.1f}' if tenths else alike(self.deviation, self.mean)}"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Of its CSV file.
        title: Above it.
        note: Below the title.
        columns: Their names.
        rows: Values: text, numbers, spreads, or None.
    """

    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def markdown(self) -> str:
        """For people."""
        cells = [
            [_shown(value, "%" in name) for name, value in zip(self.columns, row, strict=True)] for row in self.rows
        ]
        columns = [markdown(name) for name in self.columns]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        first = [_padded(columns, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
        lines = [*first, *(_padded(row, widths) for row in cells)]
        return "\n".join([f"## {self.title}", "", *([self.note, ""] if self.note else []), *lines])

    def csv(self) -> str:
        """For machines: a spread becomes its mean and standard deviation, in two columns."""
        spreads = {i for row in self.rows for i, value in enumerate(row) if isinstance(value, Spread)}
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = [[name, f"{name} sd"] if i in spreads else [name] for i, name in enumerate(self.columns)]
        raw = ([_raw(value, i in spreads) for i, value in enumerate(row)] for row in self.rows)
        writer.writerows(map(csv_cell, chain.from_iterable(parts)) for parts in (names, *raw))
        return out.getvalue()


def _shown(value: Any, percent: bool) -> str:
    if value is None:
        return _MISSING
    if isinstance(value, Spread):
        return value.text(tenths=percent)
    return number(value) if isinstance(value, float) else markdown(str(value))


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _raw(value: Any, spread: bool) -> list[Any]:
    if spread:
        return [value.mean, value.deviation] if isinstance(value, Spread) else [value, None]
    return [value]


_WAYS = {
    NAIVE: "naive",
    "heads": "head permutations",
    "orthogonal": "heads, orthogonal maps",
    "paper": "paper (start + gradient descent)",
    "attention": "ours, attention",
    "activations": "ours, attention by activations",
    "permutations": "permutations of stream, units, heads",
    "model": "ours, whole model",
    "model-data": "ours, whole model, chosen by data",
    "model-activations": "ours, whole model by activations",
    "refined": "ours, refined",
    "circuits": "mean circuits after ours",
}
"""What ways to align are called; in the order of `isobasin.experiments.alignments`."""


def tables(plans: Sequence[SettingPlan], results: Results) -> list[Table]:
    """All tables that have a row."""
    built = (ends, barriers, findings, stage_1, stage_2, head_costs, alignments, reinitialise, symmetry_breaking)
    found = [build(plans, results) for build in built]
    return [table for table in found if table.rows]


def measured(group: Group, results: Results) -> dict[tuple[int, int], Result]:
    """The pairs of a group that are done."""
    found = {seeds: results(cell) for seeds, cell in group.pairs.items()}
    return {seeds: result for seeds, result in found.items() if result is not None}


def _groups(plans: Sequence[SettingPlan]) -> Iterator[tuple[str, Group]]:
    return ((plan.setting.title, group) for plan in plans for group in plan.groups)


def ends(plans: Sequence[SettingPlan], results: Results) -> Table:
    """How well the models do, from the ends of the naive lines."""
    rows: list[tuple[Any, ...]] = []
    names: list[str] = []
    for title, group in _groups(plans):
        loss: dict[int, float | None] = {}
        metrics: dict[str, dict[int, float | None]] = {}
        for seeds, result in measured(group, results).items():
            line = result["lines"][NAIVE]
            for seed, at in zip(seeds, (0, -1), strict=True):
                loss[seed] = line["losses"][at]
                for metric, values in line["metrics"].items():
                    metrics.setdefault(metric, {})[seed] = values[at]
        if not loss:
            continue
        names += [metric for metric in metrics if metric not in names]
        pretrained = results(_pretrain_of(group))
        before = None if pretrained is None else pretrained["test"]["loss"]
        spreads = {metric: Spread.of(list(values.values())) for metric, values in metrics.items()}
        rows.append((title, group.title, len(loss), before, Spread.of(list(loss.values())), spreads))
    filled = tuple((*row[:-1], *(_metric(row[-1], name) for name in names)) for row in rows)
    shown = [f"{metric_name(name)}{', %' if name in PERCENT else ''}" for name in names]
    columns = ("setting", "scope", "models", "pretrained loss", "loss", *shown)
    return Table("ends", "The models", "On the test data; mean ± standard deviation over seeds.", columns, filled)


def _pretrain_of(group: Group) -> Cell:
    return next(iter(group.finetunes.values())).needs[0]


def _metric(spreads: dict[str, Spread], name: str) -> Spread | None:
    found = spreads.get(name)
    if found is None or name not in PERCENT:
        return found
    return Spread(tuple(100 * value for value in found.values))


def barriers(plans: Sequence[SettingPlan], results: Results) -> Table:
    """Every scope and method: the barrier, its share of the naive one, and whether the models are connected."""
    rows: list[tuple[Any, ...]] = []
    for title, group in _groups(plans):
        pairs = measured(group, results)
        names = styles([method for result in pairs.values() for method in result["lines"]])
        for method, style in names.items():
            lines = [result["lines"][method] for result in pairs.values() if method in result["lines"]]
            relative = Spread.of([_hundredfold(line["relative"]) for line in lines])
            share = Spread.of([_hundredfold(line["share_of_ends"]) for line in lines])
            barrier = Spread.of([line["barrier"] for line in lines])
            rows.append((title, group.title, style.name, len(lines), barrier, relative, share, _connected(lines)))
    columns = ("setting", "scope", "method", "pairs", "barrier", "% of naive", "% of the ends' loss", "connected")
    note = (
        "Mean ± standard deviation over pairs of seeds. Connected: the barrier is at most "
        f"{percent(CONNECTED)} of the mean loss of the ends."
    )
    return Table("barriers", "Barriers", note, columns, tuple(rows))


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _connected(lines: Sequence[Result]) -> str:
    """Whether all pairs are connected, or how many. A barrier that isn't finite is no connection."""
    shares = [line["share_of_ends"] for line in lines]
    found = sum(share is not None and share <= CONNECTED for share in shares)
    return "yes" if found == len(shares) else "no" if not found else f"{found} of {len(shares)}"


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
    note = "Connected after matching by the last method measured; in brackets without any."
    return Table("findings", "Is there linear mode connectivity?", note, columns, tuple(rows))


def _answer(plan: SettingPlan, scope: Redrawn, results: Results) -> str:
    """Of all groups of one scope: with the last method, and as they are."""
    groups = [group for group in plan.groups if group.scope is scope]
    pairs = [result["lines"] for group in groups for result in measured(group, results).values()]
    if not pairs:
        return ""
    matched = [lines[list(styles(list(lines)))[-1]] for lines in pairs]
    return f"{_connected(matched)} ({_connected([lines[NAIVE] for lines in pairs])})"


def _ablated(
    plans: Sequence[SettingPlan], results: Results, kind: str
) -> Iterator[tuple[str, str, dict[tuple[int, int], Result]]]:
    """Title, scope and results by pair of every group that was ablated so."""
    for title, group in _groups(plans):
        found = {seeds: results(cell) for seeds, cell in group.ablations.get(kind, {}).items()}
        done = {seeds: result for seeds, result in found.items() if result is not None}
        if done:
            yield title, group.title, done


def stage_1(plans: Sequence[SettingPlan], results: Results) -> Table:
    """The rank of the chosen head permutation."""
    rows = [
        (
            title,
            scope,
            f"{a} and {b}",
            chosen_rank(result["permutations"]),
            result["of"],
            result["l_hat"],
            result["naive"]["barrier"],
        )
        for title, scope, pairs in _ablated(plans, results, "stage-1")
        for (a, b), result in pairs.items()
    ]
    columns = ("setting", "scope", "seeds", "rank", "of", "L̂", "naive barrier")
    note = (
        "Of the head permutation that stage 1 chose for the first layer, each followed by stage 2. "
        "L̂ = 100 (L_chosen − L_best) / (L_naive − L_best), with barriers L."
    )
    return Table("stage-1", "Stage 1: rank of the chosen head permutation", note, columns, tuple(rows))


def stage_2(plans: Sequence[SettingPlan], results: Results) -> Table:
    """What is left of the naive barrier by the parts of stage 2."""
    rows: list[tuple[Any, ...]] = []
    for title, scope, pairs in _ablated(plans, results, "stage-2"):
        methods = styles([method for result in pairs.values() for method in result["methods"]])
        for method, style in methods.items():
            found = [result["methods"][method] for result in pairs.values()]
            barrier, share = (Spread.of([row[name] for row in found]) for name in ("barrier", "percent"))
            rows.append((title, scope, style.name, barrier, share, _PAPER_STAGE_2.get(method)))
    columns = ("setting", "scope", "stage 2", "barrier", "% of naive", "paper, %")
    note = "Mean ± standard deviation over pairs. The paper's ranges are over its four data sets, with other models."
    return Table("stage-2", "Stage 2: what is left of the naive barrier", note, columns, tuple(rows))


def head_costs(plans: Sequence[SettingPlan], results: Results) -> Table:
    """Barriers by what stage 1 compares heads by."""
    rows: list[tuple[Any, ...]] = []
    for title, scope, pairs in _ablated(plans, results, "head-costs"):
        for cost in dict.fromkeys(cost for result in pairs.values() for cost in result["costs"]):
            found = [result["costs"][cost] for result in pairs.values()]
            barrier, share = (Spread.of([row[name] for row in found]) for name in ("barrier", "percent"))
            same = None
            if cost != NAIVE:
                best = [min(_matched(result), key=lambda row: row["barrier"]) for result in pairs.values()]
                agree = sum(row["heads"] == other["heads"] for row, other in zip(found, best, strict=True))
                same = f"{agree} of {len(found)}"
            rows.append((title, scope, "naive" if cost == NAIVE else cost, barrier, share, same))
    columns = ("setting", "scope", "head cost", "barrier", "% of naive", "heads of the best")
    note = "Mean ± standard deviation over pairs; the last column says how often the heads are those of the best cost."
    return Table("head-costs", "What heads are compared by", note, columns, tuple(rows))


def _matched(result: Result) -> list[Result]:
    return [row for cost, row in result["costs"].items() if cost != NAIVE]


def alignments(plans: Sequence[SettingPlan], results: Results) -> Table:
    """Barriers after every way to align, and what they cost."""
    rows: list[tuple[Any, ...]] = []
    for setting, scope, pairs in _ablated(plans, results, "alignments"):
        for way in next(iter(pairs.values()))["ways"]:
            found = [result["ways"][way] for result in pairs.values()]
            barrier, share, middle = (
                Spread.of([row.get(key) for row in found]) for key in ("barrier", "percent", "middle")
            )
            seconds = Spread.of([result["seconds"].get(way) for result in pairs.values()])
            rows.append((setting, scope, _WAYS[way], len(pairs), barrier, share, middle, seconds))
    columns = ("setting", "scope", "model B is moved by", "pairs", "barrier", "% of naive", "at the middle", "seconds")
    note = (
        "Mean ± standard deviation over pairs. Every move keeps function and shapes, verified; permutations of heads, "
        "orthogonal maps, the paper's method and permutations of everything are what others do. At the middle: loss "
        "above the mean of the ends'; circuits have no line but a merged model."
    )
    return Table("alignments", "Aligned in every way", note, columns, tuple(rows))


def reinitialise(plans: Sequence[SettingPlan], results: Results) -> Table:
    """Losses of the pretrained models with the attention of one layer drawn anew."""
    rows: list[tuple[Any, ...]] = []
    for plan in plans:
        result = None if plan.reinitialise is None else results(plan.reinitialise)
        if result is not None:
            rows.append((plan.setting.title, "none", result["pretrained"]["loss"]))
            for layer in result["layers"]:
                spread = Spread.of([draw["loss"] for draw in layer["draws"]])
                rows.append((plan.setting.title, str(layer["layer"]), spread))
    note = "Nothing is trained after that; mean ± standard deviation over draws."
    title = "One attention layer drawn anew"
    return Table("reinitialise", title, note, ("setting", "layer", "loss"), tuple(rows))


def symmetry_breaking(plans: Sequence[SettingPlan], results: Results) -> Table:
    """Rotary pairs aligned by the wrong group and by the right one."""
    rows: list[tuple[Any, ...]] = []
    offsets: list[str] = []
    for title, scope, pairs in _ablated(plans, results, "symmetry-breaking"):
        naive = Spread.of([result["naive"]["barrier"] for result in pairs.values()])
        for group in next(iter(pairs.values()))["groups"]:
            found = [result["groups"][group] for result in pairs.values()]
            offsets += [offset for offset in found[0]["change"] if offset not in offsets]
            change = {offset: Spread.of([row["change"].get(offset) for row in found]) for offset in offsets}
            rise = Spread.of([_difference(row["loss"], row["loss_before"]) for row in found])
            barrier = Spread.of([row["barrier"] for row in found])
            rows.append((title, scope, group, rise, naive, barrier, change))
    filled = tuple((*row[:-1], *(row[-1].get(offset) for offset in offsets)) for row in rows)
    columns = ("setting", "scope", "group", "loss added", "naive barrier", "barrier", *(f"n = {n}" for n in offsets))
    note = (
        "GL(d_h) keeps Q Kᵀ and is the group without rotary positions; H(d_h) keeps Q R_n Kᵀ for every distance n. "
        "Loss added: to model B by the move itself. Last columns: relative change of the forms Q R_n Kᵀ by the move."
    )
    return Table("symmetry-breaking", "Aligned by the wrong group", note, columns, filled)


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
