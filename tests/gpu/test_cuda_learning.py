"""Whatever learns, on a GPU as on the CPU, or on one that is pretended (`test_cuda`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.beside import REFERENCE
from isobasin.choices import Costs, Method, Objective, Scope, Targets, TaskKind, Way
from isobasin.experiments.settings import TrainingSettings
from isobasin.experiments.training import train
from isobasin.lines.ends import Measuring
from isobasin.lines.measure import measure
from isobasin.model import open_model
from isobasin.quantisation.gauge import LEARNING, Gauged, gauge
from isobasin.refinement.gradients import Replayed, Stepwise
from isobasin.refinement.line import ModuleLine
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import refine
from isobasin.refinement.tensors import TensorCalibration
from isobasin.tasks.data import examples_of
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.kind import load_model
from isobasin.tasks.options import DataFacts, DataOptions
from isobasin.testing.pretended import recording
from isobasin.verbs.settings import Matching, Running

from .both import REAL, SCOPES, SHORT, TIED, UNTIED, examples, long, on_both, same

pytestmark = pytest.mark.gpu


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


def test_predictions_are_looked_up_there(cuda, pair):
    """And a step that looks them up can be recorded."""
    line, rows, t = line_of(pair), torch.tensor([3, 0, 2]), torch.tensor(0.3, device="cuda")
    known = line.predictions(pair[2], 4, lambda *_: None)
    batch = pair[2].fetch(rows)
    placed, plain = line.placed(batch, (known, rows)), line.placed(batch)
    with torch.no_grad():
        assert float(line.divergence(t, placed)) == pytest.approx(float(line.divergence(t, plain)), rel=5e-3, abs=1e-4)
    if not REAL:
        with recording():
            line.divergence(t, placed).backward()


@pytest.mark.skipif(not REAL, reason="texts are drawn by CUDA itself")
def test_texts_are_written_there(pair):
    """As many, as long, and by the seed."""
    options = DataOptions("generated", max_examples=6, length=8, seed=2)
    first, again = (examples_of(options, *pair[:2], device="cuda") for _ in range(2))
    assert first.fetch(range(6))["input_ids"].shape == (6, 8)
    assert first.facts.sha256 == again.facts.sha256


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
