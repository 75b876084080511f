"""Each of these mistakes in moving or matching feed-forward blocks is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import isobasin
from contracts.checks import assert_feedforwards_preserved, assert_tensors_equal, feedforward_names
from isobasin.alignment import Alignment
from isobasin.architectures import activations
from isobasin.architectures.examples import tiny, variant
from isobasin.architectures.families import deepseek_v2
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.tiny import TinyModel
from isobasin.errors import VerificationError
from isobasin.matching import feedforward as matching, units
from isobasin.symmetries import permutation
from isobasin.symmetries.feedforward import FeedForwardElement, FeedForwardGroup, FeedForwardWeights
from isobasin.testing.assertions import assert_function_preserved

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]
Change = Callable[[FeedForwardGroup, FeedForwardElement, FeedForwardWeights, FeedForwardWeights], FeedForwardWeights]

MODELS: dict[str, TinyModel] = {
    "gelu": tiny("gpt2"),
    "relu": tiny("opt"),
    "relu2": tiny("vit", "ff-relu2", config={"hidden_act": "relu2"}),
    "tanh": tiny("bert", "ff-tanh", config={"hidden_act": "tanh"}),
    "swiglu": tiny("llama", "ff-biases", config={"mlp_bias": True}),
    "reglu": tiny("llama", "ff-reglu", config={"hidden_act": "relu", "mlp_bias": True}),
    "corrected": variant("deepseek_v3-biases"),
}


def changed(change: Change) -> Plant:
    """`act` with its result changed: `change(group, element, before, after)`."""

    def plant(patch: Patch) -> None:
        act = FeedForwardGroup.act
        patch.setattr(FeedForwardGroup, "act", lambda g, e, w: change(g, e, w, act(g, e, w)))

    return plant


def unmoved(name: str) -> Plant:
    """One tensor forgotten altogether."""
    return changed(lambda g, e, before, after: replace(after, **{name: getattr(before, name)}))


def unscaled(name: str) -> Plant:
    """One tensor permuted and not scaled."""

    def change(g, e, before, after):
        return replace(after, **{name: permutation.take(getattr(before, name), e.permutation)})

    return changed(change)


def divided_once(patch: Patch) -> None:
    """Degree 1 where the activation has degree 2."""
    table = activations.feedforward_group
    for module in (activations, __import__("isobasin.architectures.building", fromlist=["x"])):
        patch.setattr(module, "feedforward_group", lambda u, a, gated: replace(table(u, a, gated=gated), degree=1))


def down_multiplied(patch: Patch) -> None:
    """`down` scaled the same way as `up`."""

    def change(g, e, before, after):
        rows = permutation.take(before.down, e.permutation)
        return replace(after, down=rows * rows.new_tensor(1.0) * (e.parts["up"] * e.parts["gate"]).unsqueeze(-1))

    changed(change)(patch)


def gelu_taken_as_homogeneous(patch: Patch) -> None:
    patch.setitem(activations._DEGREE, "gelu_new", 1)


def silu_taken_as_odd(patch: Patch) -> None:
    patch.setattr(activations, "_ODD", ("silu",))


def inverse_on_one_side(patch: Patch) -> None:
    """The way out permuted by the inverse."""

    def change(g, e, before, after):
        back = e.permutation.argsort(-1)
        return replace(after, down=permutation.take(after.down, back))

    changed(change)(patch)


def exchanged(patch: Patch) -> None:
    """Gate and up written in each other's place."""
    write = FeedForwardBlock.write
    patch.setattr(FeedForwardBlock, "write", lambda self, t, w: write(self, t, replace(w, up=w.gate, gate=w.up)))


CHANGES_THE_FUNCTION: list[tuple[str, str, Plant]] = [
    ("up left in place", "gelu", unmoved("up")),
    ("down left in place", "gelu", unmoved("down")),
    ("gate left in place", "swiglu", unmoved("gate")),
    ("up bias left in place", "gelu", unmoved("up_bias")),
    ("gate bias left in place", "swiglu", unmoved("gate_bias")),
    ("inverse on one side", "gelu", inverse_on_one_side),
    ("up bias not scaled", "relu", unscaled("up_bias")),
    ("up bias not scaled", "swiglu", unscaled("up_bias")),
    ("gate bias not scaled", "reglu", unscaled("gate_bias")),
    ("down not scaled", "relu", unscaled("down")),
    ("down not scaled", "tanh", unscaled("down")),
    ("down not scaled", "swiglu", unscaled("down")),
    ("down multiplied", "relu", down_multiplied),
    ("down multiplied", "swiglu", down_multiplied),
    ("wrong power", "relu2", divided_once),
    ("a scale that GELU doesn't let pass", "gelu", gelu_taken_as_homogeneous),
    ("a sign that SiLU doesn't let pass", "swiglu", silu_taken_as_odd),
    ("gate and up exchanged", "swiglu", exchanged),
    ("router left in place", "corrected", unmoved("router")),
    ("correction left in place", "corrected", unmoved("correction")),
]


@pytest.mark.parametrize(
    ("name", "plant"), [pytest.param(n, p, id=f"{what}-{n}") for what, n, p in CHANGES_THE_FUNCTION]
)
def test_a_mistake_that_changes_the_function_is_refused(name, plant, saved, tmp_path, monkeypatch):
    """By the verb, which then writes nothing; by the whole model's outputs; and by the plain block."""
    original = saved(MODELS[name])
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises(VerificationError):
            isobasin.scramble(original, tmp_path / "out", seed=1, condition=5.0, scope="block")
        assert not (tmp_path / "out").exists()
        isobasin.scramble(original, tmp_path / "wrong", seed=1, condition=5.0, scope="block", verify=False)
    with pytest.raises(AssertionError):
        assert_function_preserved(original, tmp_path / "wrong", 1e-4)
    with pytest.raises(AssertionError):
        assert_feedforwards_preserved(original, tmp_path / "wrong", 1e-6)


@pytest.mark.parametrize("name", ["deepseek_v2-groups", "deepseek_v3"])
def test_experts_that_leave_their_group_are_refused(name, saved, tmp_path, monkeypatch):
    """By the whole model's outputs; a block by itself is compared with all experts at once."""
    original = saved(variant(name))
    monkeypatch.setattr(deepseek_v2, "expert_groups", lambda config, **_: 1)
    with pytest.raises(VerificationError):
        isobasin.scramble(original, tmp_path / "out", seed=2, condition=5.0, scope="block")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "plant"), [("gelu", unmoved("up_bias")), ("swiglu", unscaled("down"))])
def test_align_without_an_output_checks_block_by_block(name, plant, saved, tmp_path, monkeypatch):
    original = saved(MODELS[name])
    other = MODELS[name].save(tmp_path / "other", seed=1)
    assert isobasin.align(original, other, scope="block").verified.equal
    plant(monkeypatch)
    with pytest.raises(VerificationError, match=r"mlp: the moved block's outputs differ"):
        isobasin.align(original, other, scope="block")


def inverse_assignment(patch: Patch) -> None:
    plain = matching.partners
    patch.setattr(matching, "partners", lambda *given, **how: (plain(*given, **how)[0].argsort(), False))


def no_assignment(patch: Patch) -> None:
    patch.setattr(matching, "partners", lambda group, a, b, **how: (torch.arange(group.units), False))


def no_scales(patch: Patch) -> None:
    plain = units._scales
    patch.setattr(units, "_scales", lambda *a: tuple(torch.ones_like(s) for s in plain(*a)))


def no_signs(patch: Patch) -> None:
    plain = units._scales
    patch.setattr(units, "_scales", lambda *a: tuple(s.abs() for s in plain(*a)))


SPOILS_RECOVERY: list[tuple[str, str, Plant]] = [
    ("inverse assignment", "gelu", inverse_assignment),
    ("inverse assignment", "swiglu", inverse_assignment),
    ("no assignment", "relu", no_assignment),
    ("no scales", "relu2", no_scales),
    ("no signs", "swiglu", no_signs),
    ("no signs", "tanh", no_signs),
]


@pytest.mark.parametrize(("name", "plant"), [pytest.param(n, p, id=f"{what}-{n}") for what, n, p in SPOILS_RECOVERY])
def test_a_mistake_that_keeps_the_function_spoils_recovery(name, plant, saved, tmp_path, monkeypatch):
    original, scrambled = saved(MODELS[name]), tmp_path / "scrambled"
    isobasin.scramble(original, scrambled, seed=3, condition=5.0, scope="block", verify=False)

    def recover(folder: Path) -> Alignment:
        found = isobasin.align(original, scrambled, folder, scope="block", verify=False)
        assert_tensors_equal(original, folder, feedforward_names(original), 1e-8)
        return found

    assert all(layer.statistics.status == "exact" for layer in recover(tmp_path / "sound").feedforward)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        recover(tmp_path / "planted")
    assert (
        isobasin.align(original, scrambled, scope="block", verify=False).feedforward[0].statistics.status == "optimal"
    )
    assert isobasin.equivalent(original, scrambled).feedforward == ()
