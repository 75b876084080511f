"""What rounding explains in `verify`, and what it doesn't: moves and edits of 16-bit files, experts, its measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_verification import Tensors, changed, flipped

import isobasin
from isobasin.architectures.examples import tiny, variant
from isobasin.loading import Plan
from isobasin.verification import Distance
from isobasin.verification.distance import Distances
from isobasin.verification.explaining import capped
from isobasin.verification.rounding import compact, dither, kinds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_rounding_is_equal_and_a_small_edit_is_not(dtype, tmp_path):
    """Noise of four roundings of every value, or one head without output, is no rounding; a scrambled copy is."""
    original = tiny("llama").save(tmp_path / "original", dtype=torch.float32)
    stored = changed(original, tmp_path / "stored", lambda t: {n: x.to(dtype) for n, x in t.items()})
    assert isobasin.verify(original, stored).equal
    assert isobasin.scramble(stored, tmp_path / "moved", seed=3).verified.equal

    def cut(tensors: Tensors) -> None:
        tensors["model.layers.1.self_attn.o_proj.weight"][:, :8] = 0

    assert not isobasin.verify(stored, changed(stored, tmp_path / "cut", cut)).equal
    generator, size = torch.Generator().manual_seed(0), max(torch.finfo(dtype).eps, 1e-4)

    def noisy(tensors: Tensors) -> Tensors:
        signs = {n: torch.randn(x.shape, generator=generator).sign() for n, x in tensors.items()}
        return {n: (x.double() * (1 + 4 * size * signs[n])).to(x.dtype) for n, x in tensors.items()}

    found = isobasin.verify(stored, changed(stored, tmp_path / "noisy", noisy))
    assert not found.equal
    assert json.loads(json.dumps(found.to_json()))["rounding"]["rms"] == found.rounding.rms


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_move_that_rounding_takes_back_is_equal(dtype, tmp_path):
    """Of near fine-tunes in 16 bits most values stay where they were; an edit that leaves as many is none."""
    a = tiny("llama").save(tmp_path / "a", dtype=dtype)
    generator, size = torch.Generator().manual_seed(0), torch.finfo(dtype).eps / 4

    def tuned(tensors: Tensors) -> Tensors:
        draws = {n: torch.randn(x.shape, generator=generator) for n, x in tensors.items()}
        return {n: (x + size * x.float().std() * draws[n]).to(x.dtype) if x.ndim > 1 else x for n, x in tensors.items()}

    b = changed(a, tmp_path / "b", tuned)
    for scope in ("attention", "model"):
        assert isobasin.align(a, b, tmp_path / scope, scope=scope).verified.equal
    moved = load_file(tmp_path / "attention" / "model.safetensors")
    name = "model.layers.0.self_attn.v_proj.weight"
    assert 0 < int((moved[name] != load_file(b / "model.safetensors")[name]).sum()) < moved[name].numel() / 2
    edited = changed(b, tmp_path / "edited", lambda t: t[name].view(-1)[::7].mul_(1.1))
    assert not isobasin.verify(b, edited).equal


@pytest.mark.parametrize(("name", "seed"), [("qwen3_moe", 1), ("deepseek_v3-biases", 1), ("mixtral", 30)])
def test_experts_that_rounding_chooses_otherwise_are_no_difference(name, seed, tmp_path):
    """One rounding, on a few inputs, may choose the same experts where another one doesn't."""
    a = variant(name).save(tmp_path / "a", seed, dtype=torch.bfloat16)
    b = isobasin.scramble(a, tmp_path / "b", seed=seed + 7, scope="block", verify=False).path
    assert isobasin.verify(a, b).equal
    down = next(name for name in load_file(a / "model.safetensors") if "down_proj" in name or "w2" in name)
    assert not isobasin.verify(a, changed(b, tmp_path / "edited", lambda t: t[down].mul_(1.5))).equal


def test_an_expert_that_rounding_rarely_flips_is_no_difference(tmp_path):
    """It changes a few positions by hundreds of times what rounding does; an edit changes an expert, or a router."""
    a = variant("deepseek_v3").save(tmp_path / "a", 209, dtype=torch.float16)
    b = isobasin.scramble(a, tmp_path / "b", seed=212, scope="attention", condition=10, verify=False).path
    found = isobasin.verify(a, b)
    assert found.equal
    assert "since rounding may choose other experts" in found.how
    for part in ("experts.2.down_proj", "gate"):
        name = f"model.layers.1.mlp.{part}.weight"
        edited = changed(b, tmp_path / part, lambda t, name=name: t[name].mul_(1.05))
        assert not isobasin.verify(a, edited).equal, part


def test_the_half_of_the_positions_that_differ_least():
    """A few positions say nothing there, a change of all is seen; of each output, over all inputs."""
    a = {
        ("logits", "short"): torch.ones(2, 3, 4),
        ("logits", "long"): torch.ones(7, 4),
        ("loss", "long"): torch.ones(()),
    }
    few = {k: x.clone() for k, x in a.items()}
    few["logits", "short"][:, 1:] = 5.0
    few["logits", "long"][0] = -torch.inf
    assert Distance.of_most_alike(a, few) == Distance(kl=0.0, shift=0.0)
    assert Distance.of_most_alike(a, {k: 1.5 * x for k, x in a.items()}).rms == 0.5
    assert Distance.of_most_alike(a, {**a, ("loss", "long"): torch.tensor(2.0)}).max_rel == 1.0


def test_experts_that_one_gauge_flips_are_no_amplification():
    """What no choice decides says how much a gauge amplifies; where that is much, or there is no choice, all counts."""
    small, large = Distance(1e-3, 1e-3, 1e-3), Distance(0.1, 0.1, 0.1)
    plain = Distances(small, small)
    flipped, amplified = Distances(large, small), Distances(large, large)
    found = Distances(large, small)
    for rounding, chooses, explained in (
        (flipped, True, True),
        (flipped, False, False),
        (amplified, True, False),
    ):
        assert capped(rounding, plain, chooses).explains(found, 1e-5) is explained


def test_bfloat16_files_run_in_double_where_single_precision_might_matter(tmp_path):
    """What rounding does to all values is far above what either precision leaves, what one value does may not be."""
    a = tiny("llama").save(tmp_path / "a", dtype=torch.bfloat16)
    moved = isobasin.scramble(a, tmp_path / "moved", verify=False).path
    name = "model.layers.0.self_attn.o_proj.weight"
    edited = changed(a, tmp_path / "edited", lambda t: t[name].view(-1)[:1].mul_(1.05))
    for b, equal, kind in ((a, True, 32), (moved, True, 32), (edited, False, 64)):
        found = isobasin.verify(a, b)
        assert (found.equal, f"in float{kind}" in found.how) == (equal, True), found
    assert "in float64" in isobasin.verify(a, moved, tolerance=0.1).how


def test_rounding_is_measured_only_where_it_can_matter(tmp_path, monkeypatch):
    """Where arithmetic explains a difference each model runs once; an edit is measured, from files read again."""
    a = tiny("llama").save(tmp_path / "a", dtype=torch.float32)
    moved = tmp_path / "moved"
    isobasin.scramble(a, moved, verify=False)
    edited = changed(a, tmp_path / "b", flipped("lm_head.weight"))
    loads: list[Path] = []
    load = Plan.load

    def noted(self: Plan, *how: Any, **more: Any) -> Any:
        loads.append(self.checkpoint.folder)
        return load(self, *how, **more)

    monkeypatch.setattr(Plan, "load", noted)
    same = isobasin.verify(a, moved)
    assert (same.equal, same.rounding, same.plain) == (True, None, None)
    assert same.max_rel <= same.tolerance == 1e-5
    assert loads == [a, moved]
    other = isobasin.verify(a, edited)
    assert not other.equal
    assert 1e-8 < other.plain.rms < 1e-5
    assert 1e-8 < other.rounding.rms < 1e-5
    both = isobasin.verify(a, edited, tolerance=10.0)
    assert both.equal
    assert both.rounding == other.rounding


def test_a_dither_is_at_most_half_a_unit_in_the_last_place():
    value = torch.tensor([1.0, 1.5, -3.0, 0.0, 100.0], dtype=torch.float64)
    where = torch.tensor([True, True, True, True, False])
    seen = torch.zeros_like(value)
    for seed in range(200):
        moved = value.clone()
        dither(moved, torch.bfloat16, where, torch.Generator().manual_seed(seed))
        seen = torch.maximum(seen, (moved - value).abs())
    half = torch.tensor([2**-8, 2**-8, 2**-7, 0.0, 0.0], dtype=torch.float64)
    assert (seen <= half).all()
    assert (seen >= 0.9 * half).all()
    stored = kinds([torch.float32, torch.int64, torch.bfloat16])
    assert stored == [torch.bfloat16, torch.float32]
    kept = [compact(x, stored).dtype for x in (value, value + 2**-12, value + 1e-9)]
    assert kept == [torch.bfloat16, torch.float32, torch.float64]
    long = torch.ones(3, 2**17, dtype=torch.float64)
    long[2, -1] += 1e-9
    assert torch.equal(compact(long, stored), long)
