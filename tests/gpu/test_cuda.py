"""The same alignment on a GPU as on the CPU."""

from __future__ import annotations

import pytest
import torch

import isobasin
from isobasin.architectures.examples import tiny, variant
from isobasin.choices import TaskKind
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import REFERENCE, refine
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts
from isobasin.testing.assertions import assert_function_preserved
from isobasin.verbs.settings import Running

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
        assert two.element.parts["query_key.matrix"].device.type == "cpu"
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


@pytest.mark.parametrize("mixed", [False, True])
def test_cuda_refines_and_goes_on_after_an_interrupt(mixed, tmp_path):
    model = tiny("llama", "refined-on-cuda", config={"tie_word_embeddings": False})
    reference = model.save(tmp_path / "reference", dtype=torch.float32)
    isobasin.scramble(reference, tmp_path / "other", seed=1, condition=1.5, scope="model")
    tokens = 3 + (torch.arange(64)[:, None] + torch.arange(12)) % 47
    facts = DataFacts("made up", None, "causal-lm", 64, "none")
    examples = TensorExamples(TaskKind.causal_lm, facts, {"input_ids": tokens, "labels": tokens})
    how = Refining(steps=30, batch_size=8, every=10, warmup=3, mixed_precision=mixed)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "refining" and done == 15:
            raise KeyboardInterrupt

    def refined(progress):
        running = Running(device="cuda", progress=progress)
        return refine(reference, tmp_path / "other", examples, tmp_path / "out", how=how, running=running)

    with pytest.raises(KeyboardInterrupt):
        refined(interrupt)
    steps: list[int] = []
    found = refined(lambda what, done, total: steps.append(done) if what == "refining" else None)
    assert steps[0] == 11
    assert found.refined.steps == 30
    assert all(verified.equal for verified in found.verified)
    assert isobasin.verify(reference, tmp_path / "out" / REFERENCE).equal
