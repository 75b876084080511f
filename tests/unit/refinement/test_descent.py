"""How large the steps of a descent are, how many it takes, and how its gradients are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.choices import TaskKind
from isobasin.errors import AlignmentError
from isobasin.model import open_model
from isobasin.refinement import descent as descents
from isobasin.refinement.chart import GAINS, MATRIX
from isobasin.refinement.descent import Descent, descend
from isobasin.refinement.gradients import Stepwise, gradients
from isobasin.refinement.line import ModuleLine
from isobasin.refinement.recipe import Refining
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts
from isobasin.tasks.processes import Group

MODEL = tiny("llama", "descended", config={"tie_word_embeddings": False})


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> ModuleLine:
    folder = tmp_path_factory.mktemp("descended") / "a"
    MODEL.save(folder, dtype=torch.float32)
    with open_model(folder) as a, open_model(folder) as b:
        start = isobasin.random_alignment(folder, condition=1.5, scope="model")
        return ModuleLine.between(a, b, start, TaskKind.causal_lm, moves=(True, True))


def sentences(count: int = 16) -> TensorExamples:
    tokens = 3 + (torch.arange(count)[:, None] + torch.arange(12)) % 40
    facts = DataFacts("made up", None, "causal-lm", count, "none")
    return TensorExamples(TaskKind.causal_lm, facts, {"input_ids": tokens, "labels": tokens})


def fresh(line: ModuleLine, how: Refining) -> Descent:
    with torch.no_grad():
        for x in line.coordinates():
            x.zero_()
    return Descent(line, sentences(), how)


def test_a_step_turns_the_stream_by_one_angle_and_moves_the_rest_at_the_rate(line):
    """Of a rotation exp(S - S^T) the singular values of the exponent are the angles, of which every plane has two."""
    fresh(line, Refining(batch_size=4, rate=1e-2, warmup=0)).step()
    for chart in (end.chart for end in line.ends if end.chart is not None):
        turned = chart.coordinates[MATRIX].detach()
        angles = torch.linalg.svdvals(turned - turned.mT)
        # Muon's orthogonal factor has singular values around 1, of whatever size the gradient's are; one of an odd
        # number of axes, and planes that the loss doesn't see, stay.
        assert 0.015 < float(angles[: len(angles) // 2].mean()) < 0.045
        assert float(angles.max()) < 0.045
        largest = {name: float(x.detach().abs().max()) for name, x in chart.coordinates.items() if name != MATRIX}
        assert largest.pop(GAINS) == pytest.approx(0.03, rel=1e-3)
        assert max(largest.values()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("minutes", "taken"), [(1.0, 24), (0.0, 40), (1e-3, 18), (100.0, 40)])
def test_minutes_say_how_many_steps_there_are(line, monkeypatch, minutes, taken):
    """Ten steps in 20 seconds, and a look of 5 seconds every ten: 2.5 seconds a step; 18 had gone when it was known."""
    laps = {descents._TIMED_TO: 20.0}
    monkeypatch.setattr(descents.Clock, "lap", lambda clock: laps.get(steps.state.step, 5.0))
    steps = fresh(line, Refining(steps=40, batch_size=2, every=10, patience=9, warmup=2, minutes=minutes))
    monkeypatch.setattr(descents, "Descent", lambda *_: steps)
    seen: list[tuple[int, int]] = []
    went = descend(line, sentences(), steps.how, progress=lambda what, done, total: seen.append((done, total)))
    assert went.steps == taken
    assert seen[-1] == (taken, taken)


@pytest.mark.parametrize(("patience", "taken"), [(None, 24), (2, 8), (30, 60)])
def test_it_ends_without_a_better_look_in_a_third_of_the_steps(line, monkeypatch, patience, taken):
    """The best of them is that after four steps."""
    steps = fresh(line, Refining(steps=60, batch_size=2, every=2, patience=patience, minutes=0))
    monkeypatch.setattr(descents, "Descent", lambda *_: steps)
    monkeypatch.setattr(steps, "_height", lambda: 0.5 if steps.state.step == 4 else 1.0)
    went = descend(line, sentences(), steps.how, progress=lambda *_: None)
    assert (went.steps, went.best_step) == (taken, 4)


def test_a_line_that_never_was_finite_is_refused(line, monkeypatch):
    monkeypatch.setattr(descents.Descent, "_height", lambda descent: float("inf"))
    steps = fresh(line, Refining(steps=4, batch_size=2, every=2))
    monkeypatch.setattr(descents, "Descent", lambda *_: steps)
    with pytest.raises(AlignmentError, match="no finite number where learning begins"):
        descend(line, sentences(), steps.how, progress=lambda *_: None)


def test_a_batch_in_its_place_has_the_same_gradient(line):
    """The numbers of labelled rows are found once, before a step that must not ask for them."""
    batch = sentences().fetch(range(4))
    batch["labels"] = batch["labels"].clone()
    batch["labels"][:, ::3] = -100
    with torch.no_grad():
        for x in line.coordinates():
            x.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    found = []
    for given in (batch, line.placed(batch)):
        take = gradients(line.divergence, line.coordinates(), recordable=line.recordable)
        assert isinstance(take, Stepwise) or torch.cuda.is_available()
        found.append([take(torch.tensor(0.5), given), *(x.grad for x in line.coordinates())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert one.abs().max() > 0


@pytest.mark.parametrize("measure", ["loss", "divergence"])
def test_the_shares_of_processes_make_the_gradient_of_their_batch(line, measure):
    """Weighed by what is labelled in each, one without any included; here they are asked one after the other."""
    batch = sentences().fetch(range(7))
    batch["labels"] = batch["labels"].clone()
    batch["labels"][0::3] = -100
    batch["labels"][1::3, 4:] = -100
    with torch.no_grad():
        for x in line.coordinates():
            x.normal_(std=0.05, generator=torch.Generator().manual_seed(0))

    def gradient(of: ModuleLine) -> tuple[list[torch.Tensor], float]:
        placed = of.placed(batch)
        loss = Stepwise(getattr(of, measure), of.coordinates())(torch.tensor(0.4), placed)
        return [loss, *(x.grad.clone() for x in of.coordinates())], of.weight(placed)

    whole, labelled = gradient(line)
    parts, count = [gradient(replace(line, group=Group(alone(rank, 3)))) for rank in range(3)], len(whole)
    assert [weight for _, weight in parts] == [0, 6, 22]
    assert sum(weight for _, weight in parts) == labelled

    # What the other two sum up to, for each of them.
    def flat(values: list[torch.Tensor], weight: float) -> torch.Tensor:
        sums = [x.reshape(-1) * weight if weight else torch.zeros(x.numel()) for x in values]
        return torch.cat([*sums, torch.tensor([weight])])

    flats = [flat(values, weight) for values, weight in parts]
    for rank, (values, weight) in enumerate(parts):
        others = sum(other for i, other in enumerate(flats) if i != rank)
        Group(alone(rank, 3, lambda own, others=others: own + others)).average(values, weight)
        for i in range(count):
            torch.testing.assert_close(values[i], whole[i], rtol=1e-4, atol=1e-6)


def alone(rank: int, count: int, reduce: Callable[[torch.Tensor], torch.Tensor] = lambda own: own) -> SimpleNamespace:
    """An accelerator of several processes whose sums are known."""
    return SimpleNamespace(
        num_processes=count, process_index=rank, device=torch.device("cpu"), reduce=lambda own, how: reduce(own)
    )
