"""Which task a configuration is for, and loading a model for it."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from isobasin.architectures.examples import EXAMPLES, variant
from isobasin.choices import TaskKind
from isobasin.errors import ArchitectureError, CheckpointError, IsobasinError
from isobasin.loading import load
from isobasin.tasks.kind import kind_of, load_model

# Heads without a loss that is measured here: sequence to sequence, and projections of towers.
_NO_TASK = ("ForConditionalGeneration", "MTModel", "WithProjection")
_WITH_HEAD = [m for m in EXAMPLES if not m.variant and m.head != m.base]


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("ViTForImageClassification", "image-classification"),
        ("IsobasinViTForImageClassification", "image-classification"),
        ("BertForSequenceClassification", "text-classification"),
        ("RoFormerForSequenceClassification", "text-classification"),
        ("GPT2LMHeadModel", "causal-lm"),
        ("BertLMHeadModel", "causal-lm"),
        ("LlamaForCausalLM", "causal-lm"),
        ("GPTNeoXForCausalLM", "causal-lm"),
        ("BertForMaskedLM", "masked-lm"),
    ],
)
def test_kinds(architecture, kind):
    config = transformers.BertConfig(architectures=[architecture])
    assert kind_of(config) == kind_of(config.to_dict()) == kind


@pytest.mark.parametrize("names", [None, [], ["BertModel"], ["BertForTokenClassification"]])
def test_unknown_kinds(names):
    with pytest.raises(IsobasinError, match=r"name it with --task$"):
        kind_of({"architectures": names} if names is not None else {})


@pytest.mark.parametrize("tiny", [m for m in _WITH_HEAD if m.head.endswith(_NO_TASK)], ids=str)
def test_heads_without_a_task_are_refused(tiny):
    with pytest.raises(IsobasinError, match=rf"{tiny.head}.*name it with --task$"):
        kind_of({"architectures": [tiny.head]})


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_run_in_float64(name, tmp_path):
    model = load_model(variant(name).save(tmp_path), "causal-lm")
    assert model(torch.arange(9).unsqueeze(0)).logits.dtype == torch.float64


@pytest.mark.parametrize("tiny", [m for m in _WITH_HEAD if not m.head.endswith(_NO_TASK)], ids=str)
def test_loads_what_was_saved(tiny, tmp_path):
    saved = tiny.build(dtype=torch.float32)
    saved.save_pretrained(tmp_path)
    model = load_model(tmp_path, kind_of(saved.config))
    assert type(model) is type(saved)
    assert not model.training
    state = model.state_dict()
    assert state.keys() == saved.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in saved.state_dict().items())


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32")],
)
def test_types(stored, loaded, tmp_path):
    variant("gpt2").save(tmp_path, dtype=getattr(torch, stored))
    assert load_model(tmp_path, "causal-lm").dtype == getattr(torch, loaded)


def test_the_stored_type_counts_not_the_configuration(tmp_path):
    variant("gpt2").save(tmp_path, dtype=torch.float64)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    assert load_model(tmp_path, "causal-lm").dtype == torch.float64


def test_a_new_head_is_refused(tmp_path):
    variant("bert").save(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks \d weights that text-classification needs, such as") as caught:
        load_model(tmp_path, "text-classification")
    assert "\n" not in str(caught.value)


def test_missing_weights_are_refused(tmp_path):
    variant("gpt2").save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.attn.c_attn.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .*h\.1\.attn\.c_attn\.weight"):
        load_model(tmp_path, "causal-lm")


def test_the_wrong_task(tmp_path):
    variant("vit").save(tmp_path)
    with pytest.raises(CheckpointError, match="can't be loaded for causal-lm") as caught:
        load_model(tmp_path, TaskKind.causal_lm)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_model(tmp_path / "nowhere", "causal-lm")


def test_a_model_out_of_proportion_to_its_file_gets_no_memory(tmp_path):
    gpt2 = variant("gpt2").save(tmp_path / "a", dtype=torch.float32)
    entries = json.loads((gpt2 / "config.json").read_text())
    (gpt2 / "config.json").write_text(json.dumps({**entries, "n_positions": 10**9}))
    with pytest.raises(ArchitectureError, match=r"wpe\.weight"):
        load_model(gpt2, "causal-lm")
    with pytest.raises(ArchitectureError, match=r"wpe\.weight"):
        load(gpt2, torch.float32)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_pickles_are_loaded_in_the_type_that_the_configuration_says(name, tmp_path):
    folder = variant("gpt2").save(tmp_path / "a", dtype=torch.float64)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    entries = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "dtype"}
    (folder / "config.json").write_text(json.dumps({**entries, name: "float64"}))
    assert load_model(folder, "causal-lm").dtype == torch.float64
