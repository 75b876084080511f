"""The same alignment on a GPU as on the CPU."""

from __future__ import annotations

import pytest
import torch

import isobasin
from isobasin.testing.assertions import assert_function_preserved
from isobasin.testing.tiny import variant

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none"),
]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "roformer-rotary-value", "qwen2", "vit"])
@pytest.mark.parametrize("method", ["gauss-newton", "paper"])
def test_cuda_finds_what_the_cpu_finds(name, method, tmp_path):
    model = variant(name)
    reference, other = (model.save(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    found = {
        device: isobasin.align(reference, other, tmp_path / device, device=device, method=method)
        for device in ("cpu", "cuda")
    }
    for one, two in zip(found["cpu"].layers, found["cuda"].layers, strict=True):
        assert torch.equal(one.element.head_permutation(), two.element.head_permutation())
        assert two.statistics.distance_after == pytest.approx(one.statistics.distance_after, rel=1e-8)
        assert two.element.query_key.matrix.device.type == "cpu"
    for device in ("cpu", "cuda"):
        assert_function_preserved(other, tmp_path / device, max(model.allowed(100.0), 1e-8))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_cuda_recovers_a_scramble(name, tmp_path):
    model = variant(name)
    original = model.save(tmp_path / "original")
    isobasin.scramble(original, tmp_path / "scrambled", seed=2, condition=1e3)
    found = isobasin.align(original, tmp_path / "scrambled", device="cuda")
    assert found.distance()["after"] < 1e-8 * found.distance()["before"]
    moved = isobasin.apply(found, tmp_path / "scrambled", tmp_path / "out", device="cuda")
    assert moved.verified.equal
    assert isobasin.verify(original, tmp_path / "out", device="cuda").equal
