"""Which entries of config.json count, how large they may be, and that whatever they hold is refused in one line."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
import torch
import transformers
from resolving import config, refused, resolve, shapes

from isobasin.architectures.configuration import build
from isobasin.architectures.entries import check_extent
from isobasin.architectures.examples import EXAMPLES
from isobasin.architectures.registry import families
from isobasin.errors import ArchitectureError, TensorError

# What a loader would act on, none of it a fact about the model: code, kernels, plans, and names of methods.
_FOREIGN = {
    "attn_implementation": "someone/kernels",
    "_attn_implementation": 5,
    "_attn_implementation_internal": "flex_attention",
    "experts_implementation": ["x"],
    "auto_map": None,
    "return_dict": "no",
    "torchscript": True,
    "attribute_map": {"hidden_size": "other"},
    "base_model_tp_plan": 3,
    "base_model_pp_plan": "x",
    "dtype": "load",
    "torch_dtype": 7,
    "output_hidden_states": "all",
    "output_attentions": True,
    "chunk_size_feed_forward": 7,
    "quantization_config": None,
    "text_config": {},
    "decoder": {"vocab_size": 1},
    "to_dict": "x",
    "get_text_config": 1,
    "sub_configs": {"a": "b"},
    "__class__": "x",
    "_auto_class": "x",
    "unsloth_version": "2026.1",
}


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("name", _FOREIGN)
def test_entries_of_loaders_change_nothing(model_type, name):
    own = config(model_type)
    other = own | {name: _FOREIGN[name]}
    assert resolve(other, shapes(own)) == resolve(own)
    built, plain = (build(model_type, c).to_dict() for c in (other, own))
    built.pop("unsloth_version", None)
    assert built == plain


def test_nested_entries_of_loaders_change_nothing():
    own = config("clip")
    other = {**own, "text_config": {**own["text_config"], "attn_implementation": "someone/kernels", "to_dict": 1}}
    assert build("clip", other).to_dict() == build("clip", own).to_dict()


@pytest.mark.parametrize("model", EXAMPLES, ids=str)
def test_every_fact_of_a_saved_configuration_is_kept(model):
    saved = model.build(base=True).config.to_dict()
    saved = json.loads(json.dumps(saved, default=str))
    own = {name: value for name, value in saved.items() if name not in ("dtype", "transformers_version")}
    again = json.loads(json.dumps(build(model.model_type, saved).to_dict(), default=str))
    assert _without_types(again) == _without_types(again | own)


def _without_types(value):
    if not isinstance(value, dict):
        return value
    return {k: _without_types(v) for k, v in value.items() if k not in ("dtype", "transformers_version")}


@pytest.mark.parametrize("name", ["architectures", "hidden_size", "num_hidden_layers", "rope_parameters", "head_dim"])
@pytest.mark.parametrize("value", ["2", None, [], {}, [[1]], {"a": {"b": 1}}, -1, 0, 1e300, 10**30, float("nan"), True])
def test_entries_of_another_type_are_understood_or_refused(name, value):
    own = config("llama")
    with suppress(ArchitectureError, TensorError):
        resolve({**own, name: value}, shapes(own))


def test_a_refusal_is_one_line_of_reasonable_length():
    own = config("llama")
    for value in ({"a" * 10**5: 1}, "x\n" * 10**5, [1] * 10**5):
        for name in ("hidden_size", "num_hidden_layers", "position_embedding_type", "architectures", "model_type"):
            assert len(refused(ArchitectureError, {**own, name: value}, shapes(own))) < 800


def test_a_model_of_many_more_values_than_are_stored_is_refused_before_it_is_made():
    own = config("gpt2", n_positions=10**9)
    with torch.device("meta"):
        model = transformers.GPT2Model(build("gpt2", own))
    with pytest.raises(ArchitectureError, match=r"'wpe.weight' alone would have shape \(1000000000, 32\)"):
        check_extent(model, shapes(own))


_LARGE = [
    ("gpt2", "n_layer"),
    ("gpt2", "n_embd"),
    ("gpt2", "n_head"),
    ("gpt2", "vocab_size"),
    ("gpt2", "num_labels"),
    ("gpt2", "n_inner"),
    ("llama", "head_dim"),
    ("gemma2", "num_hidden_layers"),
    ("bart", "decoder_layers"),
    ("gptj", "rotary_dim"),
    ("albert", "num_hidden_groups"),
    ("albert", "num_hidden_layers"),
    ("mixtral", "num_local_experts"),
    ("deepseek_v3", "n_routed_experts"),
    ("deepseek_v2", "kv_lora_rank"),
    ("swin", "window_size"),
    ("beit", "image_size"),
    ("isobasin_vit", "num_hidden_layers"),
]


@pytest.mark.parametrize(("model_type", "name"), _LARGE)
def test_sizes_beyond_the_stored_tensors_are_refused_before_anything_is_built(model_type, name):
    own = config(model_type)
    tensors, begun = shapes(own), time.process_time()
    assert name in refused(ArchitectureError, {**own, name: 10**9}, tensors)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("swin", {"depths": [10**9, 1]}),
        ("gpt_neo", {"attention_types": [[["global"], 10**9]]}),
        ("clip", {"text_config": {"num_hidden_layers": 10**9}}),
        ("beit", {"image_size": 60000, "patch_size": 1}),
        ("swin", {"image_size": 60000, "patch_size": 1, "window_size": 20000}),
        ("llama", {"per_layer_config": {"0": {"num_attention_heads": 2}}}),
    ],
)
def test_sizes_in_lists_and_nested_configurations_are_refused_too(model_type, changes):
    own = config(model_type)
    begun = time.process_time()
    refused(ArchitectureError, {**own, **changes}, shapes(own))
    assert time.process_time() - begun < 1


def test_a_few_layers_too_many_are_told_by_the_tensors_that_are_missing():
    own = config("gpt2")
    assert "is missing" in _any_refusal({**own, "n_layer": 5}, shapes(own))


def _any_refusal(*args):
    with pytest.raises(Exception, match=r"^folder/b: ") as error:
        resolve(*args)
    return str(error.value)


def test_all_families_have_a_configuration_class_whose_entries_are_known():
    for entry in families():
        assert build(entry.model_type, {"model_type": entry.model_type}).model_type == entry.model_type
