"""Training with Trainer: what the settings say, always the same result, and resumed as if nothing had happened."""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_trained import KINDS, RandomExamples, build, examples
from torch.nn import functional

from isobasin.choices import Redrawn
from isobasin.errors import DependencyError, TrainingError
from isobasin.experiments import training
from isobasin.experiments.scopes import trainable
from isobasin.experiments.settings import TrainingSettings
from isobasin.experiments.training import train

VIT = ("vit", "absolute", "image-classification")
SETTINGS = TrainingSettings(steps=11, batch=5, rate=1e-2, warmup=2)


class Killed(Exception):  # noqa: N818, as a signal is no error
    pass


def trained(kind, folder, settings=SETTINGS, *, seed=1, stop=None, dropout=0.1, data=None):
    """A tiny model after training, and its log; killed after `stop` steps."""

    def progress(done, _):
        if done == stop:
            raise Killed

    model = build(*kind, dropout=dropout)
    trainable(model, Redrawn.entire_model, False)
    data = examples(kind[2]) if data is None else data
    return model, train(model, data, settings, seed=seed, folder=folder, progress=progress)


def assert_same(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def differ(one, other) -> bool:
    return any(not torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


# One of every task.
TASKS = (
    VIT,
    ("bert", "absolute", "text-classification"),
    ("bert", "rotary", "masked-lm"),
    ("llama", "rotary", "causal-lm"),
)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.long] * (kind not in TASKS)) for kind in KINDS], ids="-".join
)
def test_every_model_trains_and_two_runs_are_the_same_to_the_bit(kind, tmp_path):
    """With dropout, over several passes, with an incomplete batch at the end of each."""
    (one, log), (other, _) = (trained(kind, tmp_path) for _ in range(2))
    assert_same(one, other)
    assert differ(one, build(*kind, dropout=0.1))
    assert log.steps == 11
    assert [step for step, _ in log.losses] == list(range(1, 12))
    assert log.final_loss == log.losses[-1][1]
    assert all(math.isfinite(loss) for _, loss in log.losses)
    assert not one.training
    assert not any(tmp_path.iterdir())


def test_the_seed_decides_the_batches(tmp_path):
    assert differ(trained(VIT, tmp_path, dropout=0)[0], trained(VIT, tmp_path, dropout=0, seed=2)[0])


@pytest.mark.parametrize(
    ("kind", "stop"),
    [
        *((VIT, stop) for stop in (5, 9, 11)),
        pytest.param(("vit", "rotary", "image-classification"), 9, marks=pytest.mark.long),
        pytest.param(("gpt2", "absolute", "causal-lm"), 9, marks=pytest.mark.long),
        (("bert", "rotary", "masked-lm"), 9),
    ],
    ids=str,
)
def test_a_killed_training_resumes_as_if_nothing_had_happened(kind, stop, tmp_path):
    """Killed in another pass than its last state, in the same one, and at the very end."""
    settings = SETTINGS.model_copy(update={"save_every": 4})
    whole, log = trained(kind, tmp_path / "whole", settings)
    with pytest.raises(Killed):
        trained(kind, tmp_path / "cut", settings, stop=stop)
    assert [path.name for path in (tmp_path / "cut" / "trainer").iterdir()] == [f"checkpoint-{stop // 4 * 4}"]
    steps: list[int] = []
    model = build(*kind, dropout=0.1)
    trainable(model, Redrawn.entire_model, False)
    folder = tmp_path / "cut"
    resumed = train(
        model, examples(kind[2]), settings, seed=1, folder=folder, progress=lambda done, _: steps.append(done)
    )
    assert steps == list(range(stop // 4 * 4 + 1, 12))
    assert_same(model, whole)
    assert resumed.losses == log.losses
    assert not (folder / "trainer").exists()


@pytest.mark.parametrize("left", [None, "", '{"global_'])
def test_a_state_that_was_being_written_is_passed_over(left, tmp_path):
    settings = SETTINGS.model_copy(update={"save_every": 4})
    whole, _ = trained(VIT, tmp_path / "whole", settings)
    with pytest.raises(Killed):
        trained(VIT, tmp_path, settings, stop=7)
    half = tmp_path / "trainer" / "checkpoint-8"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    if left is not None:
        (half / "trainer_state.json").write_text(left)
    assert_same(trained(VIT, tmp_path, settings)[0], whole)


def test_no_state_is_written_of_the_last_step(tmp_path, monkeypatch):
    """The model itself is about to be returned; resuming from there would take one step too many."""
    states: list[str] = []

    def instead_of_removing(folder, **_):
        states.extend(path.name for path in folder.iterdir())

    monkeypatch.setattr(training, "shutil", SimpleNamespace(rmtree=instead_of_removing))
    trained(VIT, tmp_path, SETTINGS.model_copy(update={"steps": 8, "save_every": 4}))
    assert states == ["checkpoint-4"]


def test_frozen_parameters_stay(tmp_path):
    model = build(*VIT)
    trainable(model, Redrawn.first_attention, True)
    train(model, examples(VIT[2]), SETTINGS.model_copy(update={"weight_decay": 0.1}), seed=1, folder=tmp_path)
    before = dict(build(*VIT).named_parameters())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # A key bias has no gradient but rounding: softmax cancels it.
    assert changed | {"vit.layers.0.attention.k_proj.bias"} == {
        f"vit.layers.0.attention.{x}_proj.{kind}" for x in "qkvo" for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "cosine", "warmup": 3},
        {"schedule": "constant", "weight_decay": 0.3, "betas": (0.5, 0.9)},
        {"schedule": "linear", "clip": 0.02},
    ],
    ids=str,
)
def test_settings_mean_what_they_say(changes, tmp_path):
    """The same steps written out, on all examples at once, so that their order doesn't matter."""
    settings = SETTINGS.model_copy(update={"batch": 23, "warmup": 0, "clip": 0.0, **changes})
    model, log = trained(VIT, tmp_path, settings, dropout=0)
    plain = build(*VIT)
    decayed = [p for n, p in plain.named_parameters() if not n.endswith("bias") and "layernorm" not in n]
    rest = [p for p in plain.parameters() if all(p is not q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=settings.betas)
    batch = examples(VIT[2]).fetch(range(23))
    losses = []
    for step in range(11):
        warm, left = settings.warmup, 11 - settings.warmup
        factors = {
            "cosine": 0.5 * (1 + math.cos(math.pi * (step - warm) / left)),
            "linear": 1 - step / 11,
            "constant": 1.0,
        }
        factor = step / warm if step < warm else factors[settings.schedule]
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * factor
        loss = functional.cross_entropy(plain(pixel_values=batch["pixel_values"]).logits, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), settings.clip)
        optimizer.step()
        losses.append(loss.item())
    assert [loss for _, loss in log.losses] == pytest.approx(losses, abs=2e-4)
    for name, tensor in plain.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], tensor, rtol=0, atol=2e-3)


def test_batches_are_whole_and_each_pass_takes_every_example_once(tmp_path):
    seen: list[list[int]] = []

    class Watched(RandomExamples):
        def fetch(self, indices):
            seen.append(list(indices))
            return super().fetch(indices)

    trained(VIT, tmp_path, data=Watched(examples(VIT[2]).tensors))
    batches = seen[:11]
    assert [len(batch) for batch in batches] == [5] * 11
    passes = [[i for batch in batches[start : start + 4] for i in batch] for start in (0, 4)]
    assert all(len(set(indices)) == 20 for indices in passes)
    assert passes[0] != passes[1]
    seen.clear()
    trained(VIT, tmp_path, seed=2, data=Watched(examples(VIT[2]).tensors))
    # Neighbouring seeds share no pass.
    assert not {tuple(batch) for batch in batches} & {tuple(batch) for batch in seen}


def test_fewer_examples_than_a_batch(tmp_path):
    _, log = trained(VIT, tmp_path, data=examples(VIT[2], count=3))
    assert log.steps == 11


def test_nothing_outside_the_model_changes(tmp_path, capfd):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    model, _ = trained(("gpt2", "absolute", "causal-lm"), tmp_path)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    assert after == before
    assert model.config.to_dict() == build("gpt2", "absolute", "causal-lm", dropout=0.1).config.to_dict()
    assert "".join(capfd.readouterr()) == ""


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no examples"):
        trained(VIT, tmp_path, data=examples(VIT[2], count=0))
    with pytest.raises(TrainingError, match="unknown schedule 'steps': transformers has linear, cosine"):
        trained(VIT, tmp_path, SETTINGS.model_copy(update={"schedule": "steps"}))
    with pytest.raises(DependencyError, match="device 'tpu': this is none of ours"):
        train(build(*VIT), examples(VIT[2]), SETTINGS, seed=1, folder=tmp_path, device="tpu")


def test_a_log_is_sampled_and_has_a_loss_at_each_state(tmp_path):
    settings = TrainingSettings(steps=300, batch=5, rate=1e-3, save_every=50)
    with pytest.raises(Killed):
        trained(VIT, tmp_path, settings, stop=101)
    state = json.loads((tmp_path / "trainer" / "checkpoint-100" / "trainer_state.json").read_text())
    steps = [entry["step"] for entry in state["log_history"]]
    assert steps[-1] == 100
    assert 40 <= len(steps) <= 50
