"""What rounding costs in several gauges of a model: as trained, turned at random, rotations learned, the whole group.

    python benchmarks/gauge.py MODEL ... --text train.txt --test test.txt --for rtn3 rtn2 -o results/gauge

MODELS are causal language models by characters (`char_vocab.json` in each), all of which the two texts are for.
Learning has the same steps, batches, starts and data in both cases, and looks at the same held-out examples; the table
is measured on the test text. "rotations" learns those of the residual stream and of every head's values alone, which is
what SpinQuant has offline. GPTQ (with `--gptq`, for integers) rounds column by column, with second moments of inputs on
up to 256 of the windows that are learned from, in that gauge. Rows are written as they are found, and those that are
there are not found again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from characters import LENGTH, examples, tokens, windows
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.checkpoints.output import replace_text
from isobasin.choices import Costs, TaskKind
from isobasin.model import Model, open_model, opened
from isobasin.quantisation.gauge import LEARNING, search
from isobasin.quantisation.linears import linears
from isobasin.quantisation.objectives import Cost
from isobasin.quantisation.quantiser import Quantiser
from isobasin.quantisation.starts import at_random, still
from isobasin.refinement.calibration import DataCalibration
from isobasin.refinement.ends import End, type_of
from isobasin.tasks.examples import TensorExamples
from isobasin.verbs.apply import write_moved
from isobasin.verbs.settings import Running
from isobasin.verbs.whole import widest

WAYS = {
    "trained": "as trained",
    "random": "random Hadamard",
    "rotations": "rotations learned",
    "group": "whole group learned",
}


@dataclass(frozen=True)
class Rotations(Cost):
    """Learns rotations of the stream and of heads' values alone: the slopes of all else are taken away."""

    def line(self, start: Alignment, stretching: float = 1.0) -> Any:
        """The line, whose coordinates are held."""
        line = super().line(start, stretching)
        chart = line.ends[1].chart
        assert chart is not None
        for name, x in chart.coordinates.items():
            if name.endswith("value_output.matrix"):
                # Adam keeps what is antisymmetric so.
                x.register_hook(lambda slope: (slope - slope.mT) / 2)
            elif name != "stream.matrix":
                x.register_hook(torch.zeros_like)
        return line


def main() -> None:
    """Find, print and write."""
    asked = _asked()
    torch.set_num_threads(asked.threads)
    file = asked.output / "rows.json"
    asked.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    done = {(row["model"], row["rounding"], row["way"], row["seed"]) for row in rows}
    for model in asked.models:
        for rounding in asked.rounding:
            for row in _rows(asked, model, rounding, done):
                rows.append(row)
                print(json.dumps(row), flush=True)
                replace_text(file, json.dumps(rows, indent=1) + "\n")
    replace_text(asked.output / "README.md", _page(rows))
    _figure(rows, asked.output / "gauge.png")


def _rows(asked: argparse.Namespace, path: Path, rounding: str, done: set[Any]) -> Iterator[dict[str, Any]]:
    """One model and one quantiser."""
    name = f"{path.parent.name}/{path.name}"
    rounds = Quantiser.of(rounding)
    train, test = (
        _examples(path, text, count) for text, count in ((asked.text, asked.train), (asked.test, asked.windows))
    )
    ways = [("trained", 0), *((way, seed) for seed in range(asked.seeds) for way in list(WAYS)[1:])]
    with open_model(path) as model:
        scope = widest([model])
        own = still(model, scope)
        plain = Cost(model, rounds, Costs.predictions, "cpu", train, TaskKind.causal_lm)
        for way, seed in ways:
            if (name, str(rounds), way, seed) in done:
                continue
            began, found = time.process_time(), own
            if way == "random":
                found = at_random(model, scope, seed)
            elif way != "trained":
                cost = plain if way == "group" else Rotations(**{f.name: getattr(plain, f.name) for f in fields(plain)})
                how = replace(LEARNING, steps=asked.steps, every=asked.steps // 2, warmup=asked.steps // 10, seed=seed)
                found = search(cost, scope, asked.tries, replace(how, batch_size=asked.batch, minutes=0), Running())[2]
            took = time.process_time() - began
            measured = plain.measured(plain.end(model, found), test)
            row = {"model": name, "rounding": str(rounds), "way": way, "seed": seed, **vars(measured)}
            row |= {
                "unrounded": plain.loss(test),
                "seconds": round(took, 1),
                "steps": asked.steps,
                "batch": asked.batch,
            }
            if asked.gptq and rounding.startswith("rtn"):
                row["gptq"] = _by_gptq(plain, model, found, rounds, train, test)
            yield row


def _by_gptq(
    cost: Cost, model: Model, move: Alignment, rounds: Quantiser, train: TensorExamples, test: TensorExamples
) -> float:
    """KL once GPTQ has rounded the moved model."""
    with tempfile.TemporaryDirectory() as folder:
        write_moved(move, model, Path(folder) / "moved", Running(verify=False))
        moved = opened("moved", Path(folder) / "moved")
        weights = linears(moved)
        calibration = DataCalibration(train.subset(range(min(256, len(train)))))
        inputs: Mapping[str, Tensor] = calibration.moments(moved, [one.weight for one in weights])
        tensors = {name: x.double() for name, x in moved.read(moved.view.tensors.values()).items()}
        for one in weights:
            new = _gptq(one.matrix(tensors[one.weight]), inputs[one.weight][:-1, :-1], rounds)
            tensors[one.weight] = one.stored(new)
        dtype = type_of(model)
        end = End({name: x.to(dtype) for name, x in tensors.items()}, moved.dtypes(), None)
    return replace(cost, rounds=torch.clone).measured(end, test).divergence


def _gptq(matrix: Tensor, moments: Tensor, rounds: Quantiser, damping: float = 0.01) -> Tensor:
    """Frantar et al. 2023, algorithm 1, without its order of columns: errors are passed on to columns that follow."""
    w, found = matrix.clone(), torch.zeros_like(matrix)
    inputs, bits = w.shape[-1], int(rounds.rounding[-1])
    floor = damping * moments.diagonal().mean() * torch.eye(inputs, dtype=w.dtype)
    factor = torch.linalg.cholesky(torch.linalg.inv(moments + floor), upper=True)
    group, scale = rounds.group or inputs, w.new_ones(len(w))
    for i in range(inputs):
        if i % group == 0:
            largest = w[:, i : i + group].abs().amax(1)
            scale = largest.clamp(min=1e-30) / (2 ** (bits - 1) - 0.5)
        found[:, i] = (w[:, i] / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
        w[:, i + 1 :] -= ((w[:, i] - found[:, i]) / factor[i, i])[:, None] * factor[i, i + 1 :]
    return found


def _examples(model: Path, text: Path, count: int) -> TensorExamples:
    """Windows of a text as a model reads it, drawn at random by one seed, without characters that it doesn't know."""
    rows = windows(tokens(model, text), LENGTH)
    return examples(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]], text.name)


def _groups(rows: list[dict[str, Any]], column: str) -> Iterator[tuple[dict[str, Any], dict[str, list[float]]]]:
    """Of every model, quantiser and budget one row, and what all seeds of each way have in a column."""
    kept = [row for row in rows if column in row]
    for model, rounding in dict.fromkeys((row["model"], row["rounding"]) for row in kept):
        own = [row for row in kept if (row["model"], row["rounding"]) == (model, rounding)]
        yield own[0], {way: [row[column] for row in own if row["way"] == way] for way in WAYS}


def _page(rows: list[dict[str, Any]]) -> str:
    """The tables as Markdown: means over seeds, with the largest distance from them where there are several."""
    lines = [_INTRODUCTION]
    for column, title in (("divergence", "Rounded to the nearest"), ("gptq", "Rounded by GPTQ")):
        lines.append(f"## {title}: KL(p, q) in nats, on test text\n")
        lines.append(f"| model | to | steps × windows | {' | '.join(WAYS.values())} |")
        lines.append("|---" * (3 + len(WAYS)) + "|")
        for row, found in _groups(rows, column):
            means = {way: statistics.fmean(values) for way, values in found.items() if values}
            cells = {way: _cell(means[way], found[way]) for way in means}
            best = min(means, key=means.__getitem__)
            cells[best] = f"**{cells[best]}**"
            budget = f"{row['steps']} × {row['batch']}"
            lines.append(
                f"| {row['model']} | {row['rounding']} | {budget} | {' | '.join(cells.get(way, '–') for way in WAYS)} |"
            )
        lines.append("")
    return "\n".join(lines)


def _cell(mean: float, values: list[float]) -> str:
    apart = max(abs(x - mean) for x in values)
    return f"{mean:.4f}" + (f" ± {apart:.4f}" if len(values) > 1 else "")


def _figure(rows: list[dict[str, Any]], path: Path) -> None:
    """KL of all ways beside the model as trained, one mark for every seed."""
    from matplotlib import pyplot

    groups = list(_groups(rows, "divergence"))
    figure, panel = pyplot.subplots(figsize=(7, 1 + 0.3 * len(groups)), layout="constrained")
    for index, (way, label) in enumerate(list(WAYS.items())[1:]):
        points = [
            (value / found["trained"][0], place + 0.2 * (index - 1))
            for place, (_, found) in enumerate(groups)
            for value in found[way]
        ]
        panel.plot(*zip(*points, strict=True), "o", markersize=4, alpha=0.8, label=label)
    panel.axvline(1, color="gray", linestyle=":")
    panel.set_yticks(range(len(groups)), [f"{row['model']}, {row['rounding'].split(',')[0]}" for row, _ in groups])
    panel.invert_yaxis()
    panel.set(xlabel="KL beside that of the model as trained, rounded to the nearest", xlim=(0, None))
    panel.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    pyplot.savefig(path, dpi=120)


_INTRODUCTION = """# What rounding costs, by gauge

`python benchmarks/gauge.py` writes this page and `rows.json`, which has losses, errors of weights, steps and processor
seconds too; its first lines say what is what, [results/README.md](../README.md) what was run. Means over seeds of
starts and batches, ± the largest distance from them where there are several; the least is bold.

![KL beside that of the model as trained](gauge.png)
"""


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="what is learned from; may be .xz")
    parser.add_argument("--test", type=Path, help="what is tested on; may be .xz")
    parser.add_argument("--for", dest="rounding", nargs="*", default=["rtn3", "rtn2"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tries", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train", type=int, default=2048, help="windows of the text to learn from")
    parser.add_argument("--windows", type=int, default=256, help="windows of the test text")
    parser.add_argument("--gptq", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
