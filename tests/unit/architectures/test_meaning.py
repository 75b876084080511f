"""What configurations mean: one function in many forms, and every entry that changes what a model computes."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
import torch

from isobasin.architectures.configuration import build
from isobasin.architectures.description import Description
from isobasin.architectures.examples import EXAMPLES, tiny
from isobasin.architectures.meaning import Difference, differences
from isobasin.errors import ArchitectureError
from isobasin.testing.assertions import outputs

_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_DEFAULT = {"rope_type": "default", "rope_theta": 1e4}


def config(model_type: str, **changes: Any) -> dict[str, Any]:
    """A `config.json` of the family's tiny model."""
    return {"model_type": model_type, **tiny(model_type).config, **changes}


def headed(model_type: str, head: str, **changes: Any) -> dict[str, Any]:
    """The same, of a model of this class."""
    return config(model_type, architectures=[head], **changes)


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[Difference]:
    """The differences of two configurations, with tensors that leave room for any size."""
    return differences(*(Description(entries, {"x": (2**20,)}) for entries in (a, b)))


def entries(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the entries in which two configurations differ."""
    return [found.entry for found in differing(a, b)]


@pytest.mark.parametrize("model", EXAMPLES, ids=str)
def test_a_configuration_is_one_with_all_defaults_filled_in(model):
    written = {"model_type": model.model_type, **model.config}
    saved = json.loads(build(model.model_type, written).to_json_string(use_diff=False))
    assert entries(written, saved) == []


@pytest.mark.parametrize(
    ("a", "b"),
    [
        # As transformers 4 wrote it, and as transformers 5 does.
        (
            config("llama", rope_theta=5e5, rope_scaling={**_LLAMA3, "rope_type": "llama3"}, torch_dtype="float32"),
            config("llama", rope_parameters={**_LLAMA3, "rope_type": "llama3", "rope_theta": 5e5}, dtype="bfloat16"),
        ),
        (config("llama"), config("llama", unsloth_version="2025.1", unsloth_fixed=True, pretraining_tp=1)),
        (config("llama"), config("llama", rope_parameters={**_DEFAULT, "rope_type": "linear", "factor": 1.0})),
        (config("llama"), config("llama", sliding_window=8)),
        (config("llama"), config("llama", hidden_act="swish", max_position_embeddings=64, attention_dropout=0.1)),
        (config("llama", rope_parameters=_YARN), config("llama", rope_parameters={**_YARN, "beta_fast": 32})),
        (config("qwen2"), config("qwen2", sliding_window=8, max_window_layers=1)),
        (config("bert"), config("bert", num_labels=3, architectures=["BertModel"], hidden_dropout_prob=0.5)),
        (config("gpt2"), config("gpt2", activation_function="gelu_pytorch_tanh", embd_pdrop=0.0)),
        (config("mistral", sliding_window=None), config("llama")),
        (config("gemma2", pad_token_id=0), config("gemma2", pad_token_id=5)),
        (headed("gpt2", "GPT2LMHeadModel"), headed("gpt2", "GPT2LMHeadModel", summary_type="first")),
        (headed("vit", "ViTModel"), headed("vit", "ViTForImageClassification", encoder_stride=3)),
        # Both windows hold every text that the models are made for.
        (config("gemma2", sliding_window=99, max_position_embeddings=64), config("gemma2", sliding_window=2**20)),
    ],
)
def test_forms_of_one_function(a, b):
    assert entries(a, b) == []
    assert entries(b, a) == []


@pytest.mark.parametrize(
    ("model_type", "changes", "entry"),
    [
        ("llama", {"rope_theta": 2e7}, "rope_parameters.rope_theta"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_parameters.factor"),
        ("llama", {"rms_norm_eps": 1e-2}, "rms_norm_eps"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("mistral", {"sliding_window": 8}, "sliding_window"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_window"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping"),
        ("gemma2", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("roberta", {"pad_token_id": 5}, "pad_token_id"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("gpt_neo", {"attention_types": [[["global"], 2]]}, "attention_layers"),
        ("mpt", {"attn_config": {"clip_qkv": 0.1}}, "attn_config.clip_qkv"),
        (
            "clip",
            {"text_config": {**tiny("clip").config["text_config"], "hidden_act": "gelu"}},
            "text_config.hidden_act",
        ),
        ("isobasin_vit", {"rotary": False}, "rotary"),
        ("gemma2", {"sliding_window": 9}, "sliding_window"),
        ("cohere2", {"sliding_window": None}, "sliding_window"),
        ("gpt2", {"summary_type": "first"}, "summary_type"),
        ("gpt2", {"summary_type": "first", "architectures": ["GPT2DoubleHeadsModel"]}, "summary_type"),
        ("vit", {"encoder_stride": 3, "architectures": ["ViTForMaskedImageModeling"]}, "encoder_stride"),
    ],
)
def test_what_changes_the_function_is_named(model_type, changes, entry):
    assert entry in entries(config(model_type), config(model_type, **changes))


def test_both_values_are_said():
    found = differing(config("llama"), config("llama", rope_theta=2e7))
    assert [str(one) for one in found] == ["rope_parameters.rope_theta is 10000.0 in one and 20000000.0 in the other"]


def test_positions_count_where_frequencies_depend_on_them():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    a, b = (config("llama", rope_parameters=rope, max_position_embeddings=n) for n in (16, 32))
    assert entries(a, b) == ["rope_parameters.max_position_embeddings"]


def test_padding_is_read_by_decoders_that_classify():
    a, b = (config("gpt2", pad_token_id=n, architectures=["GPT2ForSequenceClassification"]) for n in (2, 3))
    assert entries(a, b) == ["pad_token_id"]
    assert entries(headed("gpt2", "GPT2LMHeadModel", pad_token_id=2), b) == []


def test_types_that_transformers_lacks_are_compared_as_written():
    a = {"model_type": "mine", "width": 3, "dtype": "float32"}
    assert entries(a, {**a, "width": 4, "dtype": "float16"}) == ["width"]


def _others(value: Any) -> list[Any]:
    """Other values that an entry of this kind may have."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [2 * value + 1, value / 2] if isinstance(value, float) else [2 * value, value + 1]
    return [3, 0.3, True] if value is None else ["relu"] if isinstance(value, str) else []


@pytest.mark.parametrize(
    "model_type",
    ["llama", "mistral", "gemma2", "granite", "cohere", "falcon", "gpt2", "roberta", "olmo", "deepseek_v2"],
)
def test_whatever_changes_outputs_is_said(model_type):
    """Every entry that transformers declares is changed: equal weights, other outputs, means another meaning."""
    usual = tiny(model_type)
    model = usual.build(dtype=torch.float32)
    state, inputs = model.state_dict(), {"input_ids": torch.arange(3, 13)[None]}
    expected, usually = outputs(model, inputs), headed(model_type, type(model).__name__)
    changed = 0
    for entry in fields(model.config):
        if entry.name == "tie_word_embeddings":
            continue  # about which tensors there are: the view of a checkpoint knows
        for value in _others(getattr(model.config, entry.name, None)):
            written = {**usually, entry.name: value}
            try:
                built = build(model_type, written)
            except ArchitectureError:  # no such configuration
                continue
            said = differing(usually, written)
            if said and changed >= 2:
                continue  # whatever its outputs are
            try:
                other = type(model)._from_config(built, attn_implementation="eager").eval()
                other.load_state_dict(state)
                found = outputs(other, inputs)
            except Exception:  # one that can't be computed, or of other tensors
                continue
            same = found.keys() == expected.keys() and all(
                found[name].shape == x.shape and torch.allclose(found[name], x, 1e-3, 1e-4, equal_nan=True)
                for name, x in expected.items()
            )
            changed += not same
            assert same or said, f"{entry.name} = {value} changes outputs"
    assert changed >= 2
