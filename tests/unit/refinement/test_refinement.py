"""Learned alignment: every point of the chart is an element of the group, and descent lowers the line."""

from __future__ import annotations

import json
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from refined_pairs import LANGUAGE, UNTIED, pair, sentences
from torch.utils._python_dispatch import TorchDispatchMode

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.beside import REFERENCE
from isobasin.choices import Scope, Targets, TaskKind
from isobasin.errors import ArchitectureError, DataError, IsobasinError, OutputError
from isobasin.model import open_model
from isobasin.refinement.calibration import DataCalibration
from isobasin.refinement.descent import Descent, descend, split
from isobasin.refinement.line import ModuleLine, batches_of
from isobasin.refinement.names import named_parameters, names_in_memory, parameters
from isobasin.refinement.points import Points
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import refine
from isobasin.tasks.data import examples_of
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.kind import load_model
from isobasin.tasks.options import DataFacts
from isobasin.verbs.settings import Matching, Running

QUIET = Running(progress=lambda *_: None)
SHORT = Refining(steps=30, batch_size=8, every=10, rate=2e-2, warmup=3, held_out=0.25)


def test_noise_is_in_units_of_the_inputs(tmp_path):
    """Images get noise, drawn again every time from the generator; labels and token numbers stay."""
    model = tiny("vit")
    a, b = (model.save(tmp_path / name, seed, dtype=torch.float32) for seed, name in enumerate("ab"))
    pixels = 5 + 3 * torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = {"pixel_values": pixels, "labels": torch.arange(64)}
    with open_model(a) as one, open_model(b) as other:
        line = ModuleLine.between(one, other, isobasin.align(a, b), TaskKind.image_classification)
        generator, same = (torch.Generator().manual_seed(1) for _ in range(2))
        first, second = (line.noisy(batch, 0.4, generator) for _ in range(2))
        again = line.noisy(batch, 0.4, same)
    noise = first["pixel_values"] - pixels
    assert noise.std().item() == pytest.approx(0.4 * 3, rel=0.02)
    assert abs(noise.mean().item()) < 0.05
    assert torch.equal(first["labels"], batch["labels"])
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert not torch.allclose(first["pixel_values"], second["pixel_values"])


def test_some_of_many_examples_are_of_all_classes_whatever_their_order():
    """Folders of images come class by class."""
    labels = torch.arange(10).repeat_interleave(200)
    facts = DataFacts("made up", None, "image-classification", len(labels), "none")
    examples = TensorExamples(TaskKind.image_classification, facts, {"labels": labels})
    found = [batch["labels"] for batch, size in batches_of(examples, 128, 32) if len(batch["labels"]) == size]
    assert [len(x) for x in found] == [32] * 4
    counts = torch.cat(found).bincount(minlength=10)
    assert counts.min() >= 4
    assert torch.equal(torch.cat(found), torch.cat([batch["labels"] for batch, _ in batches_of(examples, 128, 64)]))
    whole = [batch["labels"] for batch, _ in batches_of(examples, len(labels), 256)]
    assert torch.equal(torch.cat(whole), labels)


@pytest.mark.parametrize(("targets", "noise"), [(Targets.ends, 0.0), (Targets.ends, 0.5), (Targets.labels, 0.5)])
def test_only_what_learns_from_the_ends_takes_noise_and_is_judged_by_them(targets, noise, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ModuleLine, "noisy", lambda self, batch, size, generator: asked.append(size) or batch)
    a, b = pair(LANGUAGE[1], tmp_path)
    with open_model(a) as one, open_model(b) as other:
        line = ModuleLine.between(one, other, isobasin.align(a, b), TaskKind.causal_lm, moves=(False, True))
        how = replace(SHORT, steps=3, targets=targets, noise=noise)
        found = descend(line, sentences(), how, progress=lambda *_: None)
        fresh = ModuleLine.between(one, other, isobasin.align(a, b), TaskKind.causal_lm, moves=(False, True))
    held = list(batches_of(split(sentences(), how)[1], 64, how.batch_size))
    assert asked == ([noise] * (len(held) + 3) if targets is Targets.ends and noise else [])
    if targets is Targets.ends:
        heights = fresh.means(fresh.divergence, held, (0.25, 0.5, 0.75))
    else:
        first, *inner, last = fresh.means(fresh.loss, held, (0.0, 0.25, 0.5, 0.75, 1.0))
        heights = [x - (1 - t) * first - t * last for t, x in zip((0.25, 0.5, 0.75), inner, strict=True)]
    assert found.before == pytest.approx(max(heights), rel=1e-5)


@pytest.mark.parametrize("targets", list(Targets))
def test_refine_lowers_the_line_and_keeps_both_functions(targets, tmp_path):
    """From an alignment that moves nothing: the scrambled copy is brought back by descent alone."""
    model = LANGUAGE[1]
    a, b = pair(model, tmp_path)
    nothing = isobasin.random_alignment(b, condition=1.0, scope="model")
    nothing = nothing.inverse().compose(nothing)
    found = refine(
        a, b, sentences(), tmp_path / "out", how=replace(SHORT, targets=targets), running=QUIET, start=nothing
    )
    assert [verified.equal for verified in found.verified] == [True, True]
    assert found.refined.after < 0.9 * found.refined.before
    assert isobasin.verify(a, tmp_path / "out" / REFERENCE).equal
    assert isobasin.verify(b, tmp_path / "out").equal
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("every", [3, 50])
def test_a_descent_that_runs_off_keeps_what_was_best(every, tmp_path):
    """No step looks at its loss: the next look finds out, and the descent ends there."""
    a, b = pair(LANGUAGE[1], tmp_path)
    start = isobasin.random_alignment(b, condition=1.0, scope="model")
    with open_model(a) as one, open_model(b) as other:
        line = ModuleLine.between(one, other, start, TaskKind.causal_lm, moves=(True, True))
        how = replace(SHORT, steps=12, every=every, rate=1e5, warmup=0)
        found = descend(line, sentences(), how, progress=lambda *_: None)
    assert found.steps == min(every, 12)
    assert found.best_step == 0
    assert found.after == found.before
    assert not any(bool(x.any()) for x in line.coordinates())


def test_mixed_precision_is_in_the_forward_passes_only(tmp_path):
    """The line's loss is that of bfloat16; what is learned moves the model as exactly as ever."""
    a, b = pair(LANGUAGE[1], tmp_path)
    how = replace(SHORT, mixed_precision=True)
    with open_model(a) as one, open_model(b) as other:
        start = isobasin.align(a, b, scope="attention")
        mixed, whole = (
            ModuleLine.between(one, other, start, TaskKind.causal_lm, mixed_precision=mixed) for mixed in (True, False)
        )
        batch = sentences().fetch(range(8))
        losses = [line.loss(0.5, batch).item() for line in (mixed, whole)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    found = refine(a, b, sentences(), tmp_path / "out", how=how, running=QUIET, start=start)
    assert found.refined.after < 0.9 * found.refined.before
    assert [verified.max_rel < 1e-5 for verified in found.verified] == [True, True]


def test_the_divergence_is_that_from_both_ends(tmp_path):
    """By hand, from three models' predictions; nothing diverges at an end, and labels only say which tokens count."""
    model = tiny("vit")
    a, b = (model.save(tmp_path / name, seed, dtype=torch.float32) for seed, name in enumerate("ab"))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(6, 3, model.config["image_size"], model.config["image_size"], generator=generator)
    batch = {"pixel_values": pixels, "labels": torch.zeros(6, dtype=torch.long)}
    with open_model(a) as one, open_model(b) as other:
        nothing = isobasin.align(a, b)
        nothing = nothing.inverse().compose(nothing)
        line = ModuleLine.between(one, other, nothing, TaskKind.image_classification, moves=(True, True))
        found = [line.divergence(t, batch).item() for t in (0.0, 0.25, 1.0)]
        there = line.at(0.25)
    modules = [transformers.AutoModelForImageClassification.from_pretrained(folder).eval() for folder in (a, b, a)]
    modules[2].load_state_dict(there, strict=False)
    with torch.no_grad():
        first, last, between = (module(pixels).logits.double().softmax(-1) for module in modules)
    mixed = 0.75 * first + 0.25 * last
    by_hand = float((mixed * (0.75 * first.log() + 0.25 * last.log() - between.log())).sum(-1).mean())
    assert abs(by_hand) > 1e-4
    assert found == pytest.approx([0, by_hand, 0], rel=1e-3, abs=1e-6)
    with torch.no_grad():
        for coordinate in line.coordinates():
            coordinate.copy_(torch.randn(coordinate.shape, generator=generator, dtype=torch.float64) * 0.2)
    assert [line.divergence(t, batch).item() for t in (0.0, 1.0)] == pytest.approx([0, 0], abs=1e-5)


def test_an_interrupted_refinement_ends_as_if_it_had_not_been(tmp_path):
    a, b = pair(LANGUAGE[0], tmp_path)
    how, quiet = replace(SHORT, steps=18, both=False), replace(QUIET, verify=False)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "refining" and done == 15:
            raise KeyboardInterrupt

    whole = refine(a, b, sentences(), tmp_path / "whole", how=how, running=quiet)
    with pytest.raises(KeyboardInterrupt):
        refine(a, b, sentences(), tmp_path / "parts", how=how, running=replace(quiet, progress=interrupt))
    assert not (tmp_path / "parts").exists()
    assert (tmp_path / ".parts.unfinished").is_file()
    seen: list[int] = []
    again = refine(
        a,
        b,
        sentences(),
        tmp_path / "parts",
        how=how,
        running=replace(quiet, progress=lambda what, done, total: seen.append(done) if what == "refining" else None),
    )
    assert seen[0] == 11
    assert again.refined == whole.refined
    assert not (tmp_path / ".parts.unfinished").exists()
    assert not (tmp_path / "parts" / REFERENCE).exists()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        # transformers 5 calls its tensors other names than are stored.
        ("vit", TaskKind.image_classification),
        # Experts that are stored one by one are parts of one parameter, of two kinds in one of them.
        ("mixtral", TaskKind.causal_lm),
        ("deepseek_v3", TaskKind.causal_lm),
        # A table of sines that is stored, and frozen.
        ("roformer", TaskKind.masked_lm),
    ],
)
def test_places_in_memory_are_found_by_loading(tmp_path, family: str, kind: TaskKind):
    folder = tiny(family).save(tmp_path / family, dtype=torch.float32)
    with open_model(folder) as opened:
        places = names_in_memory(opened, kind)
        assert set(places) == set(opened.view.tensors.values())
        stored = opened.checkpoint.read(places)
    found = parameters((stored[name], some) for name, some in places.items())
    module = load_model(folder, kind)
    learned = {n: x for n, x in named_parameters(module).items() if "embed_positions" not in n}
    assert found.keys() == learned.keys()
    for name, parameter in learned.items():
        assert torch.equal(found[name].reshape(parameter.shape), parameter)


class _Reads(TorchDispatchMode):
    """Where values are read, for which a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            parts = (part for frame in reversed(traceback.extract_stack()) for part in Path(frame.filename).parts)
            self.places.append(next(part for part in parts if part in ("isobasin", "transformers")))
        return func(*args, **(kwargs or {}))


def test_a_step_reads_no_value(tmp_path):
    """But for what the model's own code asks for."""
    a, b = pair(LANGUAGE[1], tmp_path)
    with open_model(a) as one, open_model(b) as other:
        start = isobasin.random_alignment(b, condition=1.0, scope="model")
        line = ModuleLine.between(one, other, start, TaskKind.causal_lm, moves=(True, True))
    descent = Descent(line, sentences(), SHORT)
    descent.step()
    with _Reads() as reads:
        descent.step()
    assert "isobasin" not in reads.places


def test_points_are_drawn_where_the_line_is_high():
    points = Points((1.0, 1.0))
    for _ in range(30):
        points.tell(6, 2.0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([points.draw(generator) for _ in range(200)])
    assert float((drawn == 6).double().mean()) > 0.6
    assert len(drawn.unique()) > 5


def test_what_is_held_out_is_not_trained_on():
    examples = sentences(20)
    train, held = split(examples, Refining(held_out=0.25))
    assert (len(train), len(held)) == (15, 5)
    rows = {tuple(row) for part in (train, held) for row in part.tensors["input_ids"].tolist()}
    assert rows == {tuple(row) for row in examples.tensors["input_ids"].tolist()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps is 0: give a number from 1 to"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"batch_size": 10**9}, "batch size is 1000000000: give a number from 1 to 65,536"),
        ({"rate": float("nan")}, "rate is nan: give a number from 0"),
        ({"rate": float("inf")}, "rate is inf"),
        ({"rate": -1.0}, "rate is -1.0"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"held_out": 1.5}, "held out is 1.5"),
        ({"every": 0}, "every is 0"),
        ({"patience": -1}, "patience is -1"),
    ],
    ids=str,
)
def test_recipes_that_are_none(changes, said):
    with pytest.raises(IsobasinError, match=f"^{said}"):
        Refining(**changes)


def test_one_example_can_not_be_divided():
    with pytest.raises(DataError, match=r"^1 examples: give at least two"):
        split(sentences(1), SHORT)
    train, held = split(sentences(2), replace(SHORT, held_out=0.99))
    assert (len(train), len(held)) == (1, 1)


def test_calibration_recovers_the_map_from_hidden_states(tmp_path):
    a, b = pair(LANGUAGE[1], tmp_path)
    calibration = DataCalibration(sentences())
    with open_model(a) as one, open_model(b) as other:
        found = calibration.starts(one, other, other.stream())["activations"]
        planted = isobasin.Alignment.load(b).stream.element.matrix
        assert torch.allclose(planted @ found, torch.eye(len(found), dtype=torch.float64), atol=1e-3)
        there = isobasin.align(a, b, scope="model", calibration=calibration)
        line = ModuleLine.between(one, other, there, TaskKind.causal_lm)
        ends = line.means(line.loss, list(batches_of(sentences(), 64, 32)), (0.0, 0.5, 1.0))
        assert ends == pytest.approx([ends[0]] * 3, abs=1e-4)
        elsewhere = isobasin.align(a, b, scope="attention")
        off = ModuleLine.between(one, other, elsewhere, TaskKind.causal_lm)
        apart = off.means(off.loss, list(batches_of(sentences(), 64, 32)), (0.5,))
        assert abs(apart[0] - ends[1]) > 1e-2
        scores = calibration.scores(one, other, [there, elsewhere, there])
        assert scores == pytest.approx([ends[1], apart[0], ends[1]], abs=1e-4)


def test_scope_attention_learns_heads_only(tmp_path):
    a, b = pair(LANGUAGE[0], tmp_path)
    matching = Matching(scope=Scope.attention)
    found = refine(a, b, sentences(), tmp_path / "out", how=replace(SHORT, steps=5), matching=matching, running=QUIET)
    assert found.alignment.stream is None
    assert not found.alignment.feedforward
    assert isobasin.verify(b, tmp_path / "out").equal
    matched = isobasin.align(a, b)
    for learned, layer in zip(found.alignment.layers, matched.layers, strict=True):
        assert torch.equal(learned.element.head_permutation(), layer.element.head_permutation())
        assert not torch.equal(learned.element.parts["value_output.matrix"], layer.element.parts["value_output.matrix"])


def test_a_descent_that_gets_worse_keeps_where_it_began(tmp_path):
    a, b = pair(LANGUAGE[0], tmp_path)
    with open_model(a) as one, open_model(b) as other:
        start = isobasin.align(a, b, scope="model")
        line = ModuleLine.between(one, other, start, TaskKind.causal_lm, moves=(False, True))
        wild = replace(SHORT, rate=5.0, steps=12, every=4, targets=Targets.labels)
        found = descend(line, sentences(), wild, progress=lambda *_: None)
    assert found.best_step == 0
    assert found.after == found.before
    assert all(not bool(x.any()) for x in line.coordinates())


def test_a_model_without_known_stream_is_refused(tmp_path):
    folder = tiny("bart").save(tmp_path / "bart", dtype=torch.float32)
    with pytest.raises(ArchitectureError, match="nothing is known of the residual stream of model type 'bart'"):
        refine(folder, folder, sentences(), tmp_path / "out", how=SHORT, running=QUIET)


def test_data_may_be_named(tmp_path: Path):
    """What is learned from a file is what is learned from its examples, prepared by hand; so it is by `gauge`."""
    folder = tiny("llama", "refined", config=UNTIED).save(tmp_path / "model", dtype=torch.float32)
    (tmp_path / "letters.json").write_text(json.dumps({letter: i for i, letter in enumerate("abcdefgh \n")}))
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "text.txt").write_text("abc defgh abcd\n" * 20)
    data = isobasin.DataOptions(str(texts / "text.txt"), length=8, tokenizer=str(tmp_path / "letters.json"))
    prepared = examples_of(data, folder)
    how = replace(SHORT, steps=2)
    found = [isobasin.refine(folder, folder, x, tmp_path / str(i), how=how) for i, x in enumerate((data, prepared))]
    assert found[0].refined == found[1].refined
    for ours, theirs in zip(*(one.alignment.moves for one in found), strict=True):
        assert all(torch.equal(x, theirs.element.tensors()[name]) for name, x in ours.element.tensors().items())
    costs = [isobasin.gauge(folder, "rtn2", tmp_path / f"gauge{i}", data=x, tries=0, how=how)
             for i, x in enumerate((data, prepared))]  # fmt: skip
    assert costs[0].learned == costs[1].learned
    assert costs[0].before == costs[1].before
    for verb in (partial(isobasin.refine, folder, folder, data), partial(isobasin.gauge, folder, "rtn2", data=data)):
        with pytest.raises(OutputError, match=r"is, holds or lies in the input .*text\.txt"):
            verb(output=texts, running=Running(force=True))
    with pytest.raises(DataError, match="has no tokenizer"):
        isobasin.refine(folder, folder, texts / "text.txt", tmp_path / "out", how=how)
