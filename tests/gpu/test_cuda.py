"""Every verb and every option that takes a device: the same on a GPU as on the CPU.

Where there is no GPU, on one that is pretended: its results are the CPU's, and it refuses what a real one would.
"""

from __future__ import annotations

import pytest
import torch

import isobasin
from isobasin.architectures.examples import variant
from isobasin.beside import ALIGNMENT
from isobasin.choices import Method, Objective, Scope, Space
from isobasin.refinement.calibration import DataCalibration
from isobasin.testing.assertions import assert_function_preserved
from isobasin.verification import running

from .both import REAL, SCOPES, UNTIED, long, on_both, same, shape

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("data", [Objective.weights, *map(long, (None, Objective.activations))])
def test_align(pair, scope, data, tmp_path):
    a, b, found = pair

    def act(device: str) -> None:
        isobasin.align(
            *(a, b, tmp_path / device),
            method=Method.balanced,
            scope=scope,
            objective=data or Objective.weights,
            calibration=None if data is None else DataCalibration(found, device),
            device=device,
        )

    on_both(act)
    same(tmp_path / "cpu", tmp_path / "cuda")


@pytest.mark.long
@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("keep_gains", [False, True])
def test_methods(pair, method, keep_gains, tmp_path):
    a, b, _ = pair

    def act(device: str) -> None:
        found = isobasin.align(a, b, scope="model", method=method, keep_gains=keep_gains, device=device)
        (tmp_path / device).mkdir()
        found.save(tmp_path / device / ALIGNMENT)

    on_both(act)
    same(tmp_path / "cpu", tmp_path / "cuda")


@pytest.mark.parametrize("scope", SCOPES)
def test_what_moves_one_model(pair, scope, tmp_path):
    a, b, _ = pair

    def act(device: str) -> None:
        scrambled = tmp_path / device / "scrambled"
        isobasin.scramble(a, scrambled, seed=2, condition=2.0, scope=scope, device=device)
        isobasin.apply(isobasin.Alignment.load(scrambled), b, tmp_path / device / "applied", device=device)
        if scope is not Scope.model:
            isobasin.canonicalize(a, tmp_path / device / "canonical", scope=scope, device=device)
        assert isobasin.verify(a, scrambled, device=device).equal

    on_both(act)
    same(tmp_path / "cpu", tmp_path / "cuda")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("space", [Space.circuit, long(Space.weights)])
def test_merge(pair, scope, space, tmp_path):
    a, b, _ = pair
    how = {"scope": scope, "space": space, "force_unrelated": True}
    on_both(lambda device: isobasin.merge([a, b], tmp_path / device, device=device, **how))
    same(tmp_path / "cpu", tmp_path / "cuda")


@pytest.mark.parametrize("scope", SCOPES)
def test_transport(pair, scope, tmp_path):
    a, b, _ = pair
    tuned = tmp_path / "tuned"
    isobasin.interpolate(a, b, 0.1, tuned)
    on_both(lambda device: isobasin.transport(a, tuned, b, tmp_path / device, scope=scope, device=device))
    same(tmp_path / "cpu", tmp_path / "cuda")


@pytest.mark.long
def test_what_is_said_of_models(pair, tmp_path):
    a, b, _ = pair
    other = tmp_path / "other"
    isobasin.scramble(a, other, seed=1, scope="block")
    for asked in (isobasin.compare, isobasin.equivalent, isobasin.verify, isobasin.diagnose):
        for one in (other, b):
            found = on_both(lambda device, asked=asked, one=one: asked(a, one, device=device).to_json())
            assert shape(found["cuda"]) == shape(found["cpu"])
    prints = on_both(lambda device: isobasin.fingerprint(a, device=device).tensors)
    for name, x in prints["cpu"].items():
        torch.testing.assert_close(prints["cuda"][name], x)
    known = tmp_path / "known.safetensors"
    isobasin.fingerprint(other).save(known)
    scans = on_both(lambda device: isobasin.scan(a, [known], device=device).to_json())
    assert shape(scans["cuda"]) == shape(scans["cpu"])


_NAMES = ["llama", *map(long, ("gpt2", "gpt_neox", "roformer-rotary-value", "qwen2", "vit"))]


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("method", ["gauss-newton", long("paper")])
def test_cuda_finds_what_the_cpu_finds(name, method, tmp_path):
    model = variant(name)
    reference, other = (model.save(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    found = on_both(lambda device: isobasin.align(reference, other, tmp_path / device, device=device, method=method))
    for one, two in zip(found["cpu"].layers, found["cuda"].layers, strict=True):
        assert torch.equal(one.element.head_permutation(), two.element.head_permutation())
        assert two.statistics.distance_after == pytest.approx(one.statistics.distance_after, rel=1e-8)
        assert {part.device.type for part in two.element.parts.values()} == {"cpu"}
    for device in ("cpu", "cuda"):
        assert_function_preserved(other, tmp_path / device, max(model.allowed(100.0), 1e-8))


@pytest.mark.long
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.usefixtures("cuda")
def test_cuda_recovers_a_scramble(name, tmp_path):
    model = variant(name)
    original = model.save(tmp_path / "original")
    isobasin.scramble(original, tmp_path / "scrambled", seed=2, condition=1e3)
    found = isobasin.align(original, tmp_path / "scrambled", device="cuda")
    assert found.distance()["after"] < 1e-8 * found.distance()["before"]
    moved = isobasin.apply(found, tmp_path / "scrambled", tmp_path / "out", device="cuda")
    assert moved.verified.equal
    assert isobasin.verify(original, tmp_path / "out", device="cuda").equal


@pytest.mark.skipif(not REAL, reason="only the thread that pretends sees the device")
def test_a_streamed_model_computes_what_a_held_one_does(tmp_path, monkeypatch):
    """Layers go to the device one at a time, rounding in 16 bits too."""
    a = UNTIED.save(tmp_path / "a", dtype=torch.bfloat16)
    isobasin.scramble(a, tmp_path / "b", seed=1, verify=False)
    found = []
    for limit in (10**9, 0):
        monkeypatch.setattr(running, "_HELD_LIMIT", limit)
        found.append(isobasin.verify(a, tmp_path / "b", device="cuda"))
    held, streamed = found
    assert held.equal
    assert streamed.equal
    assert streamed.max_rel == pytest.approx(held.max_rel, rel=1e-6)
    assert streamed.rounding.rms == pytest.approx(held.rounding.rms, rel=1e-6)
