"""Small pairs of language models, and texts that they can learn."""

from __future__ import annotations

from pathlib import Path

import torch

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.choices import TaskKind
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts

UNTIED = {"tie_word_embeddings": False}


LANGUAGE = (
    tiny("gpt2", "refined", config=UNTIED),
    tiny("llama", "refined", config=UNTIED),
    tiny("llama", "refined-tied", config={"tie_word_embeddings": True}),
)


def sentences(count: int = 64, length: int = 12, vocabulary: int = 50) -> TensorExamples:
    """Tokens that mostly follow one another in order, so that there is something to learn and to lose."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(3, vocabulary, (count, 1), generator=generator)
    tokens = 3 + (first + torch.arange(length)) % (vocabulary - 3)
    facts = DataFacts("made up", None, "causal-lm", count, "none")
    return TensorExamples(TaskKind.causal_lm, facts, {"input_ids": tokens, "labels": tokens})


def pair(model, folder: Path) -> tuple[Path, Path]:
    """A model, and a scrambled relative of it: the line between the two is bad, and need not be."""
    a, b = model.save(folder / "a", dtype=torch.float32), folder / "b"
    isobasin.scramble(a, b, seed=1, condition=1.5, scope="model", verify=False)
    return a, b
