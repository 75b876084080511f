"""The same function in the forms that files have: one view of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers.core_model_loading import revert_weight_conversion

from isobasin.architectures.description import Description
from isobasin.architectures.examples import USUAL, tiny
from isobasin.architectures.registry import family
from isobasin.architectures.resolve import specification
from isobasin.architectures.tiny import TinyModel
from isobasin.architectures.view import View

Tensors = dict[str, Any]


def built(model: TinyModel) -> tuple[dict[str, Any], Tensors, Tensors]:
    """Configuration, tensors as they are saved, and as they are called in memory; none of them has values."""
    architecture = model.architecture()
    with torch.device("meta"):
        made = architecture(architecture.config_class(**model.config))
    config = {**json.loads(made.config.to_json_string()), "architectures": [model.head]}
    memory = dict(made.state_dict())
    return config, revert_weight_conversion(made, dict(memory)), memory


def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def canonical(config: dict[str, Any], tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Canonical names with the shapes of what they are."""
    return {
        name: tuple(tensors[there].shape)
        for name, there in View.of(Description(config, shapes(tensors))).tensors.items()
    }


def without_prefix(model_type: str, tensors: Tensors) -> Tensors:
    for prefix in family(model_type).prefixes:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def older_norms(tensors: Tensors) -> Tensors:
    pairs = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for new, old in pairs:
        tensors = {n.removesuffix(new) + old if n.endswith(new) else n: x for n, x in tensors.items()}
    return tensors


def with_buffers(model_type: str, tensors: Tensors) -> Tensors:
    first = next(iter(tensors)).partition(".")[0]
    endings = (*family(model_type).buffers, "self_attn.rotary_emb.inv_freq", "embeddings.position_ids")
    return tensors | {f"{first}.0.{ending}": torch.ones(4) for ending in endings}


def forms(model_type: str, saved: Tensors, memory: Tensors) -> Iterator[tuple[str, Tensors]]:
    yield "without prefix", without_prefix(model_type, saved)
    yield "gamma and beta", older_norms(saved)
    yield "buffers", with_buffers(model_type, saved)
    if not any(".experts." in name for name in memory):  # those are stacked in memory, not only renamed
        yield "names in memory", memory
        yield "names in memory, without prefix", without_prefix(model_type, memory)


@pytest.mark.parametrize("model_type", USUAL)
def test_every_form_of_every_family_is_the_same_view(model_type: str):
    config, saved, memory = built(tiny(model_type))
    usual = canonical(config, saved)
    assert len(usual) > 10
    bare = {
        name
        for block in specification(Description(config, shapes(saved)), source="x").attention
        for name in block.shapes()
    }
    assert bare <= set(saved)
    for form, tensors in forms(model_type, saved, memory):
        assert canonical(config, tensors) == usual, form
        found = specification(Description(config, shapes(tensors)), source="x")
        assert {name for block in found.attention for name in block.shapes()} <= set(tensors), form


def test_what_transformers_ties_is_there_once():
    """Every tied pair of every family: stored twice, or under either name alone, it is one tensor of one name."""
    tied: list[str] = []
    for model_type in USUAL:
        config, saved, _ = built(tiny(model_type))
        for name, source in View.of(Description(config, shapes(saved))).ties.items():
            view = View.of(Description(config, shapes(saved)))
            both = {view.stored(source): torch.ones(1), name: torch.ones(1)}
            rest = {there: x for there, x in saved.items() if there not in both and there not in view.copies}
            one, other = ({**rest, n: both[n]} for n in (view.stored(source), name))
            twice = View.of(Description(config, shapes({**rest, **both})))
            assert twice.copies == {name: view.stored(source)}
            assert View.of(Description(config, shapes(one))).tensors == twice.tensors
            alone = View.of(Description(config, shapes(other)))
            assert alone.tensors == {**twice.tensors, source: name}
            assert alone.find(name) == alone.find(source) == name
            tied.append(model_type)
    assert {"gpt2", "bert", "bart", "t5", "gemma2", "whisper", "opt"} <= set(tied)
