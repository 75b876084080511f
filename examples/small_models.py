"""The models of the tutorials: small Llamas that read a toy language by characters, trained here and now.

Runs as it is: `python examples/small_models.py FOLDER` takes about ten seconds. In FOLDER there are then

* `base`, trained on sentences about animals; `tuned-x` and `tuned-y`, two fine-tunes of it, on sentences about food;
* `apart`, trained on the animals from another start, so that it has nothing in common with `base` but the task;
* `animals.txt` and `food.txt`, sentences that no model was trained on, and `characters.json`, the tokenizer.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

CHARACTERS = "\n .abcdefghijklmnopqrstuvwxyz"
ANIMALS = ["cat", "dog", "fox", "hen", "owl", "rat", "cow", "ant", "bee", "pig"]
FOOD = ["egg", "fig", "jam", "nut", "pea", "rye", "soup", "tart", "leek", "plum"]
VERBS = ["sees", "hears", "finds", "likes", "fears"]
LENGTH = 32


def sentences(nouns: list[str], count: int, seed: int) -> list[str]:
    """Such as "the cat sees the old dog."."""
    draw = random.Random(seed)
    kinds = ["", "old ", "new ", "big "]
    return [
        f"the {draw.choice(nouns)} {draw.choice(VERBS)} the {draw.choice(kinds)}{draw.choice(nouns)}."
        for _ in range(count)
    ]


def train(model: LlamaForCausalLM, texts: list[str], steps: int, rate: float, seed: int) -> LlamaForCausalLM:
    """AdamW on windows of the texts."""
    tokens = torch.tensor([CHARACTERS.index(character) for character in "\n".join(texts)])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (32, 1), generator=generator)
        batch = tokens[starts + torch.arange(LENGTH)]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model.eval()


def fresh(seed: int) -> LlamaForCausalLM:
    """A model that knows nothing."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(CHARACTERS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make(folder: Path) -> None:
    """Train all models, and write them with their data."""
    disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    animals, food = sentences(ANIMALS, 2000, 0), sentences(FOOD, 2000, 1)
    train(fresh(0), animals, 200, 1e-2, 0).save_pretrained(folder / "base")
    train(fresh(1), animals, 200, 1e-2, 1).save_pretrained(folder / "apart")
    for seed, name in ((2, "tuned-x"), (3, "tuned-y")):
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        train(base, food, 50, 3e-3, seed).save_pretrained(folder / name)
    (folder / "animals.txt").write_text("\n".join(sentences(ANIMALS, 400, 2)) + "\n")
    (folder / "food.txt").write_text("\n".join(sentences(FOOD, 400, 3)) + "\n")
    (folder / "characters.json").write_text(json.dumps({one: number for number, one in enumerate(CHARACTERS)}))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make(Path(sys.argv[1]))
