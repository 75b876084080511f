"""How much of a fine-tune's gain arrives on another base: siblings and independent ones, by every scope.

    python benchmarks/transport.py A B ... --old tinyshakespeare.txt --new books.txt -o results/transport

A and B, and what follows by twos, are causal language models by characters (`char_vocab.json` in each) that were
trained apart on the old text. Each of a pair is BASE once. TUNED is BASE after some steps on the first part of the new
text, and that is carried to BASE trained on with the old text ("trained on"), to BASE trained on for four times as long
("later release"), to a scrambled copy of the former ("scrambled"), and to the other of the pair ("independent"). The
share is of what fine-tuning the target itself with the same steps gains, on the last part of the new text; the scale is
chosen on the part before it. OUT/rows.json is gone on with, so that other pairs and texts can be added; OUT/README.md
and OUT/shares.png are written anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from characters import LENGTH, examples, tokens, train, windows
from copies import load
from torch import Tensor

import isobasin
from isobasin.checkpoints.output import replace_text
from isobasin.lines.ends import Losses, Measuring
from isobasin.refinement.calibration import DataCalibration

WAYS = {
    "none": "nothing moved",
    "attention": "`--scope attention`",
    "model": "`--scope model`",
    "activations": "and `--objective activations`",
}
TARGETS = ("trained on", "later release", "scrambled", "independent")
LATER = 4
# Characters of either text that are read, at most.
READ = 1_500_000


def main() -> None:
    """Measure what isn't there yet, write the table and draw."""
    asked = _asked()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    asked.output.mkdir(parents=True, exist_ok=True)
    file = asked.output / "rows.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    done = {(row["base"], row["seed"]) for row in rows}
    for seed in range(asked.seeds):
        for a, b in zip(asked.models[::2], asked.models[1::2], strict=True):
            for base, other in ((a, b), (b, a)):
                own = {"family": f"{base.parent.name}/{base.name.rpartition('-')[0]}", "base": _name(base)}
                if (own["base"], seed) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    found = [{**own, "seed": seed, **row} for row in _rows(asked, Path(folder), base, other, seed)]
                rows += found
                replace_text(file, json.dumps(rows, indent=1) + "\n")
                print(*map(json.dumps, found), sep="\n", flush=True)
    replace_text(asked.output / "README.md", _page(rows))
    _figure(rows, asked.output / "shares.png")


def _name(model: Path) -> str:
    return f"{model.parent.name}/{model.name}"


def _rows(asked: argparse.Namespace, folder: Path, base: Path, other: Path, seed: int) -> Iterator[dict[str, Any]]:
    """One base and its fine-tune, carried to every target in every way."""
    old, new = (tokens(base, text, READ) for text in (asked.old, asked.new))
    held_out = windows(new[-2 * asked.held_out * LENGTH :], LENGTH)
    new = new[: -len(held_out) * LENGTH]
    choosing, testing = (_losses(rows) for rows in held_out.split(asked.held_out))

    def trained(model: Path, name: str, text: Tensor, steps: int, draw: int) -> Path:
        train(load(model), text, steps, asked.rate, draw).save_pretrained(folder / name)
        return folder / name

    tuned = trained(base, "tuned", new, asked.steps, seed)
    siblings = {
        "trained on": trained(base, "trained on", old, asked.steps, seed + 100),
        "later release": trained(base, "later release", old, LATER * asked.steps, seed + 200),
    }
    targets = {**siblings, "scrambled": folder / "scrambled", "independent": other}
    isobasin.scramble(siblings["trained on"], targets["scrambled"], scope="model", seed=seed)
    gains: dict[str, float] = {}
    for target, path in targets.items():
        start = testing.of(testing.load(path)).loss
        if target == "scrambled":
            # It computes what it is a copy of, and would gain the same.
            gains[target] = gains["trained on"]
        else:
            gains[target] = start - testing.of(testing.load(trained(path, "direct", new, asked.steps, seed))).loss
        for way in WAYS:
            if way == "activations" and target != "independent":
                continue  # siblings and copies come together without data
            began, out = time.process_time(), folder / f"{target} {way}"
            how = _how(way, base, windows(new, LENGTH)[: asked.held_out])
            moves = {"losses": choosing.means, "verify": way != "none"}
            found = isobasin.transport(base, tuned, path, out, **moves, **how)
            gained = start - testing.of(testing.load(out)).loss
            took = round(time.process_time() - began, 1)
            row = {"target": target, "way": way, "start": start, "direct": start - gains[target], "scale": found.scale}
            yield {**row, "loss": start - gained, "share": gained / gains[target], "seconds": took}


def _how(way: str, base: Path, rows: Tensor) -> dict[str, Any]:
    """What `transport` is called with for one of the ways."""
    if way == "none":
        return {"alignment": isobasin.align(base, base)}  # onto itself nothing moves
    if way == "activations":
        return {"scope": "model", "objective": way, "calibration": DataCalibration(examples(rows, "new"))}
    return {"scope": way}


def _losses(rows: Tensor) -> Losses:
    return Losses(examples(rows, "held out"), Measuring(temperature=False, batch_size=128))


def _shares(rows: list[dict[str, Any]], **where: str) -> list[float]:
    return [100 * row["share"] for row in rows if all(row[name] == value for name, value in where.items())]


def _page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown: means over bases and seeds, with the least and the largest."""
    lines = [_INTRODUCTION, f"| models | TARGET | runs | {' | '.join(WAYS.values())} | scale | direct fine-tuning |"]
    lines.append("|---" * (5 + len(WAYS)) + "|")
    for family, target in itertools.product(dict.fromkeys(row["family"] for row in rows), TARGETS):
        own = [row for row in rows if (row["family"], row["target"]) == (family, target)]
        if not own:
            continue
        cells = [_spread(_shares(own, way=way), "%") for way in WAYS]
        whole = [row for row in own if row["way"] == "model"]
        scales = sorted({row["scale"] for row in whole})
        cells.append(", ".join(f"{scale:g}" for scale in scales))
        cells.append(" → ".join(f"{statistics.fmean(row[name] for row in whole):.3f}" for name in ("start", "direct")))
        lines.append(f"| {family} | {target} | {len(whole)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float], unit: str) -> str:
    if not values:
        return "–"
    mean, low, high = (f"{round(f(values))}" for f in (statistics.fmean, min, max))
    return f"{mean} {unit}" if low == high else f"{mean} {unit} ({low} – {high})"


def _figure(rows: list[dict[str, Any]], path: Path) -> None:
    """The shares of every run, a panel for each family."""
    from matplotlib import pyplot

    families = list(dict.fromkeys(row["family"] for row in rows))
    size = 3.4 * len(families), 3.8
    figure, panels = pyplot.subplots(1, len(families), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for panel, family in zip(panels[0], families, strict=True):
        for index, (way, label) in enumerate(WAYS.items()):
            at = 0.18 * (index - (len(WAYS) - 1) / 2)
            points = [
                (place + at, share)
                for place, target in enumerate(TARGETS)
                for share in _shares(rows, family=family, target=target, way=way)
            ]
            panel.plot(*zip(*points, strict=True), "o", markersize=4, alpha=0.7, label=label.replace("`", ""))
        panel.axhline(100, color="gray", linestyle=":")
        panel.set_xticks(range(len(TARGETS)), [target.replace(" ", "\n") for target in TARGETS], fontsize=8)
        panel.set(title=family, ylim=(-5, 110))
        panel.grid(axis="y", alpha=0.3)
    panels[0][0].set_ylabel("share of direct fine-tuning's gain, %")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(WAYS), fontsize=8)
    pyplot.savefig(path, dpi=120)


_INTRODUCTION = """# A fine-tune carried to another base: the share of direct fine-tuning's gain that arrives

`python benchmarks/transport.py` writes this page and `rows.json`, which has losses, scales and processor seconds of
every run; its first lines say what is what, [results/README.md](../README.md) what was run. Means over both models of a
pair as BASE and over seeds of all training, with the least and the largest; losses are on the part of the new text that
nothing was learned on or chosen by. "scale" is what held-out data chose with `--scope model`; 0 leaves the target as it
is.

![Share of the gain that arrives, by target and way](shares.png)
"""


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*", help="A B of a pair, then of the next one")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--old", type=Path, help="what the models were trained on; may be .xz")
    parser.add_argument("--new", type=Path, help="what is fine-tuned on, chosen by and tested on; may be .xz")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--held-out", type=int, default=128, help="windows to choose by, and as many to test on")
    parser.add_argument("--seeds", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
