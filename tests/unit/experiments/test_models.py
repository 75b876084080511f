"""New models: of the right class, with the right sizes, the same for the same seed."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_trained import FACTS, KINDS, build, examples, settings

from isobasin.beside import ALIGNMENTS, CARD, RECIPE
from isobasin.errors import ArchitectureError
from isobasin.experiments.data import processor_files
from isobasin.experiments.models import new_model, stream
from isobasin.model import open_model

every_kind = pytest.mark.parametrize("kind", KINDS, ids="-".join)


@every_kind
def test_class_sizes_and_loss(kind, tmp_path):
    family, _, task = kind
    model = build(*kind, layers=3)
    assert type(model).__name__ == KINDS[kind]
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}
    model.eval()
    loss = model(**examples(task).fetch(range(5))).loss
    assert torch.isfinite(loss)
    model.save_pretrained(tmp_path)
    with open_model(tmp_path) as opened:
        blocks = opened.specification.attention
    assert len(blocks) == 3
    rotary = kind[1] == "rotary"
    for block in blocks:
        assert (block.width, block.group.heads, block.group.query_key.features) == (32, 4, 8)
        assert len(block.group.query_key.planes) == (4 if rotary else 0)  # all features rotate, or none
    assert model.config.num_labels == FACTS[task].get("num_labels", model.config.num_labels)
    inner = model.config.n_inner if kind == ("gpt2", "absolute", task) else model.config.intermediate_size
    assert inner == 48
    if family != "vit":
        assert (model.config.vocab_size, model.config.max_position_embeddings) == (20, 10)
        assert model.config.pad_token_id == 0


@every_kind
def test_the_seed_decides_the_weights_and_nothing_else_does(kind):
    torch.manual_seed(1)
    first, before = build(*kind, seed=5), torch.random.get_rng_state()
    torch.manual_seed(2)
    random.seed(3)
    again, other = build(*kind, seed=5), build(*kind, seed=6)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    one, same, different = (dict(m.named_parameters()) for m in (first, again, other))
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = [name for name in one if one[name].requires_grad and one[name].std() > 0]
    assert drawn
    assert not any(torch.equal(one[name], different[name]) for name in drawn)


def test_what_is_drawn_for_two_purposes_differs():
    assert stream("model", 1) != stream("scope", 1)
    assert stream("model", 1) != stream("model", 2)
    assert all(0 <= stream("model", seed) < 2**32 for seed in range(100))


def test_facts_of_gpt_neox():
    config = build("gpt2", "rotary", "causal-lm").config
    assert not config.use_parallel_residual
    assert config.rope_parameters["partial_rotary_factor"] == 1.0
    assert config.tie_word_embeddings
    assert config.hidden_act == build("gpt2", "absolute", "causal-lm").config.activation_function


def test_llama_is_untied_and_groups_queries():
    model = build("llama", "rotary", "causal-lm", key_value_heads=2)
    assert model.config.num_key_value_heads == 2
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()


@every_kind
def test_dropout_and_activation(kind):
    model = build(*kind, dropout=0.25, activation="relu")
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates <= {0.25}
    assert "relu" in (getattr(model.config, "hidden_act", None), getattr(model.config, "activation_function", None))
    batch = examples(kind[2]).fetch(range(5))
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


def test_options_override():
    model = build("vit", "rotary", "image-classification", options={"rope_theta": 50.0, "qkv_bias": False})
    assert model.config.rope_theta == 50.0
    assert not [name for name, _ in model.named_parameters() if name.endswith("q_proj.bias")]


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({"family": "vit", "heads": 5}, "image-classification", "width 32 is not a multiple of heads 5"),
        ({"family": "vit", "heads": 32, "positions": "rotary"}, "image-classification", "features can't rotate"),
        ({"family": "vit", "patch": None}, "image-classification", "needs `patch`"),
        ({"family": "vit", "patch": 3}, "image-classification", "8 x 8 can't be cut into patches of side 3"),
        ({"family": "vit"}, "causal-lm", "vit is no model for causal-lm, only for image-classification"),
        ({"family": "llama"}, "causal-lm", "llama has no absolute positions"),
        ({"family": "gpt2", "key_value_heads": 2}, "causal-lm", "gpt2 has no key_value_heads"),
        ({"family": "llama", "positions": "rotary", "key_value_heads": 3}, "causal-lm", "not a multiple of key_value"),
        ({"family": "bert", "options": {"hiden_size": 8}}, "masked-lm", "'hiden_size', which BertConfig doesn't know"),
        ({"family": "bert", "options": {"type_vocab_size": "x"}}, "masked-lm", "transformers refuses"),
        ({"family": "bert", "options": {"hidden_size": 8}}, "masked-lm", "options has 'hidden_size', which entries of"),
        ({"family": "bert", "options": {"num_labels": 10**7}}, "masked-lm", "options has 'num_labels', which entries"),
        (
            {"family": "gpt2", "options": {"num_hidden_layers": 10**7}},
            "causal-lm",
            "options has 'num_hidden_layers', which entries",
        ),
        (
            {"family": "bert", "options": {"type_vocab_size": 10**12}},
            "masked-lm",
            r"a model of 3.2e\+13 parameters, more than",
        ),
        ({"family": "bert", "activation": "none"}, "masked-lm", "no activation 'none'"),
        ({"family": "bert", "feedforward": None}, "masked-lm", "a bert model needs feedforward"),
        ({"family": "mpt"}, "causal-lm", "MptConfig has no entry for feedforward: see its options"),
        ({"family": "bloom", "feedforward": None, "activation": "relu"}, "causal-lm", "no entry for activation"),
        ({"family": "qwen3"}, "masked-lm", "transformers has no qwen3 for masked-lm"),
        # It has a number of heads for every stage.
        (
            {"family": "swin", "patch": 2, "feedforward": None},
            "image-classification",
            "SwinForImageClassification can't be made with these sizes: TypeError: 'int' object is not subscriptable",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(changes, task, message):
    with pytest.raises(ArchitectureError, match=message) as caught:
        new_model(settings(**changes), task, seed=0, **FACTS[task])
    assert "\n" not in str(caught.value)


# Sizes under every name that configurations have for them; dropouts that would be 0.1 by themselves.
_TYPES = {
    ("qwen3", "causal-lm"): ("Qwen3ForCausalLM", {"num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 48}),
    ("opt", "causal-lm"): ("OPTForCausalLM", {"ffn_dim": 48, "dropout": 0.0}),
    ("falcon", "causal-lm"): ("FalconForCausalLM", {"ffn_hidden_size": 48}),
    ("distilbert", "masked-lm"): ("DistilBertForMaskedLM", {"hidden_dim": 48, "dim": 32, "dropout": 0.0}),
    # By its own name, not as GPT-2 with rotary positions.
    ("gpt_neox", "causal-lm"): ("GPTNeoXForCausalLM", {"use_parallel_residual": True, "tie_word_embeddings": False}),
    # Its first position comes after the padding token's number.
    ("roberta", "masked-lm"): ("RobertaForMaskedLM", {"max_position_embeddings": 11}),
    # Its code has a number for that of its own.
    ("mpnet", "masked-lm"): ("MPNetForMaskedLM", {"max_position_embeddings": 12}),
    # Its heads have several sizes, none of which is a share of the width.
    ("deepseek_v3", "causal-lm"): ("DeepseekV3ForCausalLM", {"head_dim": 64, "qk_rope_head_dim": 64}),
    # Of its two classes for images the other one has a second head, of another model's teaching.
    ("deit", "image-classification"): ("DeiTForImageClassification", {"patch_size": 2}),
}


@pytest.mark.parametrize("kind", _TYPES, ids="-".join)
def test_any_model_type_has_the_sizes_that_are_asked_for(kind):
    (family, task), (name, entries) = kind, _TYPES[kind]
    patch = 2 if task == "image-classification" else None
    model = new_model(settings(family, patch=patch), task, seed=0, **FACTS[task])
    assert type(model).__name__ == name
    assert {entry: getattr(model.config, entry) for entry in entries} == entries
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.num_attention_heads) == (2, 32, 4)
    assert torch.isfinite(model.eval()(**examples(task).fetch(range(5))).loss)


def test_heads_share_the_width_unless_options_say_otherwise():
    wide = new_model(settings("qwen3", options={"head_dim": 12}), "causal-lm", seed=0, **FACTS["causal-lm"])
    assert wide.model.layers[0].self_attn.q_proj.weight.shape == (4 * 12, 32)


def test_facts_that_are_missing_are_named():
    with pytest.raises(ArchitectureError, match="needs vocab_size and length"):
        new_model(settings("gpt2"), "causal-lm", seed=0)


def test_what_goes_along_with_a_fine_tuned_model_is_its_tokenizer(tmp_path):
    for name in (
        "tokenizer.json",
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        *ALIGNMENTS,
        CARD,
        RECIPE,
    ):
        (tmp_path / name).write_text("{}")
    assert [file.name for file in processor_files(tmp_path)] == ["tokenizer.json"]
