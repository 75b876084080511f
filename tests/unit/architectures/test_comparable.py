"""Which two models can be compared, and in which words others are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from resolving import config, resolve, shapes

from isobasin.architectures.resolve import check_comparable
from isobasin.architectures.schema import Specification
from isobasin.errors import ArchitectureError


def test_comparable_models_may_differ_in_prefix_and_scale():
    llama = config("llama")
    longer = config("llama", rope_theta=1e6, max_position_embeddings=64)
    check_comparable(resolve(llama, shapes(llama, "model.")), resolve(longer))


@pytest.mark.parametrize(
    ("model_type", "reference", "model", "words"),
    [
        ("bert", {}, {"num_attention_heads": 8}, "reference has 4 heads of 8 features, model has 8 heads of 4"),
        ("bert", {}, {"hidden_size": 40, "num_attention_heads": 5}, "model has 5 heads of 8 features"),
        ("bert", {}, {"num_hidden_layers": 3}, "reference has 2 layers, model has 3"),
        ("llama", {}, {"num_key_value_heads": 1}, "reference has 2 key/value heads of 8 features, model has 1"),
        ("llama", {}, {"hidden_size": 64, "head_dim": 8}, "reference has width 32, model has width 64"),
        ("llama", {}, {"attention_bias": True}, "reference has biases on nothing, model has biases on query, key"),
        ("vit", {}, {"qkv_bias": False}, "reference has biases on query, key, value, output, model has biases on o"),
        ("gptj", {}, {"rotary_dim": 8}, "rotary positions on features ((0, 1), (2, 3)), model has"),
        ("bart", {"encoder_layers": 4, "decoder_layers": 1}, {}, "a layer of the encoder, model has a layer of the d"),
        ("bart", {}, {"encoder_layers": 4}, "reference has 6 layers, model has 8"),
        ("albert", {"inner_group_num": 2}, {"num_hidden_groups": 4}, "a layer of the group 0, model has a layer of"),
        ("roformer", {}, {"rotary_value": True}, "reference has rotary values on features (), model has"),
    ],
)
def test_incomparable_models(model_type, reference, model, words):
    with pytest.raises(ArchitectureError) as error:
        check_comparable(resolve(config(model_type, **reference)), resolve(config(model_type, **model)))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_different_types_are_incomparable_even_with_equal_groups():
    with pytest.raises(ArchitectureError, match="reference is a bert model, model is a roberta model"):
        check_comparable(resolve(config("bert")), resolve(config("roberta")))


def test_group_alone_can_differ():
    block = resolve(config("bert")).attention[0]
    other = replace(block, group=replace(block.group, key_shift=False))
    with pytest.raises(ArchitectureError, match=r"layer 0: reference has group .*; they must be equal"):
        check_comparable(Specification("x", (block,)), Specification("x", (other,)))
