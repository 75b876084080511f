"""Equal is said only of what was compared: classes, outputs, random parameters, and folders with code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import isobasin
from isobasin.architectures.examples import tiny, variant
from isobasin.architectures.tiny import randomise
from isobasin.errors import ArchitectureError, CheckpointError, VerificationError
from isobasin.inputs import model_inputs, named_outputs, promised
from isobasin.loading import load
from isobasin.verification import Distance, running

Tensors = dict[str, Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def save(model: Any, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A model with random parameters, saved."""
    randomise(model, seed).to(dtype).save_pretrained(folder)
    return folder


def changed(
    source: Path, target: Path, change: Callable[[Tensors], Any] = lambda t: None, config: dict[str, Any] | None = None
) -> Path:
    """A copy of a checkpoint with its tensors and its configuration changed; None removes an entry."""
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    made = change(tensors)  # or in place
    tensors = made if isinstance(made, dict) else tensors
    save_file({n: t.contiguous() for n, t in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    entries = {**json.loads((source / "config.json").read_text()), **(config or {})}
    entries = {k: v for k, v in entries.items() if v is not None}
    (target / "config.json").write_text(json.dumps(entries))
    return target


def flipped(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensors[name].flip(0)}


def test_outputs_that_lie_deeper_are_compared(tmp_path):
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4, mlp_ratio=2
    )
    a, b = (save(transformers.Dinov2Backbone(config), tmp_path / str(seed), seed) for seed in (0, 1))
    assert isobasin.verify(a, a).equal
    assert not isobasin.verify(a, b).equal
    assert isobasin.scramble(a, tmp_path / "moved").verified.equal


@pytest.mark.parametrize(
    "named", [None, ["NoSuchClass"], ["BertModel"], ["LlamaModel"], ["LlamaForTokenClassification"]]
)
def test_the_class_that_runs_reads_what_is_stored(named, tmp_path):
    """Missing, unknown, of another model type, or one that leaves the head unread."""
    a = tiny("llama").save(tmp_path / "a", dtype=torch.float32)
    one = changed(a, tmp_path / "one", config={"architectures": named})
    other = changed(a, tmp_path / "other", flipped("lm_head.weight"), {"architectures": named})
    assert type(load(one, torch.float64)).__name__ == "LlamaForCausalLM"
    found = isobasin.verify(one, other)
    assert not found.equal
    assert found.unread == ()


def test_tensors_that_no_class_reads_are_compared_by_value(tmp_path):
    a = tiny("llama").save(tmp_path / "a", dtype=torch.float32)
    one = changed(a, tmp_path / "one", lambda tensors: tensors | {"value_head.weight": torch.ones(3, 5)})
    other = changed(one, tmp_path / "other", lambda tensors: tensors["value_head.weight"].mul_(2))
    same, apart = isobasin.verify(one, one), isobasin.verify(one, other)
    assert same.equal
    assert "'value_head.weight'" in same.how
    assert same.unread == ("value_head.weight",)
    assert not apart.equal
    assert apart.unequal == ("value_head.weight",)
    assert "value_head.weight" in apart.reason
    assert not isobasin.verify(one, a).equal


def test_a_tensor_that_only_one_of_two_configurations_reads(tmp_path):
    """It is in both files: whether it differs is seen by its values."""
    a = tiny("dinov2").save(tmp_path / "a", dtype=torch.float32)
    without = {"use_mask_token": False}
    same = changed(a, tmp_path / "same", config=without)
    other = changed(a, tmp_path / "other", lambda tensors: tensors["dinov2.embeddings.mask_token"].add_(1), without)
    for pair in ((a, same), (same, a)):
        found = isobasin.verify(*pair)
        assert (found.equal, found.unread, found.unequal) == (True, ("embeddings.mask_token",), ())
    for pair in ((a, other), (other, a)):
        assert isobasin.verify(*pair).unequal == ("embeddings.mask_token",)


def test_outputs_of_random_parameters_are_not_compared(tmp_path):
    """Without its pooler a BERT has hidden states; without its classifier it has nothing, or another class."""
    a = tiny("bert").save(tmp_path / "a", base=True, dtype=torch.float32)
    without = changed(a, tmp_path / "b", lambda t: {n: x for n, x in t.items() if "pooler" not in n})
    found = isobasin.verify(without, without)
    assert found.equal
    assert "pooler" in found.how
    full = isobasin.verify(a, a)
    assert int(full.how.split(", ")[1].split()[0]) == 2 * int(found.how.split(", ")[1].split()[0])
    with pytest.raises(ArchitectureError, match="pooler"):
        isobasin.verify(a, without)
    broken = changed(a, tmp_path / "c", lambda t: {n: x for n, x in t.items() if n != "embeddings.LayerNorm.weight"})
    with pytest.raises(VerificationError, match="LayerNorm"):
        isobasin.verify(broken, broken)


def test_a_misshapen_tensor_is_named(tmp_path):
    a = tiny("gpt2").save(tmp_path / "a", dtype=torch.float32)
    b = changed(a, tmp_path / "b", lambda t: t | {"transformer.ln_f.weight": torch.ones(7)})
    with pytest.raises(CheckpointError, match=r"'transformer.ln_f.weight' has shape \(7,\).*\(32,\)"):
        isobasin.verify(b, b)


def test_a_text_of_an_encoder_decoder_that_pools_has_an_end(tmp_path):
    model = replace(variant("t5"), head="T5ForSequenceClassification").save(tmp_path / "a")
    assert isobasin.verify(model, model).equal


@pytest.mark.parametrize(
    "kind",
    [
        "GPT2ForSequenceClassification",
        "LlamaForSequenceClassification",
        "BertForMultipleChoice",
        "DistilBertForMultipleChoice",
    ],
)
def test_inputs_fit_the_model(kind, tmp_path):
    """Single texts where there is no padding token, and several choices."""
    head = getattr(transformers, kind)
    model = head(head.config_class(**SIZES, n_embd=32, n_layer=2, n_head=4, num_labels=3, pad_token_id=None))
    a = save(model, tmp_path / "a")
    assert isobasin.scramble(a, tmp_path / "moved", seed=1).verified.equal


def test_positions_follow_the_row_for_padding(tmp_path):
    config = transformers.RobertaConfig(**{**SIZES, "max_position_embeddings": 20}, pad_token_id=3)
    model = randomise(transformers.RobertaForMaskedLM(config), 0).eval()
    lengths = {inputs["input_ids"].shape[1] for _, inputs in model_inputs(model)}
    assert max(lengths) == 20 - 3 - 1
    for _, inputs in model_inputs(model):
        assert all(x.isfinite().all() for _, x in named_outputs(model(**inputs)))


@pytest.mark.parametrize("positions", [64, 30])
def test_few_inputs_have_one_each_of_what_all_have(positions):
    """The farthest positions, every length, a padding, and none."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | {"max_position_embeddings": positions}))
    every, few = (dict(model_inputs(model, crossed=crossed)) for crossed in (True, False))
    assert len(few) == 4 < len(every)
    for facts in (
        lambda given: given["input_ids"].shape[1],
        lambda given: "attention_mask" in given,
        lambda given: int(given["position_ids"].max()) if "position_ids" in given else given["input_ids"].shape[1] - 1,
    ):
        assert {facts(given) for given in few.values()} <= {facts(given) for given in every.values()}
        assert max(facts(given) for given in few.values()) == max(facts(given) for given in every.values())


def test_what_padding_hides_is_not_compared(tmp_path):
    """Behind a short window such positions see nothing, and float64 makes no numbers of that in a float32 softmax."""
    config = transformers.Gemma2Config(
        **SIZES, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=8
    )
    a = save(transformers.Gemma2ForCausalLM(config), tmp_path / "a")
    assert isobasin.verify(a, a).equal
    assert isobasin.scramble(a, tmp_path / "moved").verified.equal
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    kept = promised(torch.arange(6.0).view(2, 3, 1), {"attention_mask": mask})
    assert kept.flatten().tolist() == [0, 1, 2, 3]


def test_a_model_that_makes_no_numbers_is_named(tmp_path):
    a = tiny("gpt2").save(tmp_path / "a", dtype=torch.float32)
    b = changed(a, tmp_path / "b", config={"layer_norm_epsilon": -100.0})
    with pytest.raises(VerificationError, match="own outputs are NaN"):
        isobasin.scramble(b, tmp_path / "moved")


def test_a_forward_pass_that_fails_is_one_line(tmp_path, monkeypatch):
    def fails(self: Any, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("first line\nsecond line")

    a = tiny("gpt2").save(tmp_path / "a", dtype=torch.float32)
    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", fails)
    with pytest.raises(VerificationError, match=r"GPT2LMHeadModel.*RuntimeError: first line\).*--no-verify") as raised:
        isobasin.verify(a, a)
    assert "\n" not in str(raised.value)


def test_distances_of_scores_that_are_ruled_out_and_of_no_numbers():
    x = {("logits", ""): torch.tensor([[1.0, -torch.inf, 2.0]])}
    assert Distance.between(x, x) == Distance(0.0, 0.0, 0.0, 0.0, 0.0)
    y = {("logits", ""): torch.tensor([[1.0, 0.0, 2.0]])}
    assert Distance.between(x, y).max_rel == float("inf")
    z = {("logits", ""): torch.tensor([[1.0, -torch.inf, 2.1]])}
    expected = torch.tensor([1.0, 2.0]).log_softmax(0)
    other = torch.tensor([1.0, 2.1]).log_softmax(0)
    assert Distance.between(x, z).kl == pytest.approx(float((expected.exp() * (expected - other)).sum()), rel=1e-3)


def test_no_output_is_an_error(tmp_path, monkeypatch):
    a = tiny("gpt2").save(tmp_path / "a", dtype=torch.float32)
    monkeypatch.setattr(running, "named_outputs", lambda *arguments: iter(()))
    with pytest.raises(VerificationError, match="no output that can be compared"):
        isobasin.verify(a, a)


def test_a_folders_code_never_runs_and_its_attention_is_not_taken(tmp_path, monkeypatch):
    def asked(*arguments: Any) -> str:
        raise AssertionError("a question on standard input")

    monkeypatch.setattr("builtins.input", asked)
    marker = tmp_path / "marker"
    a = tiny("llama").save(tmp_path / "a", dtype=torch.float32)
    entries = {
        "auto_map": {"AutoConfig": "code.Configuration", "AutoModelForCausalLM": "code.Model"},
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "flex_attention",
    }
    b = changed(a, tmp_path / "b", config=entries)
    (b / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    assert isobasin.verify(a, b).equal
    assert load(b, torch.float32).config._attn_implementation in ("sdpa", "eager")
    assert not marker.exists()


def test_what_can_not_be_compared_or_seen_is_said(tmp_path):
    """Outputs of other shapes have no figures, and a window that no input fills leaves all figures at 0."""
    one = tiny("mistral").save(tmp_path / "one")
    longer = tiny("mistral", config={"vocab_size": 64}).save(tmp_path / "longer")
    found = isobasin.verify(one, longer)
    assert not found.equal
    assert found.reason == found.misshapen == "outputs differ in shape: logits is 2x1x50 in one and 2x1x64 in the other"
    wider = tiny("mistral", config={"sliding_window": 5000}).save(tmp_path / "wider")
    found = isobasin.verify(one, wider)
    assert (found.max_abs, found.misshapen, found.configuration) == (0, None, ("sliding_window",))
    assert isobasin.verify(one, one).configuration == ()


@pytest.mark.parametrize("patch", [4, [4, 6]])
def test_images_and_patches_may_be_longer_one_way(patch: int | list[int], tmp_path: Path):
    """transformers interpolates positions of squares alone, so no image of another size runs there."""
    sides = {"image_size": [8, 12], "patch_size": patch}
    source = tiny("vit", "sides", config=sides).save(tmp_path / "vit")
    isobasin.scramble(source, tmp_path / "moved", scope="model")
    assert isobasin.verify(source, tmp_path / "moved").equal
