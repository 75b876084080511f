"""Fingerprints, and verdicts on where a model comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import isobasin
from isobasin.architectures.examples import variant
from isobasin.errors import OutputError


def finetuned(name: str, folder: Path) -> Path:
    """A copy of the tiny model trained for a few steps on random tokens."""
    model: Any = variant(name).build(dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        tokens = torch.randint(3, model.config.vocab_size, (4, 12), generator=generator)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def made(name: str, folder: Path, seed: int = 0) -> Path:
    return variant(name).save(folder / f"seed{seed}", seed, dtype=torch.float32)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_every_verdict(name: str, tmp_path: Path):
    origin, other, trained = made(name, tmp_path), made(name, tmp_path, 1), finetuned(name, tmp_path / "trained")
    scope = "block"
    isobasin.scramble(origin, tmp_path / "scrambled", scope=scope, verify=False)
    isobasin.scramble(trained, tmp_path / "hidden", scope=scope, verify=False)
    found = {
        str(folder.name): isobasin.compare(origin, folder)
        for folder in (origin, tmp_path / "scrambled", trained, tmp_path / "hidden", other)
    }
    assert {folder: str(comparison.verdict) for folder, comparison in found.items()} == {
        "seed0": "same function",
        "scrambled": "same function",
        "trained": "fine-tuned from it",
        "hidden": "obfuscated copy",
        "seed1": "unrelated",
    }
    assert found["seed0"].score == pytest.approx(1, abs=1e-6)
    assert found["hidden"].score == pytest.approx(found["trained"].score, abs=1e-3)
    assert found["seed1"].score < 0.1 < 0.5 < found["hidden"].score
    assert len(found["seed1"].blocks) == 4


def test_one_function_in_two_bases_of_the_stream_is_the_same(tmp_path: Path):
    origin = made("llama", tmp_path)
    isobasin.scramble(origin, tmp_path / "scrambled", scope="model", verify=False)
    assert str(isobasin.compare(origin, tmp_path / "scrambled").verdict) == "same function"


@pytest.mark.parametrize("name", ["gpt_neox", "bloom", "olmo2", "opt"])
def test_fingerprints_are_invariant(name: str, tmp_path: Path):
    origin = variant(name).save(tmp_path / "origin")
    isobasin.scramble(origin, tmp_path / "scrambled", scope="block", verify=False)
    one, two = (isobasin.fingerprint(folder).tensors for folder in (origin, tmp_path / "scrambled"))
    assert one.keys() == two.keys()
    assert {name.rpartition(".")[2] for name in one} >= {"value_output", "units"}
    for key, values in one.items():
        torch.testing.assert_close(values, two[key], rtol=1e-8, atol=1e-10)


def test_a_fingerprint_is_that_of_the_circuits(tmp_path: Path):
    origin = variant("gpt2").save(tmp_path / "origin")
    fused = load_file(origin / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
    out = load_file(origin / "model.safetensors")["transformer.h.0.attn.c_proj.weight"]
    circuits = [fused[:, 64 + 8 * i : 72 + 8 * i] @ out[8 * i : 8 * i + 8] for i in range(4)]
    expected = torch.stack([torch.linalg.svdvals(circuit)[:8] for circuit in circuits])
    found = isobasin.fingerprint(origin).tensors["attention.0.value_output"]
    torch.testing.assert_close(found.sort(0).values, expected.sort(0).values)


def test_a_fingerprint_is_written(tmp_path: Path):
    found = isobasin.fingerprint(made("llama", tmp_path))
    for ending in ("json", "safetensors"):
        found.save(tmp_path / f"kept.{ending}")
        with pytest.raises(OutputError, match="exists"):
            found.save(tmp_path / f"kept.{ending}")
    assert json.loads((tmp_path / "kept.json").read_text())["model_type"] == "llama"
    assert load_file(tmp_path / "kept.safetensors").keys() == found.tensors.keys()
    with pytest.raises(OutputError, match=r"\.json or \.safetensors"):
        found.save(tmp_path / "kept.txt")


def test_a_copy_with_dead_blocks_is_the_same(tmp_path: Path):
    model: Any = variant("gpt2").build(dtype=torch.float32)
    for block in model.transformer.h:
        block.attn.c_proj.weight.data.zero_()
        block.mlp.c_proj.weight.data.zero_()
    model.save_pretrained(tmp_path / "origin")
    isobasin.scramble(tmp_path / "origin", tmp_path / "scrambled", scope="block", verify=False)
    found = isobasin.compare(tmp_path / "origin", tmp_path / "scrambled")
    assert str(found.verdict) == "same function"
    assert found.score < 0.9
