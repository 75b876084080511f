"""Errors of both kinds of `isobasin compare`, `scan`, AWM and HuRef: copies that were moved and changed, and strangers.

    python benchmarks/provenance.py CHECKPOINTS --data tinyshakespeare.txt --home copies -o results/provenance

CHECKPOINTS has scratch/ with gpt2-seed0, gpt2-seed1, llama-seed0 and llama-seed1, whose seeds were trained apart, and
may have books/ and stories260K/. Of each, copies are moved and then changed, as `benchmarks/copies.py` does it; other
seeds of smaller models are trained on DATA. With `--full` every move meets every change. What OUT/pairs.jsonl already
has is left as it is; OUT/tables.md is written anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from copies import CHANGES, MERGED, MOVES, copies, train
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


def grid(full: bool) -> list[tuple[int, list[str], list[str]]]:
    """Which moves meet which changes, of the models of which seed; what takes longest last."""
    if full:
        return [(seed, list(MOVES), [*CHANGES, *MERGED]) for seed in (0, 1)]
    return [
        (0, ["rotated", "all"], ["50 steps", *CHEAP]),
        (0, ["rotated"], ["500 steps"]),
        (0, [move for move in MOVES if move not in ("rotated", "all")], ["0 steps", "50 steps"]),
        (0, ["all"], ["0 steps", *MERGED]),
        (1, ["all"], ["50 steps", "pruned", "layer dropped"]),
    ]


def pairs(folder: Path, data: Path, home: Path, full: bool) -> Iterator[tuple[Path, Path, str, bool]]:
    """Pairs of an origin and another model, what was done, and whether they are related."""
    for family in ("gpt2", "llama"):
        yield from _apart([folder / "scratch" / f"{family}-seed{seed}" for seed in (0, 1)])
    for seed, moves, changes in grid(full):
        for family in ("gpt2", "llama"):
            base, other = (folder / "scratch" / f"{family}-seed{i}" for i in (seed, 1 - seed))
            for kind, path in copies(base, other, home, moves, changes).items():
                yield base, path, kind, True
                # The same copies beside a stranger; of the smaller grid, some of them.
                if "stranger" not in kind and (full or kind.startswith(("as it is", "all"))):
                    yield other, path, kind, False
    for family in ("gpt2", "llama"):
        yield from _apart([small(family, seed, data, home) for seed in range(3)])
    if (stories := folder / "stories260K").exists():
        for kind, path in copies(stories, None, home, ["all"], ["0 steps", "quantised"]).items():
            yield stories, path, kind, True
    for family in ("gpt2-tied", "llama-gqa"):
        base, other = (folder / "books" / f"{family}-seed{i}" for i in (0, 1))
        if base.exists():
            yield from _apart([base, other])
            for kind, path in copies(base, None, home, ["all"], ["pruned", "layer dropped"]).items():
                yield base, path, kind, True
                yield other, path, kind, False


def _apart(models: list[Path]) -> Iterator[tuple[Path, Path, str, bool]]:
    yield from ((a, b, "trained apart", False) for i, a in enumerate(models) for b in models[i + 1 :])


def small(family: str, seed: int, data: Path, home: Path) -> Path:
    """A model of two layers and width 64, trained from scratch for 200 steps."""
    target = home / f"small {family} {seed}"
    if not target.exists():
        text = data.read_text()
        letters = {c: i for i, c in enumerate(sorted(set(text)))}
        sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"vocab_size": len(letters), "max_position_embeddings": 64, "tie_word_embeddings": False}
        sizes |= {"intermediate_size": 176} if family == "llama" else {}
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(family, **sizes)
        model = transformers.AutoModelForCausalLM.from_config(config)
        train(model, torch.tensor([letters[c] for c in text]), 200, 3e-3, seed).save_pretrained(target)
    return target


def measured(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """All pairs with the scores of all detectors."""
    file = asked.output / "pairs.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["a"], row["b"]) for row in found}
    for a, b, kind, related in pairs(asked.checkpoints, asked.data, asked.home, asked.full):
        if (a.name, b.name) in done:
            continue
        row = {"a": a.name, "b": b.name, "kind": kind, "related": related}
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
        "| detector | AUC | threshold | missed | taken for related | fixed threshold: missed, taken |",
        "|---|---|---|---|---|---|",
    ]
    for name in DETECTORS:
        thresholds, missed, false = on_other_halves(rows, name)
        fixed = ""
        if name in FIXED:
            fixed = "{}: {:.1%}, {:.1%}".format(FIXED[name], *errors(rows, name, FIXED[name]))
        cells = (f"{area(rows, name):.3f}", _span(thresholds, ".2f"), _mean(missed), _mean(false), fixed)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| what was done | pairs | {' | '.join(DETECTORS)} |", "|---|---|" + "---|" * len(DETECTORS)]
    kinds = [(row["kind"], row["related"]) for row in rows]
    for kind, related in dict.fromkeys(kinds):
        own = [row for row in rows if (row["kind"], row["related"]) == (kind, related)]
        spans = (_span([row[name] for row in own], ".2f") for name in DETECTORS)
        label = kind if related else f"{kind} (strangers)" if kind != "trained apart" else kind
        lines.append(f"| {label} | {len(own)} | {' | '.join(spans)} |")
    return "\n".join(lines) + "\n"


def _span(values: list[float], form: str) -> str:
    low, high = (format(f(values), form) for f in (min, max))
    return low if low == high else f"{low} – {high}"


def _mean(values: list[float]) -> str:
    mean = sum(values) / len(values)
    spread = (sum((x - mean) ** 2 for x in values) / len(values)) ** 0.5
    return f"{mean:.1%} ± {spread:.1%}"


def main() -> None:
    """Measure what isn't there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="text that small models are trained on")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True, help="folder for the copies")
    parser.add_argument("--full", action="store_true", help="every move with every change")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    for folder in (asked.output, asked.home):
        folder.mkdir(parents=True, exist_ok=True)
    replace_text(asked.output / "tables.md", tables(measured(asked)))


if __name__ == "__main__":
    main()
