"""Errors of `isobasin compare` of both kinds, on models trained from scratch and on copies made of them.

Run: python benchmarks/provenance.py FOLDER  (gpt2-seed0, gpt2-seed1, llama-seed0, llama-seed1 in it; minutes)
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import isobasin
from isobasin.architectures.examples import EXAMPLES

# Steps and learning rates of the fine-tuned copies.
TRAINED = {"lightly": (50, 1e-4), "hard": (100, 1e-3)}
EXPECTED = {"copy": "same function", "scrambled": "same function"}
EXPECTED |= dict.fromkeys(TRAINED, "fine-tuned from it")
EXPECTED |= {f"{kind}, scrambled": "obfuscated copy" for kind in TRAINED}


def finetune(source: Path, target: Path, steps: int, rate: float) -> None:
    """A copy trained on text that the model has not seen: this project's documents, by characters."""
    text = "".join(path.read_text() for path in sorted(Path(__file__).parents[1].glob("docs/*.md")))
    model: Any = AutoModelForCausalLM.from_pretrained(source).train()
    tokens = torch.tensor([ord(c) % model.config.vocab_size for c in text])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - 64, (16,), generator=generator)
        batch = torch.stack([tokens[i : i + 64] for i in starts.tolist()])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(target)


def copies(source: Path, home: Path) -> dict[str, Path]:
    """All copies of one model, by what was done to it."""
    found = {"copy": source}
    for kind, (steps, rate) in TRAINED.items():
        found[kind] = home / f"{source.name} {kind}"
        finetune(source, found[kind], steps, rate)
    for kind in list(found):
        name = "scrambled" if kind == "copy" else f"{kind}, scrambled"
        found[name] = home / f"{source.name} {name}"
        isobasin.scramble(found[kind], found[name], scope="block", verify=False)
    return found


def show(kind: str, found: list[isobasin.Comparison], expected: str) -> None:
    """One row of the table."""
    scores, wrong = [c.score for c in found], sum(str(c.verdict) != expected for c in found)
    print(f"| {kind} | {expected} | {len(found)} | {wrong} | {min(scores):.3f} – {max(scores):.3f} |", flush=True)


def main() -> None:
    folder = Path(sys.argv[1])
    results: dict[str, list[isobasin.Comparison]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as home:
        for family in ("gpt2", "llama"):
            base, other = (folder / f"{family}-seed{seed}" for seed in (0, 1))
            for kind, path in copies(base, Path(home)).items():
                results[kind].append(isobasin.compare(base, path))
                results["trained apart"].append(isobasin.compare(other, path))
        for model in [model for model in EXAMPLES if not model.variant][::4]:
            pair = [model.save(Path(home) / f"{model} {seed}", seed, dtype=torch.float32) for seed in (0, 1)]
            results["random, other seed"].append(isobasin.compare(*pair))
    for kind, found in results.items():
        show(kind, found, EXPECTED.get(kind, "unrelated"))


if __name__ == "__main__":
    main()
