"""How much of a fine-tune's gain arrives on another base: siblings and independent ones, by every scope.

    python benchmarks/transport.py A B --old tinyshakespeare.txt --new books.txt -o transport.json

A and B are causal language models by characters of one vocabulary (`char_vocab.json` in A), trained apart. A is
fine-tuned on the first part of the new text, and that is carried to B; to A trained on with the old text, which is a
sibling; and to a scrambled copy of the sibling. The share is of what fine-tuning the target itself with the same steps
gains, on the last part of the new text; the scale is chosen on the part before it. All of it is repeated with A and B
exchanged.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import isobasin
from isobasin.checkpoints.output import replace_text
from isobasin.choices import TaskKind
from isobasin.lines.ends import Losses, Measuring
from isobasin.refinement.calibration import DataCalibration
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts

WAYS = ("none", "attention", "model", "activations")


def main() -> None:
    """Measure, print and write."""
    asked = _asked()
    torch.set_num_threads(asked.threads)
    rows: list[dict[str, Any]] = []
    for seed in range(asked.seeds):
        for base, other in ((asked.a, asked.b), (asked.b, asked.a)):
            with tempfile.TemporaryDirectory() as folder:
                for row in _pairs(asked, Path(folder), base, other, seed):
                    rows.append({"base": base.name, "seed": seed, **row})
                    print(json.dumps(rows[-1]), flush=True)
    facts = {name: value for name, value in vars(asked).items() if isinstance(value, (int, float))}
    replace_text(asked.output, json.dumps({"asked": facts, "rows": rows}, indent=2) + "\n")


def _pairs(asked: argparse.Namespace, folder: Path, base: Path, other: Path, seed: int) -> Iterator[dict[str, Any]]:
    """One base and its fine-tune, carried to three targets in every way."""
    old, new = (_windows(text, base) for text in (asked.old, asked.new))
    part = len(new) - 2 * asked.held_out
    choosing, testing = (_losses(new[i : i + asked.held_out]) for i in (part, part + asked.held_out))
    tuned = _trained(base, new[:part], folder / "tuned", asked.steps, asked, seed)
    sibling = _trained(base, old, folder / "sibling", asked.sibling_steps, asked, seed + 100)
    isobasin.scramble(sibling, folder / "scrambled", scope="model", seed=seed)
    direct = {
        model: testing.of(
            testing.load(_trained(model, new[:part], folder / f"direct {name}", asked.steps, asked, seed))
        )
        for name, model in (("sibling", sibling), ("other", other))
    }
    # A scrambled copy computes what it is a copy of: it would gain the same.
    for kind, target in (("sibling", sibling), ("scrambled sibling", folder / "scrambled"), ("independent", other)):
        start, end = testing.of(testing.load(target)).loss, direct[other if target == other else sibling].loss
        row: dict[str, Any] = {"target": kind, "start": start, "direct": end}
        for way in WAYS:
            how = _how(way, base, new[: asked.held_out])
            out = folder / f"{kind} {way}"
            found = isobasin.transport(base, tuned, target, out, losses=choosing.means, verify=way != "none", **how)
            loss = testing.of(testing.load(out)).loss
            row[way] = {"scale": found.scale, "loss": loss, "share": (start - loss) / (start - end)}
        yield row


def _how(way: str, base: Path, windows: Tensor) -> dict[str, Any]:
    """What `transport` is called with for one of the ways."""
    if way == "none":
        return {"alignment": isobasin.align(base, base)}  # onto itself nothing moves
    if way == "activations":
        return {"scope": "model", "objective": way, "calibration": DataCalibration(_examples(windows))}
    return {"scope": way}


def _windows(text: Path, model: Path) -> Tensor:
    """The text as windows of the model's context, without characters that it doesn't know."""
    characters = json.loads((model / "char_vocab.json").read_text())["chars"]
    numbers = {character: index for index, character in enumerate(characters)}
    length = transformers.AutoConfig.from_pretrained(model).max_position_embeddings
    ids = torch.tensor([numbers[character] for character in text.read_text() if character in numbers])
    return ids[: len(ids) // length * length].reshape(-1, length)


def _examples(windows: Tensor) -> TensorExamples:
    facts = DataFacts("windows", None, TaskKind.causal_lm, 0, "")
    return TensorExamples.of({"input_ids": windows, "labels": windows}, facts)


def _losses(windows: Tensor) -> Losses:
    return Losses(_examples(windows), Measuring(temperature=False, batch_size=128))


def _trained(model: Path, windows: Tensor, out: Path, steps: int, asked: argparse.Namespace, seed: int) -> Path:
    """Train on with AdamW, after a warm-up at a rate that falls to zero."""
    torch.manual_seed(seed)
    module: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(module.parameters(), asked.rate, weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for _ in range(steps):
        batch = windows[torch.randint(len(windows), (asked.batch,))]
        optimizer.zero_grad()
        module(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    module.save_pretrained(out)
    return out


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--old", type=Path, required=True, help="what both were trained on")
    parser.add_argument("--new", type=Path, required=True, help="what is fine-tuned on, chosen by and tested on")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sibling-steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=512, help="windows to choose by, and as many to test on")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
