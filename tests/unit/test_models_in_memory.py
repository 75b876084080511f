"""What people pass for a model in memory: one line for what can't be read as one, and nothing of a model is changed."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import peft
import pytest
import torch

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.errors import CheckpointError


def _adapted(model: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


def _with_adapter(model: Any) -> Any:
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    return model


def _shared(model: Any) -> Any:
    model.model.layers[1] = model.model.layers[0]
    return model


_NO_MODELS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nothing": (lambda model: None, "NoneType in memory: neither a path, a hub id nor a transformers model: pass one"),
    "state dict": (lambda model: model.state_dict(), "neither a path, a hub id nor a transformers model: pass one"),
    "part": (lambda model: model.model.layers[0], "neither a path, a hub id nor a transformers model: pass one"),
    "wrapped": (torch.nn.DataParallel, "DataParallel in memory: .* nor a transformers model: pass its .module$"),
    "of peft": (_adapted, r"PeftModel in memory: has an adapter .*: pass what its merge_and_unload\(\) returns"),
    "with an adapter": (_with_adapter, "LlamaForCausalLM in memory: has an adapter that is no part of its weights"),
    "without values": (lambda model: model.to("meta"), r"'model.embed_tokens.weight' has no values \(device meta\)"),
    "layers shared": (_shared, r"save_pretrained fails \(RuntimeError: .*\): make it one that can be saved$"),
}


@pytest.mark.parametrize("kind", _NO_MODELS)
def test_what_is_no_model_is_refused_in_a_line(kind: str) -> None:
    change, said = _NO_MODELS[kind]
    model = tiny("llama").build()
    with pytest.raises(CheckpointError, match=said) as refused:
        isobasin.verify(model, change(deepcopy(model)))
    assert "\n" not in str(refused.value)


def test_torchs_default_device_is_nobodys_business() -> None:
    """New tensors would have no values there; others set it to a GPU."""
    a, b = (tiny("gpt2").build(seed, dtype=torch.float32) for seed in (0, 1))
    expected = isobasin.align(a, b).distance()
    torch.set_default_device("meta")
    try:
        alignment = isobasin.align(a, b)
        assert alignment.distance() == expected
        assert isobasin.verify(b, alignment.apply(b).model).equal
        assert torch.empty(1).is_meta
    finally:
        torch.set_default_device(None)


def test_a_model_stays_as_it_was() -> None:
    a, b = (tiny("llama").build(seed) for seed in range(2))
    a.requires_grad_(False)
    b.train()
    before = deepcopy(b.state_dict())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        isobasin.align(a, b)
        assert isobasin.verify(b, deepcopy(b)).max_abs == 0
    assert b.training
    assert all(x.requires_grad for x in b.parameters())
    assert not any(x.requires_grad for x in a.parameters())
    assert all(torch.equal(x, before[name]) for name, x in b.state_dict().items())
