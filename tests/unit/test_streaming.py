"""A model whose layers are in memory one at a time computes what a held one does, to the bit."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.checkpoints import Checkpoint
from isobasin.errors import VerificationError
from isobasin.loading import Held, Streamed, made, plans
from isobasin.loading.deferred import Deferred
from isobasin.model import open_model
from isobasin.verification import models, running
from isobasin.verification.running import How, Run

WIDTH = 3


class Stack(nn.Module):
    """Layers that are called, and a head that is the first one's input."""

    def __init__(self, *, called: bool = True) -> None:
        super().__init__()
        self.start = nn.Linear(WIDTH, WIDTH, bias=False)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head.weight = self.start.weight
        self.called, self.seen = called, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            raise ValueError("no numbers")
        x = self.start(x)
        for layer in self.layers:
            x = layer(x) if self.called else x @ layer.weight.T + layer.bias
            self.seen.append(sum(not one.weight.is_meta for one in self.layers))
        return self.head(x)


def stacks(**how: Any) -> tuple[Stack, Stack, list[str]]:
    """A model, the same one with deferred tensors, and the names of those that were made, in order."""
    torch.manual_seed(0)
    one, other = Stack(**how), Stack(**how)
    asked: list[str] = []

    def make(name: str, value: Tensor) -> Tensor:
        asked.append(name)
        return value.clone()

    for name, parameter in one.named_parameters():
        path, _, key = name.rpartition(".")
        value = parameter.detach().clone()
        deferred = Deferred(torch.empty_like(value, device="meta"), partial(make, name, value))
        setattr(other.get_submodule(path), key, nn.Parameter(deferred))
    other.head.weight = other.start.weight
    return one, other, asked


def test_one_layer_is_in_memory_and_is_made_once_for_all_inputs():
    one, other, asked = stacks()
    inputs = [torch.randn(length, WIDTH) for length in (1, 5, 2)]
    streamed = Streamed(other, "cpu")
    assert asked == ["start.weight"]
    found = streamed.each(torch.no_grad()(other), inputs)
    assert all(torch.equal(x, y) for x, y in zip(found, Held(one, "cpu").each(one, inputs), strict=True))
    assert other.seen == [1] * 12
    assert asked == list(dict(one.named_parameters()))
    assert all(layer.weight.is_meta for layer in other.layers)
    assert other.head.weight is other.start.weight


def test_changes_are_made_whenever_a_layer_is():
    one, other, _ = stacks()
    x, streamed = torch.ones(2, WIDTH), Streamed(other, "cpu")
    before = streamed.values(Tensor.clone)
    for model in (Held(one, "cpu"), streamed):
        model.change(lambda name, tensor: tensor.mul_(2.0 if "2" in name else 3.0 if "start" in name else 1.0))
    assert torch.equal(streamed.each(torch.no_grad()(other), [x, x])[1], one(x))
    assert torch.equal(made(before["layers.2.weight"]) * 2, one.layers[2].weight)
    assert torch.equal(before["start.weight"] * 3, one.start.weight)


def test_what_is_not_called_as_a_layer_raises_and_an_error_of_one_input_is_the_error():
    _, other, _ = stacks(called=False)
    with pytest.raises((RuntimeError, NotImplementedError)):
        Streamed(other, "cpu").each(torch.no_grad()(other), [torch.ones(2, WIDTH)])
    _, other, _ = stacks()
    inputs = [torch.ones(1, WIDTH), torch.full((1, WIDTH), torch.nan), torch.ones(1, WIDTH)]
    with pytest.raises(ValueError, match="no numbers"):
        Streamed(other, "cpu").each(torch.no_grad()(other), inputs)


def test_deferred_tensors_are_made_by_what_was_done_to_them():
    value = torch.randn(4, 6).bfloat16()
    deferred: Tensor = Deferred(torch.empty_like(value, device="meta"), value.clone)
    pieces = deferred[...].to(device="cpu", dtype=torch.float64).T.chunk(2)
    found = torch.stack([pieces[1].contiguous(), pieces[0] + 1])
    expected = value.double().T.chunk(2)
    assert (found.shape, found.dtype, type(found)) == ((2, 3, 4), torch.float64, Deferred)
    assert torch.equal(made(found), torch.stack([expected[1], expected[0] + 1]))
    with pytest.raises(NotImplementedError, match="zero_"):
        deferred.zero_()


@pytest.mark.parametrize("name", ["t5", "mixtral", "albert", "siglip_vision_model", "gpt2"])
def test_outputs_and_roundings_of_streamed_models_are_those_of_held_ones(name, tmp_path, monkeypatch):
    """Tied tensors, an encoder beside a decoder, experts that are merged, one layer for all, and fused attention."""
    source, moved = tiny(name).save(tmp_path / "a", dtype=torch.bfloat16), tmp_path / "b"
    isobasin.scramble(source, moved, seed=1, verify=False)
    found: list[Any] = []
    for limit in (10**9, 0):
        monkeypatch.setattr(running, "_HELD_LIMIT", limit)
        with open_model(source) as a, open_model(moved) as b:
            both = plans([(model.checkpoint, model.canonical.description.config) for model in (a, b)])
            one, other = (Run(x, plan, How(torch.float64, 0, "cpu")) for x, plan in zip((a, b), both, strict=True))
            assert isinstance(one._loaded, Streamed) == isinstance(other._loaded, Streamed) == (limit == 0)
            values, plain = one.sensitivity(torch.bfloat16)
            found.append((one.outputs, other.outputs, plain, other.rounding(values)))
    for held, streamed in zip(*(pair[:2] for pair in found), strict=True):
        assert held.keys() == streamed.keys()
        assert all(torch.equal(x, streamed[key]) for key, x in held.items())
    assert found[0][2:] == found[1][2:]
    assert found[0][3].shown.rms > 1e-4


def test_a_model_that_does_not_run_by_layers_is_held(tmp_path, monkeypatch):
    a = tiny("gpt2").save(tmp_path / "a", dtype=torch.float32)
    held = isobasin.verify(a, a)
    tried: list[Any] = []

    def fails(self: Streamed, *given: Any) -> Any:
        tried.append(self)
        raise VerificationError("a layer that isn't called")

    monkeypatch.setattr(running, "_HELD_LIMIT", 0)
    monkeypatch.setattr(Streamed, "each", fails)
    assert isobasin.verify(a, a) == held
    assert len(tried) == 2


def test_a_model_needs_memory_for_its_largest_layer_to_run_whole(tmp_path, monkeypatch):
    a = tiny("gpt2").save(tmp_path / "a", dtype=torch.float32)
    with open_model(a) as model:
        (plan,) = plans([(model.checkpoint, model.canonical.description.config)])
        layer = sum(prod(shape) for name, shape in model.canonical.shapes.items() if ".h.1." in f".{name}")
        assert plan.at_once == model.parameters() - layer
    monkeypatch.setattr(models, "fits", lambda values, dtype: values <= plan.at_once)
    assert "one by one" in isobasin.verify(a, a).how
    monkeypatch.setattr(running, "_HELD_LIMIT", 0)
    assert "whole models" in isobasin.verify(a, a).how


def test_memory_that_was_let_go_is_given_back_as_models_are_read(tmp_path, monkeypatch):
    """After so many bytes, whoever reads them; not for each of many small tensors."""
    from isobasin import memory

    checkpoint = Checkpoint.open(tiny("gpt2").save(tmp_path / "a", dtype=torch.float32))
    size = sum(file.stat().st_size for file in (tmp_path / "a").glob("*.safetensors"))
    times: list[int] = []
    monkeypatch.setattr(memory, "_trim", lambda: times.append)
    monkeypatch.setattr(memory, "_read", 0)
    monkeypatch.setattr(memory, "_BETWEEN", int(1.5 * size))
    for _ in range(3):
        for name in checkpoint.tensors:
            checkpoint.read([name])
    assert len(times) == 1
