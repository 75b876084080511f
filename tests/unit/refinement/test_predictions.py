"""What the ends predict is computed once where that saves time, and learning goes as it does without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from refined_pairs import LANGUAGE, pair, sentences

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.choices import Targets, TaskKind
from isobasin.model import open_model
from isobasin.refinement import descent as descents, predictions
from isobasin.refinement.descent import Descent, descend
from isobasin.refinement.line import ModuleLine
from isobasin.refinement.predictions import Predictions
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import refine
from isobasin.tasks.examples import IGNORED, TensorExamples
from isobasin.tasks.options import DataFacts
from isobasin.tasks.processes import Group
from isobasin.verbs.settings import Running

HOW = Refining(steps=40, batch_size=8, every=10, warmup=2, held_out=0.25, minutes=0)


def quiet(*_: object) -> None:
    """No progress."""


def line_of(folder, model, kind=TaskKind.causal_lm) -> ModuleLine:
    a, b = pair(model, folder)
    start = isobasin.random_alignment(b, condition=1.5, scope="model", seed=3)
    with open_model(a) as one, open_model(b) as other:
        return ModuleLine.between(one, other, start, kind, moves=(True, True))


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> ModuleLine:
    return line_of(tmp_path_factory.mktemp("line"), LANGUAGE[1])


@pytest.fixture
def still(line) -> ModuleLine:
    with torch.no_grad():
        for x in line.coordinates():
            x.zero_()
    return line


@pytest.fixture
def asked(line, monkeypatch) -> list[int]:
    """How many examples the ends were asked for, each time."""
    seen: list[int] = []
    real = ModuleLine._logits

    def logits(self, parameters, batch):
        if any(parameters is end for end in self._fixed):
            seen.append(len(batch["labels"]))
        return real(self, parameters, batch)

    monkeypatch.setattr(ModuleLine, "_logits", logits)
    return seen


def some_labels(count: int = 24) -> TensorExamples:
    """Texts in which examples have different numbers of labels, one of them none."""
    found = dict(sentences(count).tensors)
    drawn = torch.rand(found["labels"].shape, generator=torch.Generator().manual_seed(4))
    found["labels"] = found["labels"].masked_fill(drawn < torch.linspace(0, 1, count)[:, None], IGNORED)
    found["labels"][-1] = IGNORED
    return TensorExamples(TaskKind.causal_lm, DataFacts("made up", None, "causal-lm", count, "none"), found)


@pytest.mark.parametrize("examples", [sentences(24), some_labels()], ids=["all labelled", "some labelled"])
def test_what_is_looked_up_is_what_is_computed(still, examples):
    known = still.predictions(examples, 5, quiet)
    for rows in (torch.tensor([7, 0, 23, 7, 12]), torch.tensor([23]), torch.arange(24)):
        batch = examples.fetch(rows)
        own = torch.stack(list(still._own(batch)))
        found = still.placed(batch, (known, rows))
        assert torch.equal(torch.stack(list(still._own(found))), known.of(rows))
        # Half precision has eleven bits.
        torch.testing.assert_close(known.of(rows), own, rtol=2**-10, atol=1e-4)
        if len(own[0]):
            torch.testing.assert_close(still.divergence(0.4, found), still.divergence(0.4, batch), rtol=2e-3, atol=2e-4)


def test_labels_of_classes(tmp_path):
    """One row an example, of images, and of texts whose padding differs from batch to batch."""
    model = tiny("bert", "refined-classes", config={"num_labels": 3}, head="BertForSequenceClassification")
    of = line_of(tmp_path, model, TaskKind.text_classification)
    tokens = torch.randint(3, 40, (12, 10), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(10) < torch.arange(3, 15).clamp(max=10)[:, None]).long()
    tensors = {"input_ids": tokens, "attention_mask": mask, "labels": torch.arange(12) % 3}
    examples = TensorExamples(of.kind, DataFacts("made up", None, "text-classification", 12, "none"), tensors)
    known, rows = of.predictions(examples, 5, quiet), torch.tensor([2, 11, 0, 2])
    assert known is not None
    assert known.logs.shape == (2, 12, 3)
    torch.testing.assert_close(known.of(rows), torch.stack(list(of._own(examples.fetch(rows)))), rtol=2e-3, atol=1e-4)


def test_processes_look_up_their_own_shares(still):
    """Each the rows of the examples that it computes."""
    examples, rows = some_labels(), torch.tensor([3, 9, 23, 1, 20, 14, 2])
    batch, known = examples.fetch(rows), still.predictions(examples, 8, quiet)
    for rank in range(3):
        alone = SimpleNamespace(num_processes=3, process_index=rank, device=torch.device("cpu"))
        shared = replace(still, group=Group(alone))
        placed = shared.placed(batch, (known, rows))
        own = still._own(examples.fetch(rows[rank::3]))
        torch.testing.assert_close(torch.stack(list(shared._own(placed))), torch.stack(list(own)), rtol=2e-3, atol=1e-4)


def test_ends_are_asked_once_for_every_example(still, asked):
    """Before that at every step, and for held-out examples once at all."""
    descent = Descent(still, sentences(), HOW)
    assert sum(asked) == 2 * 16
    went = descend_with(descent)
    assert went.steps == 40
    assert sum(asked) == 2 * (16 + descents._TIMED_TO * 8 + 48)


def descend_with(descent: Descent):
    """All steps of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descents, "Descent", lambda *_: descent)
        return descend(descent.line, sentences(), descent.how, progress=quiet)


@pytest.mark.parametrize(
    ("changes", "largest", "computed"),
    [
        ({}, 2**30, True),
        # 18 steps of 8 examples were taken, 22 would ask for 176 of 48; of these for 48.
        ({"steps": 24}, 2**30, False),
        ({"targets": Targets.labels}, 2**30, False),
        ({}, 2**16, False),
    ],
    ids=["as it is", "few steps", "labels", "too much"],
)
def test_only_where_it_saves_time(changes, largest, computed, still, monkeypatch):
    monkeypatch.setattr(predictions, "LARGEST", largest)
    descent = Descent(still, sentences(), replace(HOW, **changes))
    descend_with(descent)
    assert descent.state.known is computed
    assert (descent._predictions is not None) is computed


def test_images_with_noise_are_new_at_every_step(tmp_path):
    of = line_of(tmp_path, tiny("vit", "refined-noise"), TaskKind.image_classification)
    pixels = torch.randn(24, 3, of.module.config.image_size, of.module.config.image_size)
    facts = DataFacts("made up", None, "image-classification", 24, "none")
    examples = TensorExamples(of.kind, facts, {"pixel_values": pixels, "labels": torch.zeros(24, dtype=torch.int64)})
    for noise in (0.2, 0.0):
        descent = Descent(of, examples, replace(HOW, noise=noise))
        descent.state.step = descents._TIMED_TO
        assert descent.worth_knowing() is (noise == 0)


def test_learning_goes_as_it_does_without(still, monkeypatch):
    """To the eleventh bit of targets: with the same steps, the same line."""
    heights = []
    for worth in (2, 1000):
        monkeypatch.setattr(descents, "_WORTH", worth)
        with torch.no_grad():
            for x in still.coordinates():
                x.zero_()
        descent = Descent(still, sentences(), HOW)
        descend_with(descent)
        assert descent.state.known is (worth == 2)
        heights.append([height for _, height in descent.state.history])
    assert heights[0] == pytest.approx(heights[1], rel=2e-2)
    assert heights[0][-1] < 0.8 * heights[0][0]
    assert heights[0] != heights[1]


@pytest.mark.parametrize("stopped", [12, 35])
def test_an_interrupt_before_or_after_changes_nothing(stopped, tmp_path):
    a, b = pair(LANGUAGE[0], tmp_path)

    def progress(last: int) -> Callable[[str, int, int], None]:
        def told(what: str, done: int, total: int) -> None:
            if what == "refining" and done == last:
                raise KeyboardInterrupt

        return told

    def learned(name: str, last: int = 0):
        running = Running(progress=progress(last), verify=False)
        return refine(a, b, sentences(), tmp_path / name, how=HOW, running=running)

    whole = learned("whole")
    with pytest.raises(KeyboardInterrupt):
        learned("parts", stopped)
    assert learned("parts").refined == whole.refined
    assert whole.refined.steps == 40


def test_steps_are_planned_once_more_when_they_are_quicker(still, monkeypatch):
    """Ten steps in 20 seconds, then in 10, and a look of 5 seconds every ten: after 68 seconds 232 are left of 300."""
    now = [0.0]
    monkeypatch.setattr(descents.time, "perf_counter", lambda: now[0])
    descent = Descent(still, sentences(), replace(HOW, steps=1000, minutes=5.0))
    laps = {descents._TIMED_TO: 20.0, 2 * descents._TIMED_TO: 10.0}
    monkeypatch.setattr(descent._clock, "lap", lambda: laps.get(descent.state.step, 5.0))
    descent.look()
    while descent.state.step < descents._TIMED_TO:
        descent.step()
    assert descent.state.planned == 120
    descent.know(quiet)
    assert descent.state.since == descents._TIMED_TO
    now[0] = 68.0
    while descent.state.step < 2 * descents._TIMED_TO:
        descent.step()
    assert descent.state.planned == 36 + int(232 / 1.5)


def test_a_step_by_step_look_is_the_same(still, asked):
    """Held-out examples are looked at with what is known of them, to the last digit."""
    batches = [(still.placed(sentences().fetch(range(8))), 8)]
    known = still.knowing(batches)
    asked.clear()
    assert still.means(still.divergence, known, (0.3, 0.6)) == still.means(still.divergence, batches, (0.3, 0.6))
    assert asked == [8] * 4


def test_nothing_of_no_rows():
    known = Predictions(torch.zeros(2, 3, 4).half(), torch.tensor([0, 0, 3, 3]), torch.float32)
    assert known.of(torch.tensor([0, 2, 0])).shape == (2, 0, 4)
