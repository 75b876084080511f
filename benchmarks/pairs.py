"""One pair of checkpoints aligned in every way, with barriers on data that no alignment has seen, and wall times.

    python benchmarks/pairs.py A B --data input.txt --train "train[:90%]" --test "train[95%:]" --length 64 -o pair.json

What a study of trained models has as its ablation `alignments`, for checkpoints that are there already.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from isobasin.checkpoints.output import replace_text
from isobasin.choices import Scope
from isobasin.cli.examples import examples_for
from isobasin.experiments.alignments import alignments
from isobasin.lines.ends import Losses, Measuring, OpenPair
from isobasin.refinement.recipe import Refining


def main() -> None:
    """Measure, print and write."""
    asked = _asked()
    torch.set_num_threads(asked.threads)

    tests = examples(asked, asked.data, asked.test, asked.test_examples)
    train = examples(asked, asked.data, asked.train, asked.train_examples)
    losses = Losses(tests, Measuring(batch_size=256, scope=Scope(asked.scope), temperature=False, untie=asked.untie))
    how = Refining(asked.steps, asked.batch, asked.rate, minutes=0, mixed_precision=False) if asked.steps else None
    with OpenPair.open(asked.a, asked.b, losses) as pair:
        found = alignments(pair, train, how, progress=_quiet)
    for name, row in found["ways"].items():
        took = found["seconds"].get(name)
        barrier = "" if row.get("barrier") is None else f"{row['barrier']:.4f}"
        print(f"{name:<20}{barrier:>9}{row['middle']:>9.4f}{'' if took is None else f'{took:9.1f} s'}")
    facts = {
        name: value for name, value in vars(asked).items() if name not in ("output", "a", "b", "data", "tokenizer")
    }
    content = {"a": Path(asked.a).name, "b": Path(asked.b).name, "asked": facts, **found}

    replace_text(asked.output, json.dumps(content, indent=2) + "\n")


def examples(asked: argparse.Namespace, data: str, split: str, count: int) -> Any:
    """Examples of a split, as the first model sees them."""
    given = {"data": data, "split": split, "max_examples": count, "length": asked.length}
    left = {"name": None, "columns": None, "seed": 0, "task": None, "tokenizer": asked.tokenizer}
    return examples_for((asked.a,), given | left | {"allow_pickle": False, "device": "cpu"}, _quiet)


def _quiet(what: str, done: int, total: int) -> None:
    """No progress."""


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--train", required=True, help="split that alignments may see")
    parser.add_argument("--test", required=True, help="split that barriers are measured on")
    parser.add_argument("--train-examples", type=int, default=8000)
    parser.add_argument("--test-examples", type=int, default=256)
    parser.add_argument("--tokenizer")
    parser.add_argument("--length", type=int)
    parser.add_argument("--scope", choices=[scope.value for scope in Scope], default=Scope.model.value)
    parser.add_argument("--untie", action="store_true", help="take tied tensors apart")
    parser.add_argument("--steps", type=int, default=0, help="of learning; 0: none")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
