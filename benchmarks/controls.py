r"""What a low line between two refined copies could come from instead: flat or degenerate gauges, or anything at all.

    python benchmarks/controls.py A B --data input.txt --train "train[:90%]" --test "train[90%:]" --length 64 \
        --third C --other other.txt -o controls.json

Refines A and B and measures, of both as they are and as they were moved: norms of their weights, condition numbers of
the maps, how fast losses rise along random directions, losses on other data, the loss of the mean of both predictions;
and barriers of lines that the descent did not learn: between two gauges of one model, between moved and unmoved models,
and to a third model. Were a low line due to where moved models lie, and not to how both lie together, these would be
low as well.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from pairs import examples
from torch.nn import functional

from isobasin.alignment import Alignment, condition_of
from isobasin.beside import REFERENCE
from isobasin.checkpoints.output import replace_text
from isobasin.lines.ends import Losses, Measuring
from isobasin.lines.path import POINTS, points
from isobasin.records.curves import height
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import refine
from isobasin.tasks.examples import IGNORED
from isobasin.tasks.losses import model_inputs, targets

# Distances along random directions, in units of every tensor's own norm.
_STEPS = (0.02, 0.05, 0.1)


def main() -> None:
    """Measure, print and write."""
    asked = _asked()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as scratch:
        found = _measured(asked, asked.refined or Path(scratch) / "refined")
    print(json.dumps(found, indent=2))
    facts = {name: getattr(asked, name) for name in ("train", "test", "length", "steps", "batch", "directions")}
    replace_text(asked.output, json.dumps({"asked": facts, **found}, indent=2) + "\n")


def _measured(asked: argparse.Namespace, out: Path) -> dict[str, Any]:
    if not out.exists():
        train = examples(asked, asked.data, asked.train, asked.train_examples)
        refine(asked.a, asked.b, train, out, how=Refining(asked.steps, asked.batch, minutes=0))
    how = Measuring(batch_size=256, temperature=False)
    tests = Losses(examples(asked, asked.data, asked.test, asked.test_examples), how)
    models = {"A": asked.a, "B": asked.b, "moved A": out / REFERENCE, "moved B": out}
    lines = [("A", "B"), ("moved A", "moved B"), ("A", "moved B"), ("moved A", "B"), ("A", "moved A"), ("B", "moved B")]
    if asked.third:
        models["C"] = asked.third
        lines += [("A", "C"), ("moved A", "C"), ("B", "C"), ("moved B", "C")]
    found: dict[str, Any] = {
        "condition": {name: _condition(models[name]) for name in ("moved A", "moved B")},
        "norm": {name: _norm(tests, models[name]) for name in models},
        "rise": {name: _rises(tests, models[name], asked.directions) for name in models},
        "barriers": {" - ".join(line): _line(tests, *(models[end] for end in line)) for line in lines},
    }
    found["mean prediction"] = _mean_prediction(tests, models["A"], models["B"])
    if asked.other:
        other = Losses(examples(asked, asked.other, asked.other_split, asked.test_examples), how)
        found["other data"] = _line(other, models["moved A"], models["moved B"])
    return found


def _condition(moved: Path) -> float:
    """The largest condition number of any head's map."""
    return max(condition_of(move.group, move.element) for move in Alignment.load(moved).layers)


def _norm(tests: Losses, model: Path) -> float:
    """Of all weights together."""
    return math.sqrt(sum(float(x.detach().double().square().sum()) for x in tests.load(model).parameters()))


def _rises(tests: Losses, model: Path, directions: int) -> list[dict[str, float]]:
    """How much the loss rises along random directions, on average, with the standard error over directions."""
    module, loss = tests.load(model), tests.of(tests.load(model)).loss
    own = [x.detach().clone() for x in module.parameters()]
    rises: dict[float, list[float]] = {step: [] for step in _STEPS}
    for seed in range(directions):
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in own]
        for step in _STEPS:
            with torch.no_grad():
                for x, start, direction in zip(module.parameters(), own, drawn, strict=True):
                    x.copy_(start + step * start.norm() / direction.norm() * direction)
            rises[step].append(tests.of(module).loss - loss)
    return [
        {"step": step, "mean": statistics.mean(x), "error": statistics.stdev(x) / math.sqrt(len(x))}
        for step, x in rises.items()
    ]


@torch.no_grad()
def _mean_prediction(tests: Losses, first: Path, last: Path) -> float:
    """The loss of the mean of what two models predict: what a model that holds both might reach."""
    modules, examples = [tests.load(first), tests.load(last)], tests.examples
    batch = examples.fetch(range(len(examples)))
    labels = targets(examples.kind, batch["labels"]).reshape(-1)
    logits = (module(**model_inputs(module, batch, torch.device("cpu"))).logits for module in modules)
    each = [x.reshape(len(labels), -1).log_softmax(-1) for x in logits]
    mean = torch.logaddexp(*each) - math.log(2)
    return float(functional.nll_loss(mean.double(), labels, ignore_index=IGNORED))


def _line(tests: Losses, first: Path, last: Path) -> dict[str, float]:
    """The losses at both ends and in the middle, and the barrier."""
    t = points(POINTS)
    losses = tests.means(first, last, t)
    return {
        "first": losses[0], "last": losses[-1], "middle": losses[len(t) // 2], "barrier": height(losses, t).height,
    }  # fmt: skip


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--third", help="a model that the descent doesn't see")
    parser.add_argument("--refined", type=Path, help="what refine made of both; it is made where it is missing")
    parser.add_argument("--data", required=True)
    parser.add_argument("--train", required=True, help="split that the descent may see")
    parser.add_argument("--test", required=True, help="split that everything is measured on")
    parser.add_argument("--other", help="other data")
    parser.add_argument("--other-split", default="train")
    parser.add_argument("--train-examples", type=int, default=8000)
    parser.add_argument("--test-examples", type=int, default=128)
    parser.add_argument("--tokenizer")
    parser.add_argument("--length", type=int)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--directions", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
