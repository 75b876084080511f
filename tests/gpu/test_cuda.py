"""Every verb and every option that takes a device: the same on a GPU as on the CPU.

Where there is no GPU, on one that is pretended: its results are the CPU's, and it refuses what a real one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call

import isobasin
from isobasin.architectures.examples import tiny, variant
from isobasin.beside import ALIGNMENT, REFERENCE
from isobasin.choices import Costs, Method, Objective, Scope, Space, Targets, TaskKind, Way
from isobasin.experiments.settings import TrainingSettings
from isobasin.experiments.training import train
from isobasin.lines.ends import Measuring
from isobasin.lines.measure import measure
from isobasin.model import open_model
from isobasin.quantisation.gauge import LEARNING, Gauged, gauge
from isobasin.refinement.calibration import DataCalibration
from isobasin.refinement.gradients import Replayed, Stepwise
from isobasin.refinement.line import ModuleLine
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import refine
from isobasin.refinement.tensors import TensorCalibration
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.kind import load_model
from isobasin.tasks.options import DataFacts
from isobasin.testing.assertions import assert_function_preserved
from isobasin.testing.pretended import pretended_cuda, recording
from isobasin.verbs.settings import Matching, Running
from isobasin.verification import running

pytestmark = pytest.mark.gpu
T = TypeVar("T")


def long(value: object) -> object:
    """A parameter that `make test` leaves out: one other of its kind is there."""
    return pytest.param(value, marks=pytest.mark.long)


REAL = torch.cuda.is_available()
TIED = tiny("gpt2", "tied-on-cuda")
UNTIED = tiny("llama", "untied-on-cuda", config={"tie_word_embeddings": False})
MASKED = tiny("bert", "on-cuda")
IMAGES = tiny("vit", "on-cuda")
SCOPES = [Scope.model, *map(long, (Scope.attention, Scope.block))]
SHORT = Refining(steps=4, batch_size=8, every=2, warmup=1)


@pytest.fixture
def cuda() -> Iterator[None]:
    """A GPU, or what stands for one."""
    with nullcontext() if REAL else pretended_cuda():
        yield


def on_both(act: Callable[[str], T]) -> dict[str, T]:
    """What is done on the CPU and on the GPU."""
    found = {"cpu": act("cpu")}
    with nullcontext() if REAL else pretended_cuda():
        return found | {"cuda": act("cuda")}


def examples(kind: TaskKind = TaskKind.causal_lm) -> TensorExamples:
    facts = DataFacts("made up", None, str(kind), 32, "none")
    if kind is TaskKind.image_classification:
        pixels = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return TensorExamples(kind, facts, {"pixel_values": pixels, "labels": torch.arange(32) % 2})
    tokens = 3 + (torch.arange(32)[:, None] + torch.arange(12)) % 47
    return TensorExamples(
        kind, facts, {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
    )


KINDS = {
    str(TIED): TaskKind.causal_lm,
    str(UNTIED): TaskKind.causal_lm,
    str(MASKED): TaskKind.masked_lm,
    str(IMAGES): TaskKind.image_classification,
}


@pytest.fixture(scope="module", params=[TIED, *map(long, (UNTIED, MASKED, IMAGES))], ids=str)
def pair(request, tmp_path_factory) -> tuple[Path, Path, TensorExamples]:
    folder = tmp_path_factory.mktemp("pair")
    a, b = (request.param.save(folder / str(seed), seed=seed, dtype=torch.float32) for seed in (0, 1))
    return a, b, examples(KINDS[str(request.param)])


def tensors(folder: Path) -> dict[str, Tensor]:
    """Of all weights and alignments under a folder."""
    files = sorted([*folder.rglob("*.safetensors"), *folder.rglob(ALIGNMENT)])
    assert files
    return {f"{file.relative_to(folder)} {name}": x for file in files for name, x in load_file(file).items()}


def shape(found: object) -> object:
    """What is said but for the device, and for numbers, whose last digits differ."""
    if isinstance(found, dict):
        return {name: shape(x) for name, x in found.items() if name != "device"}
    if isinstance(found, (list, tuple)):
        return [shape(x) for x in found]
    return float if isinstance(found, float) else found


def same(cpu: Path, cuda: Path) -> None:
    """What was written on the one device is what was written on the other."""
    ours, theirs = tensors(cpu), tensors(cuda)
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        torch.testing.assert_close(
            theirs[name], x, rtol=1e-2, atol=5e-3 * (float(x.double().abs().max()) if x.numel() else 0)
        )


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


@pytest.mark.parametrize("by", [Costs.predictions, *map(long, (Costs.layers, Costs.weights))])
def test_gauge(pair, by, tmp_path):
    a, _, found = pair
    how, data = replace(LEARNING, steps=3, batch_size=8, every=2), None if by is Costs.weights else found

    def act(device: str) -> Gauged:
        on = Running(device=device)
        # Of integers the largest of every group is half-way between two codes, and goes either way by its last digit.
        return gauge(a, "nvfp4", tmp_path / device, data=data, by=by, tries=1, how=how, running=on)

    done = on_both(act)
    # A value next to the middle of two codes, or a slope next to nothing, goes either way: what is learned differs.
    assert dict(done["cuda"].starts) == pytest.approx(dict(done["cpu"].starts), rel=1e-3)
    for gauged in done.values():
        assert gauged.learned.after <= gauged.learned.before
        assert gauged.verified is not None
        assert gauged.verified.equal


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


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("targets", [Targets.ends, long(Targets.labels)])
def test_refine(pair, scope, targets, tmp_path):
    a, b, found = pair
    how, start = replace(SHORT, targets=targets), isobasin.align(a, b, scope=scope, method="heads", verify=False)
    on_both(lambda device: refine(a, b, found, tmp_path / device, how=how, start=start, running=Running(device=device)))
    same(tmp_path / "cpu", tmp_path / "cuda")


@pytest.mark.long
def test_refine_from_data(pair, tmp_path):
    a, b, found = pair
    matching = Matching(Method.balanced, scope=Scope.model, keep_gains=True, objective=Objective.activations)
    on_both(
        lambda device: refine(
            a, b, found, tmp_path / device, how=SHORT, matching=matching, running=Running(device=device)
        )
    )
    same(tmp_path / "cpu", tmp_path / "cuda")


@pytest.mark.long
def test_refine_untied(tmp_path):
    a, b = (TIED.save(tmp_path / str(seed), seed=seed, dtype=torch.float32) for seed in (0, 1))
    matching = Matching(Method.balanced, scope=Scope.model, untie=True)
    on_both(
        lambda device: refine(
            a, b, examples(), tmp_path / device, how=SHORT, matching=matching, running=Running(device=device)
        )
    )
    same(tmp_path / "cpu", tmp_path / "cuda")


@pytest.mark.parametrize("scope", SCOPES)
def test_barrier(pair, scope, tmp_path):
    a, b, found = pair

    def act(device: str) -> Tensor:
        how = Measuring((Way.none, Way("gauss-newton")), 3, device=device, scope=scope)
        measured = measure([a, b], found, tmp_path / device, how)
        return torch.tensor([[point.loss for point in line] for line in measured.points.values()])

    losses = on_both(act)
    torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_refine_tensors_and_its_calibration(tmp_path):
    a, b = (UNTIED.save(tmp_path / str(seed), seed=seed, dtype=torch.float32) for seed in (0, 1))
    kind, tokens = TaskKind.causal_lm, examples().tensors["input_ids"]
    with open_model(a) as opened:
        described = replace(opened.specification, feedforwards=opened.feedforwards(), stream=opened.stream())
    stored = [load_file(folder / "model.safetensors") for folder in (a, b)]

    def act(device: str) -> dict[str, Tensor]:
        module = load_model(a, kind, device)

        def loss(weights, rows):
            x = tokens[rows.cpu()].to(device)
            weights = {name: w.to(module.dtype) for name, w in weights.items()}
            return functional_call(module, weights, kwargs={"input_ids": x, "labels": x}).loss

        running = Running(device=device)
        calibration = TensorCalibration(loss, 16, device=device)
        start = isobasin.align_tensors(*stored, described, scope="model", calibration=calibration, device=device)
        found = isobasin.refine_tensors(*stored, described, loss, 16, how=SHORT, running=running, start=start)
        return found.alignment.moved_tensors(stored[1], described)

    moved = on_both(act)
    for name, x in moved["cpu"].items():
        # Muon makes its steps in bfloat16, so that the last digits of a gradient may change one by a four-hundredth.
        torch.testing.assert_close(moved["cuda"][name], x, rtol=1e-2, atol=2e-3)


@pytest.mark.skipif(not REAL, reason="accelerate asks CUDA itself")
def test_training(pair, tmp_path):
    a, _, found = pair
    model = load_model(a, found.kind)
    train(model, found, TrainingSettings(steps=2, batch=4, rate=1e-3, warmup=0), seed=0, folder=tmp_path, device="cuda")
    assert model.device.type == "cpu"


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


@pytest.mark.long
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.usefixtures("cuda")
def test_cuda_refines_and_goes_on_after_an_interrupt(mixed, tmp_path):
    model = tiny("llama", "refined-on-cuda", config={"tie_word_embeddings": False})
    reference = model.save(tmp_path / "reference", dtype=torch.float32)
    isobasin.scramble(reference, tmp_path / "other", seed=1, condition=1.5, scope="model")
    tokens = 3 + (torch.arange(64)[:, None] + torch.arange(12)) % 47
    facts = DataFacts("made up", None, "causal-lm", 64, "none")
    examples = TensorExamples(TaskKind.causal_lm, facts, {"input_ids": tokens, "labels": tokens})
    how = Refining(steps=8, batch_size=8, every=3, warmup=3, mixed_precision=mixed)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "refining" and done == 5:
            raise KeyboardInterrupt

    def refined(progress):
        running = Running(device="cuda", progress=progress)
        return refine(reference, tmp_path / "other", examples, tmp_path / "out", how=how, running=running)

    with pytest.raises(KeyboardInterrupt):
        refined(interrupt)
    steps: list[int] = []
    found = refined(lambda what, done, total: steps.append(done) if what == "refining" else None)
    assert steps[0] == 4
    assert found.refined.steps == 8
    assert all(verified.equal for verified in found.verified)
    assert isobasin.verify(reference, tmp_path / "out" / REFERENCE).equal


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


def line_of(pair: tuple[Path, Path, TensorExamples]) -> ModuleLine:
    """The line between both models, whose ends move."""
    a, b, found = pair
    start = isobasin.align(a, b, scope="model")
    with open_model(a) as one, open_model(b) as other:
        return ModuleLine.between(one, other, start, found.kind, moves=(True, True), device="cuda")


@pytest.mark.skipif(REAL, reason="a graph is recorded there")
def test_a_step_can_be_recorded(cuda, pair):
    """Nothing is asked of the device, or copied to it."""
    line = line_of(pair)
    batch, t = line.placed(pair[2].fetch(range(4))), torch.tensor(0.3, device="cuda")
    for _ in range(2):
        line.divergence(t, batch)
    with recording():
        line.divergence(t, batch).backward()


@pytest.mark.skipif(not REAL, reason="graphs are recorded by CUDA")
def test_a_replayed_step_is_the_step(pair):
    """The gradients of a recorded graph, on batches that it wasn't recorded with."""
    line = line_of(pair)
    replayed, stepwise = (kind(line.divergence, line.coordinates()) for kind in (Replayed, Stepwise))
    for step in range(6):
        batch = line.placed(pair[2].fetch(range(step, step + 4)))
        t = torch.tensor(0.1 * (step + 1), device="cuda")
        slopes = []
        for take in (replayed, stepwise):
            slopes.append([take(t, batch).clone(), *(x.grad.clone() for x in line.coordinates())])
        for x, y in zip(*slopes, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-6)
    assert replayed.recorded
