"""Texts as language models by characters read them: `char_vocab.json` beside a model says which characters it knows.

    python benchmarks/characters.py gpt_neox --data tinyshakespeare.txt --seeds 0 1 -o small

trains small ones from scratch (two layers, width 64), each from its own seed.
"""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from isobasin.choices import TaskKind
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts

VOCABULARY = "char_vocab.json"
LENGTH, BATCH = 64, 16


def tokens(model: Path, text: Path, count: int | None = None) -> Tensor:
    """The first `count` characters of a text (may be .xz) as numbers, without those that the model doesn't know."""
    known = json.loads((model / VOCABULARY).read_text())
    # Either all characters in order, or each with its number.
    numbers = {character: index for index, character in enumerate(known["chars"])} if "chars" in known else known
    stored = text.read_bytes()
    read = (lzma.decompress(stored) if text.suffix == ".xz" else stored).decode()
    return torch.tensor([numbers[character] for character in read[:count] if character in numbers])


def windows(ids: Tensor, length: int) -> Tensor:
    """Numbers as rows of one length, `(n, length)`; the rest is left out."""
    return ids[: len(ids) // length * length].reshape(-1, length)


def examples(rows: Tensor, name: str) -> TensorExamples:
    """Windows as examples of a language model's task."""
    return TensorExamples.of({"input_ids": rows, "labels": rows}, DataFacts(name, None, TaskKind.causal_lm, 0, ""))


def train(model: Any, ids: Tensor, steps: int, rate: float, seed: int = 0) -> Any:
    """Train a causal language model with AdamW on random windows of a text, after a warm-up at a falling rate."""
    optimizer = torch.optim.AdamW(model.train().parameters(), rate, weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=generator)
        batch = torch.stack([ids[i : i + LENGTH] for i in starts.tolist()])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def small(family: str, seed: int, data: Path, target: Path, steps: int = 200) -> Path:
    """A model of two layers and width 64, trained from scratch by the characters of a text, unless it is there."""
    if not target.exists():
        letters = sorted(set(data.read_text()))
        sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"vocab_size": len(letters), "max_position_embeddings": LENGTH, "tie_word_embeddings": False}
        sizes |= {"intermediate_size": 176} if family == "llama" else {"intermediate_size": 256}
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **sizes))
        target.mkdir(parents=True)
        (target / VOCABULARY).write_text(json.dumps({"chars": letters}))
        train(model, tokens(target, data), steps, 3e-3, seed).save_pretrained(target)
    return target


def main() -> None:
    """Train what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for seed in asked.seeds:
        small(asked.family, seed, asked.data, asked.output / f"{asked.family}-seed{seed}", asked.steps)


if __name__ == "__main__":
    main()
