"""Every point of the chart is an element of the group, and its gradient is that of the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refined_pairs import LANGUAGE, pair, sentences

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.choices import TaskKind
from isobasin.model import open_model
from isobasin.refinement.chart import Chart
from isobasin.refinement.line import ModuleLine
from isobasin.tensor_blocks import TensorBlocks


def in_float64(folder: Path, opened) -> TensorBlocks:
    tensors = {n: t.double() for n, t in opened.checkpoint.read(opened.checkpoint.tensors).items()}
    described = replace(opened.specification, feedforwards=opened.feedforwards(), stream=opened.stream())
    return TensorBlocks(str(folder), tensors, described)


@pytest.mark.parametrize(
    "model", [*LANGUAGE, *(tiny(name) for name in ("bert", "vit", "opt", "qwen3", "dinov2", "gemma2"))], ids=str
)
def test_every_point_of_the_chart_keeps_the_function(model, tmp_path):
    """The element at random coordinates is applied and verified as any other alignment is."""
    folder = model.save(tmp_path / "model")
    with open_model(folder) as opened:
        stream = None if model.model_type == "opt" else opened.stream()
        chart = Chart(opened, feedforward=True, stream=stream)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for coordinate in chart.coordinates.values():
                coordinate.copy_(torch.randn(coordinate.shape, generator=generator, dtype=torch.float64) * 0.2)
        moved = isobasin.apply(chart.element(), folder, tmp_path / "moved", verify=True)
    assert moved.verified.equal
    assert moved.verified.max_rel < 1e-5
    assert "attention.0.value_output.matrix" in chart.coordinates


STACKED = ("gpt2", "llama", "bert", "opt", "qwen3", "dinov2", "gemma2", "gpt_neox", "mixtral", "deepseek_v3", "cohere")


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layers_move_together_as_each_does_alone(name, dtype, tmp_path):
    """What learning computes of stacked layers, quickly, is what the element does that is read from it in the end."""
    with open_model(tiny(name).save(tmp_path / "model")) as opened:
        stream = None if name == "opt" else opened.stream()
        chart = Chart(opened, feedforward=True, stream=stream, dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for coordinate in chart.coordinates.values():
                coordinate.copy_(torch.randn(coordinate.shape, generator=generator) * 0.1)
        moved = chart.tensors()
        assert {x.dtype for x in moved.values()} == {dtype}
        expected: dict[str, torch.Tensor] = {}
        for tensors in chart.element().moved(opened):
            expected |= {name: x.detach() for name, x in tensors.items()}
        assert expected.keys() == moved.keys()
        for tensor_name, x in expected.items():
            tolerance = (1e-10 if dtype == torch.float64 else 1e-4) * max(1.0, float(x.abs().max()))
            torch.testing.assert_close(moved[tensor_name].detach().double(), x, rtol=0, atol=tolerance)
        slopes = torch.autograd.grad(sum(x.sum() for x in moved.values()), [*chart.coordinates.values()])
        assert all(bool(slope.isfinite().all()) for slope in slopes)


@pytest.mark.parametrize("name", ["gpt2", "llama", "deepseek_v3", "cohere"])
def test_of_all_that_is_no_rotation_a_share_counts(name, tmp_path):
    """Gauges are learned so: everything but skew matrices, phases and rotations moves by less."""
    with open_model(tiny(name).save(tmp_path / "model")) as opened:
        plain, slowed = (
            Chart(opened, feedforward=True, stream=opened.stream(), stretching=share) for share in (1.0, 0.25)
        )
        generator = torch.Generator().manual_seed(0)
        rotations = {"stream.matrix", "attention.0.latent.query", "attention.0.latent.key_value"}
        with torch.no_grad():
            for key, x in slowed.coordinates.items():
                x.copy_(torch.randn(x.shape, generator=generator, dtype=torch.float64) * 0.2)
                expected = 0.25 * x
                if key in rotations:
                    expected = x
                elif key.endswith(".matrix"):
                    expected = (x - x.mT) / 2 + 0.25 * (x + x.mT) / 2
                elif key.endswith((".planes", ".rotary")):
                    expected = torch.stack([0.25 * x[..., 0], x[..., 1]], -1)
                plain.coordinates[key].copy_(expected)
        moved = plain.tensors()
        for key, x in slowed.tensors().items():
            torch.testing.assert_close(x, moved[key], rtol=1e-12, atol=1e-12)
        ends = zip(slowed.element().moved(opened), plain.element().moved(opened), strict=True)
        for ours, theirs in ends:
            for key, x in ours.items():
                torch.testing.assert_close(x, theirs[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", LANGUAGE, ids=str)
def test_at_zero_the_chart_moves_nothing(model, tmp_path):
    with open_model(model.save(tmp_path / "model")) as opened:
        blocks = in_float64(tmp_path, opened)
        chart = Chart(blocks, feedforward=True, stream=blocks.stream())
        for tensors in chart.element().moved(blocks):
            for name, tensor in tensors.items():
                assert torch.allclose(tensor, blocks.tensors[name], rtol=0, atol=1e-13)


@pytest.mark.parametrize("model", LANGUAGE, ids=str)
def test_the_gradient_is_that_of_the_loss(model, tmp_path):
    """Against finite differences along a random direction, through the moves, the line and the model."""
    a, b = pair(replace(model), tmp_path)
    for folder in (a, b):
        wide = folder.with_name(folder.name + "64")
        isobasin.scramble(folder, wide, condition=1.0, dtype=torch.float64, verify=False)
    with open_model(tmp_path / "a64") as one, open_model(tmp_path / "b64") as other:
        start = isobasin.align(tmp_path / "a64", tmp_path / "b64", scope="model", verify=False)
        line = ModuleLine.between(one, other, start, TaskKind.causal_lm, moves=(True, True))
        generator = torch.Generator().manual_seed(3)
        coordinates = line.coordinates()
        way = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in coordinates]
        batch = sentences().fetch(range(4))
        with torch.no_grad():
            for x, w in zip(coordinates, way, strict=True):
                x.add_(0.05 * w)

        def loss_at(step: float) -> float:
            with torch.no_grad():
                for x, w in zip(coordinates, way, strict=True):
                    x.add_(step * w)
                found = float(line.loss(0.4, batch))
                for x, w in zip(coordinates, way, strict=True):
                    x.sub_(step * w)
            return found

        loss = line.loss(0.4, batch)
        slopes = torch.autograd.grad(loss, coordinates)
        expected = float(sum((g * w).sum() for g, w in zip(slopes, way, strict=True)))
        measured = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3
        # transformers' RMSNorm computes in float32.
        assert measured == pytest.approx(expected, rel=2e-3, abs=2e-3)
