"""Units and planes that write nothing, as of blocks that were added and not trained yet, or that read nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.model import open_model


def _silenced(model_type: str, role: str, folder: Path) -> Path:
    """A model with zero weights of a role in all units of the last block and in ten of the first."""
    model = tiny(model_type).build()
    model.save_pretrained(folder)
    with open_model(folder) as found, torch.no_grad():
        names = {name: dict(model.named_parameters())[name] for name in found.checkpoint.tensors}
        for block, units in ((found.feedforwards()[0], slice(10)), (found.feedforwards()[-1], slice(None))):
            projection = block.projections[role]
            if projection.bias is not None and role != "down":
                names[projection.bias][units] = 0
            names[projection.weight][(slice(None), units) if role == "down" else units] = 0
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scope", ["block", "model"])
@pytest.mark.parametrize("role", ["up", "down"])
@pytest.mark.parametrize("model_type", ["llama", "opt", "nemotron"])
def test_a_copy_is_known_and_brought_back(model_type: str, role: str, scope: str, tmp_path: Path) -> None:
    """Gated units with real scales, units with positive ones, and units whose activation is squared."""
    model = _silenced(model_type, role, tmp_path / "model")
    isobasin.scramble(model, tmp_path / "copy", scope=scope)
    assert isobasin.equivalent(model, tmp_path / "copy").equivalent
    alignment = isobasin.align(model, tmp_path / "copy", scope=scope)
    distance = alignment.total_distance()
    assert distance["after"] < 1e-5 * distance["before"]


@pytest.mark.parametrize("role", ["query", "key"])
def test_planes_of_which_one_side_is_zero(role: str, tmp_path: Path) -> None:
    model = tiny("llama").build()
    for layer in model.model.layers:
        getattr(layer.self_attn, f"{role[0]}_proj").weight.data.zero_()
    model.save_pretrained(tmp_path / "model")
    isobasin.scramble(tmp_path / "model", tmp_path / "copy", scope="model")
    assert isobasin.equivalent(tmp_path / "model", tmp_path / "copy").equivalent
    distance = isobasin.align(tmp_path / "model", tmp_path / "copy", scope="model").total_distance()
    assert distance["after"] < 1e-5 * distance["before"]
