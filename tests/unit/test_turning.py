"""The action of the residual stream's group, on whole models and on some of their tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from isobasin.alignment import STREAM, Alignment, unmatched
from isobasin.alignment.stream import Turned, gains_of, in_rows
from isobasin.architectures.examples import tiny
from isobasin.errors import TensorError
from isobasin.matching.whole.folded import Folded
from isobasin.model import open_model
from isobasin.symmetries import along, turning
from isobasin.symmetries.stream import Basis
from isobasin.tensor_blocks import TensorBlocks

# With and without biases of normalisations, which pass into readers, or have some that can't take them (the last);
# with factors of what blocks return.
MIXED = tiny("stablelm", "mixed", config={"use_qkv_bias": True, "use_parallel_residual": True})
MODELS = [tiny("gpt2", "untied", config={"tie_word_embeddings": False}), tiny("llama"), tiny("dinov2"), MIXED]


@pytest.fixture(params=MODELS, ids=lambda model: model.model_type)
def turned(request, tmp_path):
    generator = torch.Generator().manual_seed(0)
    with open_model(request.param.save(tmp_path / "model")) as model:
        plan = model.stream()
        assert any(norm.bias is not None for norm in plan.norms) == (request.param.model_type != "llama")
        element = plan.group.sample(*gains_of(model, plan), generator)
        found = Alignment(request.param.model_type, (unmatched(STREAM, plan.group, element),), {}).turned(model)
        assert found is not None
        yield found


def test_a_tensor_alone_moves_as_it_does_among_all(turned: Turned):
    names = turned.plan.ordered()
    together = turned.read(names)
    assert list(together) == names
    for name in names:
        assert list(turned.read([name])) == [name]
        torch.testing.assert_close(turned.read([name])[name], together[name], rtol=0, atol=0)


def test_a_long_tensor_moves_some_rows_at_a_time(turned: Turned, monkeypatch: pytest.MonkeyPatch):
    names = turned.plan.ordered()
    together = turned.read(names)
    monkeypatch.setattr(along, "_VALUES", 100)
    again = turned.read(names)
    assert max(len(list(turned.plan.pieces(name, x.shape))) for name, x in together.items()) > 3
    longest = 0
    for name in names:
        torch.testing.assert_close(again[name], together[name], rtol=1e-12, atol=1e-12)
        value = in_rows(turned, name)
        rows = [value] if isinstance(value, torch.Tensor) else list(value.rows())
        torch.testing.assert_close(torch.cat(rows), together[name], rtol=1e-12, atol=1e-12)
        longest = max(longest, len(rows))
    assert longest > 3


def test_a_moved_model_folded_is_the_folded_one_turned(turned: Turned):
    names = turned.plan.ordered()
    moved = turning.fold(turned.plan, turned.read(names))
    folded = turning.fold(turned.plan, turned.model.double(names))
    expected = turning.turn(turned.plan, turning.maps(turned.plan.group, turned.move.element.matrix), folded)
    assert moved.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(moved[name], tensor, rtol=1e-9, atol=1e-9)
    assert any(not torch.equal(folded[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("case", MODELS, ids=lambda model: model.model_type)
def test_a_model_in_memory_stays_as_it_is_while_it_is_folded(case, tmp_path):
    """What is read from a file is folded where it lies; tensors of an owner are copied first."""
    with open_model(case.save(tmp_path / "model")) as model:
        plan = model.stream()
        names = [*plan.ordered(), *(name for block in model.blocks() for name in block.shapes())]
        tensors = model.double(names)
        for name in plan.normalising():
            tensors[name] = tensors[name] + torch.linspace(0.5, 1, tensors[name].numel()).double().view_as(
                tensors[name]
            )
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        described = replace(model.specification, feedforwards=model.feedforwards(), stream=plan)
        blocks = TensorBlocks("mine", tensors, described)
        folded = Folded.of(blocks, plan).read([name for name in names if name not in plan.normalising()])
    expected = turning.fold(plan, before)
    assert any(not torch.equal(expected[name], before[name]) for name in folded)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name])
    if plan.group.basis is not Basis.centred:
        for name, tensor in folded.items():
            assert torch.equal(tensor, expected[name]), name


def test_a_bias_can_not_move_along_the_stream_by_a_gain_of_zero(tmp_path):
    with open_model(MODELS[0].save(tmp_path / "model")) as model:
        plan = model.stream()
        norm = next(norm for norm in plan.norms if norm.bias is not None and not norm.absorbed)
        assert norm.bias is not None
        tensors = model.double(plan.ordered())
        tensors[norm.gain][3], tensors[norm.bias][3] = 0, 1
        blocks = TensorBlocks("mine", tensors, replace(model.specification, feedforwards=(), stream=plan))
        element = plan.group.identity(*gains_of(blocks, plan))
        found = Alignment("gpt2", (unmatched(STREAM, plan.group, element),), {}).turned(blocks)
        assert found is not None
        with pytest.raises(TensorError, match=f"^mine: '{norm.gain}' is 0 at 3 and '{norm.bias}' is not"):
            found.read([norm.bias])
        tensors[norm.bias][3] = 0
        assert found.read([norm.bias])[norm.bias][3] == 0
