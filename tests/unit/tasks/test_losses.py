"""Losses, metrics and temperatures of whole sets, against what transformers itself computes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from isobasin.choices import TaskKind
from isobasin.errors import DataError
from isobasin.tasks import losses as module
from isobasin.tasks.examples import IGNORED, TensorExamples
from isobasin.tasks.images import ImageExamples
from isobasin.tasks.losses import evaluate, targets
from isobasin.tasks.options import DataFacts

FACTS = DataFacts("set", None, "", 0, "", characters=2.5)


def random(*shape, below, seed=0):
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def case(vit, bert, gpt2):
    """A model that is sure of what it says, and examples for it."""

    def build(kind):
        kind = TaskKind(kind)
        if kind == TaskKind.image_classification:
            pixels = torch.randn(23, 1, 8, 8, generator=torch.Generator().manual_seed(1))
            return sharpened(vit()), ImageExamples(kind, FACTS, pixels, random(23, below=3), None)
        if kind == TaskKind.text_classification:
            ids, mask = random(23, 9, below=60), torch.ones(23, 9, dtype=torch.int64)
            mask[::2, 6:] = 0
            tensors = {"input_ids": ids, "attention_mask": mask, "labels": random(23, below=2)}
            return sharpened(bert()), TensorExamples(kind, FACTS, tensors)
        if kind == TaskKind.causal_lm:
            ids = random(23, 9, below=40)
            return sharpened(gpt2()), TensorExamples(kind, FACTS, {"input_ids": ids, "labels": ids})
        ids, labels = random(23, 9, below=60), random(23, 9, below=60, seed=1)
        labels[torch.rand(23, 9, generator=torch.Generator().manual_seed(2)) > 0.3] = IGNORED
        return sharpened(bert("BertForMaskedLM")), TensorExamples(kind, FACTS, {"input_ids": ids, "labels": labels})

    return build


def sharpened(model, factor=4.0):
    """Random heads are unsure: larger weights let losses and temperatures differ from those of a coin."""
    with torch.no_grad():
        for parameter in (
            model.get_output_embeddings().parameters()
            if model.get_output_embeddings()
            else [*model.classifier.parameters()]
        ):
            parameter.mul_(factor * 5)
    return model


KINDS = [str(kind) for kind in TaskKind]


def predictions(model, examples):
    """All logits and labels at once, in float64."""
    batch = examples.fetch(range(len(examples)))
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits.double()
    if examples.kind == TaskKind.causal_lm:
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    return logits[labels != IGNORED], labels[labels != IGNORED]


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_metrics(kind, size, case):
    model, examples = case(kind)
    logits, labels = predictions(model, examples)
    loss = functional.cross_entropy(logits, labels).item()
    accuracy = (logits.argmax(-1) == labels).double().mean().item()
    found = evaluate(model, examples, batch_size=size)
    assert found.loss == pytest.approx(loss, rel=1e-6)
    wanted = {
        "image-classification": {"accuracy": accuracy},
        "text-classification": {"accuracy": accuracy},
        "causal-lm": {"perplexity": math.exp(loss), "bits_per_character": loss / math.log(2) / 2.5},
        "masked-lm": {"perplexity": math.exp(loss), "accuracy": accuracy},
    }[kind]
    assert found.metrics == pytest.approx(wanted, rel=1e-5)
    assert sum(found.group_weights) == len(labels)


@pytest.mark.parametrize("group", [1, 5])
@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_groups_of_examples_are_those_of_transformers(kind, size, group, case):
    model, examples = case(kind)
    found = evaluate(model, examples, batch_size=size, group=group)
    with torch.no_grad():
        batches = [(batch, predictions_of(examples, batch)) for batch in examples.batches(group)]
        wanted = [model(**batch).loss.item() for batch, count in batches if count]
    assert list(found.group_weights) == [count for _, count in batches]
    known = [loss for loss, count in zip(found.group_losses, found.group_weights, strict=True) if count]
    assert known == pytest.approx(wanted, rel=1e-5)


def predictions_of(examples, batch):
    return int((targets(examples.kind, batch["labels"]) != IGNORED).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_the_temperature(kind, case):
    model, examples = case(kind)
    logits, labels = predictions(model, examples)

    def loss(log_beta):
        return float(functional.cross_entropy(logits * math.exp(log_beta), labels))

    best = minimize_scalar(loss, bounds=(math.log(1e-2), math.log(1e2)), method="bounded", options={"xatol": 1e-8})
    for size in (3, 100):
        found = evaluate(model, examples, batch_size=size)
        assert found.calibrated_loss == pytest.approx(best.fun, abs=1e-5)
        if 0.02 < math.exp(best.x) < 50:
            assert found.temperature == pytest.approx(math.exp(-best.x), rel=1e-2)
        assert found.calibrated_loss < found.loss - 0.01


def test_without_the_temperature(case):
    found = evaluate(*case("causal-lm"), batch_size=4, temperature=False)
    assert (found.calibrated_loss, found.temperature) == (None, None)


@pytest.mark.parametrize(("kept", "fewest"), [(40 * 60, 10), (0, 17)])
def test_a_share_of_the_predictions(kept, fewest, case, monkeypatch):
    """A few predictions say about the same as all; the same ones whatever the batch."""
    model, examples = case("causal-lm")
    whole = evaluate(model, examples, batch_size=4)
    monkeypatch.setattr(module, "_KEPT", kept)
    monkeypatch.setattr(module, "_FEWEST", fewest)
    counts = []
    original = module.Predictions.of
    monkeypatch.setattr(
        module.Predictions, "of", staticmethod(lambda *a: counts.append(len(a[1])) or original(*a)), raising=True
    )
    found = evaluate(model, examples, batch_size=1)
    assert 0.7 * max(kept / 40, fewest) < sum(counts) <= max(kept / 40, fewest)
    assert max(counts) - min(counts) <= 1
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    assert found.calibrated_loss < found.loss
    assert found.calibrated_loss == pytest.approx(whole.calibrated_loss, rel=0.2)
    again = evaluate(model, examples, batch_size=23)
    assert (again.temperature, again.calibrated_loss) == pytest.approx(
        (found.temperature, found.calibrated_loss), rel=1e-5
    )


def test_a_calibrated_model_gains_nothing(gpt2):
    """Labels drawn from the model itself: the best temperature is near 1, and the gain near 0 but never below."""
    model = gpt2()
    ids = random(40, 16, below=40)
    for _ in range(1):
        logits = model(ids).logits.flatten(0, 1)
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(0)).view(40, 16)
    labels = torch.cat([ids[:, :1], drawn[:, :-1]], 1)
    found = evaluate(
        model, TensorExamples(TaskKind.causal_lm, FACTS, {"input_ids": ids, "labels": labels}), batch_size=8
    )
    assert found.calibrated_loss <= found.loss
    assert found.loss - found.calibrated_loss < 0.01


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_that_are_no_numbers(kind, bad, case):
    model, examples = case(kind)
    with torch.no_grad():
        next(model.parameters()).fill_(bad)
    found = evaluate(model, examples, batch_size=4)
    assert not math.isfinite(found.loss)
    assert math.isnan(found.calibrated_loss)
    assert found.temperature is None


def test_large_losses(case):
    model, examples = case("causal-lm")
    with torch.no_grad():
        for parameter in model.transformer.wte.parameters():
            parameter.mul_(1e4)
    found = evaluate(model, examples, batch_size=4)
    assert found.loss > 1000
    assert found.metrics["perplexity"] == math.inf
    assert math.isfinite(found.calibrated_loss)


def test_the_model_keeps_its_mode_and_gradients(case):
    model, examples = case("causal-lm")
    model.train()
    evaluate(model, examples, batch_size=4)
    assert model.training
    model(**examples.fetch([0])).loss.backward()
    assert next(model.parameters()).grad is not None


def test_an_accelerator_on_the_same_device_leaves_the_weights_where_they_are(case):
    model, examples = case("causal-lm")
    before = [parameter.data_ptr() for parameter in model.parameters()]
    # As accelerate names it in each of several processes.
    accelerator = SimpleNamespace(device=torch.device("cpu", 0), num_processes=1, process_index=0)
    evaluate(model, examples, batch_size=4, accelerator=accelerator)
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


def test_dropout_is_off(bert):
    model = bert(hidden_dropout_prob=0.5).train()
    tensors = {
        "input_ids": random(20, 6, below=60),
        "attention_mask": torch.ones(20, 6, dtype=torch.int64),
        "labels": random(20, below=2),
    }
    examples = TensorExamples(TaskKind.text_classification, FACTS, tensors)
    assert evaluate(model, examples, batch_size=4).loss == evaluate(model, examples, batch_size=4).loss


@pytest.mark.parametrize("kind", KINDS)
def test_in_float64(kind, case):
    model, examples = case(kind)
    model = model.double()
    if kind == "image-classification":
        examples = replace(examples, pixels=examples.pixels.double())
    logits, labels = predictions_in_double(model, examples)
    found = evaluate(model, examples, batch_size=4)
    assert found.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-12)


def predictions_in_double(model, examples):
    if isinstance(examples, ImageExamples):
        examples = replace(examples)
        logits = model(pixel_values=examples.fetch(range(23))["pixel_values"].double()).logits.detach()
        return logits, examples.labels
    return predictions(model, examples)


def test_without_characters(case):
    model, examples = case("causal-lm")
    examples = replace(examples, facts=replace(FACTS, characters=None))
    assert list(evaluate(model, examples, batch_size=4).metrics) == ["perplexity"]


def run(program, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [*program, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.long
def test_two_processes_find_what_one_does(case, tmp_path):
    for kind in ("causal-lm", "masked-lm"):
        model, examples = case(kind)
        model.save_pretrained(tmp_path / kind)
        torch.save(dict(examples.tensors), tmp_path / f"{kind}.pt")
    program = Path(__file__).with_name("processes.py")
    run([sys.executable, program], tmp_path)
    run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program], tmp_path)
    for name in ("causal-lm-4", "causal-lm-1000", "masked-lm-4", "masked-lm-1000"):
        one, first, second = (json.loads((tmp_path / f"{name}-{n}.json").read_text()) for n in ("1-0", "2-0", "2-1"))
        assert one == first == second
        assert one["temperature"] is not None


def test_examples_that_a_model_can_not_be_run_on(case):
    """Whatever its code raises is one line with its class; here a token and a segment that it has no row for."""
    model, examples = case("text-classification")
    tensors = dict(examples.tensors)
    for wrong in ({"input_ids": tensors["input_ids"] + 60}, {"token_type_ids": torch.full((23, 9), 5)}):
        with pytest.raises(DataError, match=r"^BertForSequenceClassification can't be run on the examples") as caught:
            evaluate(model, replace(examples, tensors=tensors | wrong), batch_size=5)
        assert "\n" not in str(caught.value)
