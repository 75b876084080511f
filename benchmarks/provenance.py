"""Errors of both kinds of `isobasin compare`, `scan`, AWM and HuRef: copies that were moved and changed, and strangers.

    python benchmarks/provenance.py CHECKPOINTS --data tinyshakespeare.txt --home copies -o results/provenance

CHECKPOINTS has scratch/ with gpt2-seed0, gpt2-seed1, llama-seed0 and llama-seed1, whose seeds were trained apart, and
may have books/ and stories260K/. Of each, copies are moved and then changed, as `benchmarks/copies.py` does it; smaller
models are trained on DATA, three seeds of each, and of the first of these every move meets every change. Strangers are
the same copies beside another seed, and seeds beside one another. What OUT/pairs.jsonl already has is left as it is;
OUT/tables.md and OUT/scores.png are written anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from characters import small
from copies import CHANGES, MERGED, MOVES, copies
from rivals import awm, huref, weights_of

import isobasin
from isobasin.checkpoints.output import replace_text
from isobasin.verbs.compare import RELATED
from isobasin.verbs.scan import RELATED_TOKENS, kin

CHEAP = [change for change in CHANGES if "steps" not in change]
# Of random halves.
HALVES = 200
weights = cache(weights_of)
printed = cache(isobasin.fingerprint)


def _scanned(a: Path, b: Path) -> float:
    return kin("", printed(a), printed(b)).score or 0.0


DETECTORS: dict[str, Callable[[Path, Path], float]] = {
    "compare": lambda a, b: isobasin.compare(a, b).score,
    "scan": _scanned,
    "AWM": lambda a, b: awm(weights(a), weights(b)),
    "HuRef": lambda a, b: huref(weights(a), weights(b)),
}
FIXED = {"compare": RELATED, "scan": RELATED_TOKENS}


GRID: list[tuple[int, list[str], list[str]]] = [
    (0, ["rotated", "all"], ["50 steps", *CHEAP]),
    (0, ["rotated"], ["500 steps"]),
    (0, [move for move in MOVES if move not in ("rotated", "all")], ["0 steps", "50 steps"]),
    (0, ["all"], ["0 steps", *MERGED]),
    (1, ["all"], ["50 steps", "pruned", "layer dropped"]),
]
"""Which moves meet which changes, of the models of which seed."""
WHOLE: list[tuple[int, list[str], list[str]]] = [(0, list(MOVES), [*CHANGES, *MERGED])]
"""The same of the small models: every move meets every change."""
FAMILIES = ("gpt2", "llama")
SEEDS = range(3)


Pair = tuple[Path, Path, str, bool]
"""An origin and another model, what was done, and whether they are related."""


def whole(folder: Path, data: Path, home: Path) -> Iterator[Pair]:
    """Every move with every change, of models that are trained here."""
    for family in FAMILIES:
        trained = [small(family, seed, data, home / f"small-{family}-seed{seed}", 600) for seed in SEEDS]
        yield from _apart(trained)
        yield from _changed(trained, home, WHOLE)


def scratch(folder: Path, data: Path, home: Path) -> Iterator[Pair]:
    """Some moves with some changes, of models that are there."""
    for family in FAMILIES:
        given = [folder / "scratch" / f"{family}-seed{seed}" for seed in (0, 1)]
        yield from _apart(given)
        yield from _changed(given, home, GRID)


def others(folder: Path, data: Path, home: Path) -> Iterator[Pair]:
    """A few copies of further models."""
    stories = folder / "stories260K"
    if stories.exists():
        yield from _beside(stories, None, copies(stories, None, home, ["all"], ["0 steps", "quantised"]))
    for family in ("gpt2-tied", "llama-gqa"):
        base, other = (folder / "books" / f"{family}-seed{i}" for i in (0, 1))
        if base.exists():
            yield from _apart([base, other])
            yield from _beside(base, other, copies(base, None, home, ["all"], ["pruned", "layer dropped"]))


SETS: dict[str, Callable[[Path, Path, Path], Iterator[Pair]]] = {"small": whole, "scratch": scratch, "others": others}


def _changed(models: list[Path], home: Path, grid: list[tuple[int, list[str], list[str]]]) -> Iterator[Pair]:
    """Copies of some models, beside those and beside strangers of another seed."""
    for seed, moves, changes in grid:
        base, other = models[seed], models[1 - seed]
        for kind, path in copies(base, other, home, moves, changes).items():
            # A mean with the stranger is no stranger's copy.
            yield from _beside(base, None if "stranger" in kind else other, {kind: path})


def _beside(base: Path, other: Path | None, found: dict[str, Path]) -> Iterator[Pair]:
    """Copies beside what they are of, and beside another model."""
    for kind, path in found.items():
        yield base, path, kind, True
        if other is not None:
            yield other, path, kind, False


def _apart(models: list[Path]) -> Iterator[Pair]:
    yield from ((a, b, "trained apart", False) for i, a in enumerate(models) for b in models[i + 1 :])


def measured(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """All pairs with the scores of all detectors."""
    file = asked.output / "pairs.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["a"], row["b"]) for row in found}
    for name in asked.sets:
        for a, b, kind, related in SETS[name](asked.checkpoints, asked.data, asked.home):
            if (a.name, b.name) in done:
                continue
            row = {"set": name, "a": a.name, "b": b.name, "kind": kind, "related": related}
            row |= {name: round(score(a, b), 4) for name, score in DETECTORS.items()}
            found.append(row)
            with file.open("a") as opened:
                opened.write(json.dumps(row) + "\n")
    return found


def area(rows: list[dict[str, Any]], name: str) -> float:
    """The share of pairs of a related and an unrelated row in which the former has the higher score."""
    good, bad = ([row[name] for row in rows if row["related"] is kind] for kind in (True, False))
    return sum((x > y) + (x == y) / 2 for x in good for y in bad) / (len(good) * len(bad))


def errors(rows: list[dict[str, Any]], name: str, threshold: float) -> tuple[float, float]:
    """The shares of related rows that are missed, and of unrelated ones that are taken for related."""
    missed = [row[name] < threshold for row in rows if row["related"]]
    false = [row[name] >= threshold for row in rows if not row["related"]]
    return sum(missed) / len(missed), sum(false) / len(false)


def chosen(rows: list[dict[str, Any]], name: str) -> float:
    """The threshold in the middle between two scores that has the fewest errors."""
    scores = sorted({row[name] for row in rows})
    middles = [(x + y) / 2 for x, y in itertools.pairwise(scores)]
    return min(middles, key=lambda threshold: sum(errors(rows, name, threshold)))


def on_other_halves(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float], list[float]]:
    """Thresholds chosen on random halves of the rows, and both errors on the others."""
    found: list[tuple[float, float, float]] = []
    draw = random.Random(0)
    for _ in range(HALVES):
        halves: list[list[dict[str, Any]]] = [[], []]
        for kind in (True, False):
            some = [row for row in rows if row["related"] is kind]
            draw.shuffle(some)
            halves[0] += some[::2]
            halves[1] += some[1::2]
        threshold = chosen(halves[0], name)
        found.append((threshold, *errors(halves[1], name, threshold)))
    return tuple(map(list, zip(*found, strict=True)))  # pyright: ignore


def tables(rows: list[dict[str, Any]]) -> str:
    """The report: errors of every detector, and scores by what was done."""
    lines = [
        _INTRODUCTION,
        "| models | pairs (related) | detector | AUC | threshold | missed | taken for related | fixed: missed, taken |",
        "|---" * 8 + "|",
    ]
    sets = {name: [row for row in rows if row["set"] == name] for name in dict.fromkeys(row["set"] for row in rows)}
    for kept, own in {**sets, "**all**": rows}.items():
        for name in DETECTORS:
            thresholds, missed, false = on_other_halves(own, name)
            fixed = ""
            if name in FIXED:
                fixed = "{}: {:.1%}, {:.1%}".format(FIXED[name], *errors(own, name, FIXED[name]))
            counts = f"{len(own)} ({sum(row['related'] for row in own)})"
            cells = (f"{area(own, name):.3f}", _span(thresholds, ".2f"), _mean(missed), _mean(false), fixed)
            lines.append(f"| {kept} | {counts} | {name} | {' | '.join(cells)} |")
    lines += ["", f"| models | what was done | pairs | {' | '.join(DETECTORS)} |", "|---" * (3 + len(DETECTORS)) + "|"]
    for kept, own in sets.items():
        for kind in dict.fromkeys(row["kind"] for row in own):
            some = [row for row in own if row["kind"] == kind]
            cells = (_scores(some, name) for name in DETECTORS)
            lines.append(f"| {kept} | {kind} | {sum(row['related'] for row in some)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _scores(rows: list[dict[str, Any]], name: str) -> str:
    """The span of scores of related pairs, and in brackets the highest one of strangers."""
    near, far = ([row[name] for row in rows if row["related"] is kind] for kind in (True, False))
    return " ".join([*([_span(near, ".2f")] if near else []), *([f"({max(far):.2f})"] if far else [])])


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """The least score of copies by move and change, a panel for each detector, beside strangers' highest."""
    from matplotlib import pyplot

    changes = [*CHANGES, *MERGED]
    _, panels = pyplot.subplots(2, 2, figsize=(11, 8.5), layout="constrained", sharex=True, sharey=True)
    for panel, name in zip(panels.flat, DETECTORS, strict=True):
        strange = max(row[name] for row in rows if not row["related"])
        scores = {row["kind"]: [] for row in rows}
        for row in rows:
            scores[row["kind"]] += [row[name]] if row["related"] else []
        cells = [[min(scores.get(f"{move}, {change}", []), default=math.nan) for move in MOVES] for change in changes]
        panel.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (y, line), x in itertools.product(enumerate(cells), range(len(MOVES))):
            if not math.isnan(line[x]):
                # What a stranger reaches as well is red.
                color = "red" if line[x] <= strange else "white" if line[x] < 0.6 else "black"
                panel.text(x, y, f"{line[x]:.2f}", ha="center", va="center", color=color, fontsize=8)
        panel.set_xticks(range(len(MOVES)), [move.replace(" ", "\n", 1) for move in MOVES], fontsize=8)
        panel.set_yticks(range(len(changes)), changes, fontsize=8)
        panel.set_title(f"{name} (strangers: up to {strange:.2f})", fontsize=10)
    pyplot.savefig(path, dpi=110)


def _span(values: list[float], form: str) -> str:
    low, high = (format(f(values), form) for f in (min, max))
    return low if low == high else f"{low} – {high}"


def _mean(values: list[float]) -> str:
    mean = sum(values) / len(values)
    spread = (sum((x - mean) ** 2 for x in values) / len(values)) ** 0.5
    return f"{mean:.1%} ± {spread:.1%}"


_INTRODUCTION = """# Copies and strangers: errors and scores

`python benchmarks/provenance.py` writes this page and `pairs.jsonl`, which has all pairs. "small": two layers, width
64, every move with every change; "scratch": four layers, width 128, some of them; "others": books/ and stories260K/.
Thresholds are chosen on a random half of the pairs and both errors counted on the other, 200 times over: means ±
standard deviations. "fixed" are the thresholds that the commands have. Below, the spans of copies' scores by what was
done, and in brackets the highest score of the same copies beside a stranger. In the figure, white was not run, and red
scores are no higher than some stranger's. HuRef compares last layers, which go by another number where one was dropped.

![Least scores of copies by move and change](scores.png)
"""


def main() -> None:
    """Measure what isn't there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="text that small models are trained on")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True, help="folder for the copies")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    for folder in (asked.output, asked.home):
        folder.mkdir(parents=True, exist_ok=True)
    rows = measured(asked)
    replace_text(asked.output / "tables.md", tables(rows))
    figure(rows, asked.output / "scores.png")


if __name__ == "__main__":
    main()
