"""What people pass for a model in memory: one line for what can't be read as one, and nothing of a model is changed."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import peft
import pytest
import torch
import torch.nn.utils.parametrizations
import torch.nn.utils.prune

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.errors import CheckpointError, IsobasinWarning


def _adapted(model: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


def _with_adapter(model: Any) -> Any:
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    return model


def _shared(model: Any) -> Any:
    model.model.layers[1] = model.model.layers[0]
    return model


def _pruned(model: Any) -> Any:
    torch.nn.utils.prune.random_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.5)
    return model


def _normed(model: Any) -> Any:
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
    return model


_NO_MODELS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nothing": (lambda model: None, "NoneType in memory: neither a path, a hub id nor a transformers model: pass one"),
    "state dict": (lambda model: model.state_dict(), "neither a path, a hub id nor a transformers model: pass one"),
    "part": (lambda model: model.model.layers[0], "neither a path, a hub id nor a transformers model: pass one"),
    "wrapped": (torch.nn.DataParallel, "DataParallel in memory: .* nor a transformers model: pass its .module$"),
    "of peft": (_adapted, r"PeftModel in memory: has an adapter .*: pass what its merge_and_unload\(\) returns"),
    "with an adapter": (_with_adapter, "LlamaForCausalLM in memory: has an adapter that is no part of its weights"),
    "without values": (lambda model: model.to("meta"), r"'model.embed_tokens.weight' has no values \(device meta\)"),
    "pruned": (_pruned, r"of '.*up_proj.weight_orig' a weight is made whenever it is used: make that permanent first"),
    "with weight norm": (_normed, r"of '.*parametrizations.*' a weight is made whenever it is used"),
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


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scope", ["block", "model"])
def test_a_new_model_has_the_types_of_the_old_one_or_the_one_that_is_asked_for(
    scope: str, dtype: torch.dtype | None
) -> None:
    """The first tensor's was every tensor's: what was returned was rounded otherwise than what had been verified."""
    model = tiny("llama").build(dtype=torch.float32)
    model.model.embed_tokens.bfloat16()
    model.model.layers[1].mlp.double()
    moved = isobasin.scramble(model, seed=1, scope=scope, dtype=dtype).model
    kinds = {name: x.dtype if dtype is None else dtype for name, x in model.named_parameters()}
    assert {name: x.dtype for name, x in moved.named_parameters()} == kinds
    half = isobasin.merge([model, moved], t=0, dtype=dtype).model
    assert {name: x.dtype for name, x in half.named_parameters()} == kinds


def test_a_compiled_model_is_the_one_inside() -> None:
    model = tiny("llama").build()
    moved = isobasin.scramble(torch.compile(model), seed=1).model
    assert type(moved) is type(model)
    assert isobasin.verify(model, moved).equal


def test_of_code_that_was_put_into_a_model_it_is_said_that_it_is_not_read(recwarn: pytest.WarningsRecorder) -> None:
    """As weights are all that a checkpoint has; hooks of transformers change nothing."""
    model = tiny("llama").build()
    model(torch.arange(8)[None], output_hidden_states=True)
    assert isobasin.verify(model, model).equal
    assert not [found for found in recwarn if issubclass(found.category, IsobasinWarning)]
    hooked, patched = deepcopy(model), deepcopy(model)
    hooked.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    patched.model.layers[0].forward = lambda hidden, **_: hidden
    for other, where in ((hooked, "model.layers.1.mlp"), (patched, "model.layers.0")):
        with pytest.warns(IsobasinWarning, match=f"'{where}' has a hook or a forward of its own, and weights"):
            isobasin.verify(model, other)
