"""What other programs take for weights in the folders that are written: the weights, and nothing else."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.beside import ALIGNMENT, ALIGNMENTS, REFERENCE
from isobasin.choices import TaskKind
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import refine
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts

MODEL = tiny("llama", "loaders", config={"tie_word_embeddings": False})
PATTERNS = ("*.safetensors", "*.bin", "*.pt")
INDEX = "model.safetensors.index.json"


def taken(folder: Path) -> list[str]:
    """The files that vLLM and SGLang read: of the first pattern that finds any, those that an index names if there is
    one (`filter_duplicate_safetensors_files`)."""
    found = next((files for pattern in PATTERNS if (files := sorted(folder.glob(pattern)))), [])
    names = [file.name for file in found]
    if not (folder / INDEX).exists():
        return names
    named = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    return [name for name in names if name in named]


def refined(a: Path, b: Path, out: Path) -> object:
    tokens = 3 + (torch.arange(8)[:, None] + torch.arange(8)) % 40
    facts = DataFacts("made up", None, "causal-lm", 8, "none")
    examples = TensorExamples(TaskKind.causal_lm, facts, {"input_ids": tokens, "labels": tokens})
    how = Refining(steps=1, batch_size=4, every=1, warmup=1, held_out=0.5)
    return refine(a, b, examples, out, how=how, start=isobasin.align(a, b, scope="model", verify=False))


VERBS = {
    "align": lambda a, b, out: isobasin.align(a, b, out, verify=False),
    "apply": lambda a, b, out: isobasin.align(a, b, verify=False).apply(b, out, verify=False),
    "scramble": lambda a, b, out: isobasin.scramble(b, out, verify=False),
    "canonicalize": lambda a, b, out: isobasin.canonicalize(b, out, verify=False),
    "merge": lambda a, b, out: isobasin.merge([a, b], out, force_unrelated=True, verify=False),
    "refine": refined,
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models, the second of which has alignments of this and of earlier versions beside its weights."""
    home = tmp_path_factory.mktemp("ends")
    a, b = (MODEL.save(home / str(seed), seed, dtype=torch.float32) for seed in (0, 1))
    for name in ALIGNMENTS:
        isobasin.align(a, b, verify=False).save(b / name)
    return a, b


@pytest.mark.parametrize(("verb", "sharded"), [*((verb, False) for verb in VERBS), ("align", True), ("merge", True)])
def test_only_weights_are_taken_for_weights(verb: str, sharded: bool, ends: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = ends
    if sharded:
        b = shard(b, tmp_path / "shards")
    out = tmp_path / "out"
    VERBS[verb](a, b, out)
    first = a if verb == "merge" else b  # whose files are the result's
    weights = sorted(file.name for file in first.glob("model*.safetensors"))
    for folder, kept in ((out, weights), *(((out / REFERENCE, ["model.safetensors"]),) if verb == "refine" else ())):
        assert taken(folder) == kept
        stored = [load_file(folder / name).keys() for name in kept]
        assert set().union(*stored) == set().union(*(load_file(first / name).keys() for name in weights))
        assert (folder / ALIGNMENT).exists()
    # what a filter of downloads lets through, in any folder: `*` stands for slashes too
    everything = [file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()]
    assert all(Path(name).name in weights for name in everything if any(fnmatch(name, p) for p in PATTERNS))


def shard(folder: Path, out: Path) -> Path:
    """The same model in several files, with the alignments beside it."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(out, max_shard_size="10KB")
    for name in ALIGNMENTS:
        (out / name).write_bytes((folder / name).read_bytes())
    assert len(list(out.glob("model-*.safetensors"))) > 1
    return out
