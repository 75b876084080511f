"""Fingerprints, and verdicts on where a model comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import tiny, variant
from isobasin.errors import CheckpointError, OutputError


def finetuned(name: str, folder: Path) -> Path:
    """A copy of the tiny model trained for a few steps on random tokens."""
    model: Any = variant(name).build(dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        tokens = torch.randint(3, model.config.vocab_size, (4, 12), generator=generator)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def without_a_layer(folder: Path, out: Path) -> Path:
    """A copy without its first layer, and with three more tokens."""
    model: Any = loaded(folder)
    del model.transformer.h[0]
    model.config.n_layer -= 1
    model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
    model.save_pretrained(out)
    return out


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def made(name: str, folder: Path, seed: int = 0) -> Path:
    return variant(name).save(folder / f"seed{seed}", seed, dtype=torch.float32)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_every_verdict(name: str, tmp_path: Path):
    origin, other, trained = made(name, tmp_path), made(name, tmp_path, 1), finetuned(name, tmp_path / "trained")
    scope = "block"
    isobasin.scramble(origin, tmp_path / "scrambled", scope=scope, verify=False)
    isobasin.scramble(trained, tmp_path / "hidden", scope=scope, verify=False)
    found = {
        str(folder.name): isobasin.compare(origin, folder)
        for folder in (origin, tmp_path / "scrambled", trained, tmp_path / "hidden", other)
    }
    assert {folder: str(comparison.verdict) for folder, comparison in found.items()} == {
        "seed0": "same function",
        "scrambled": "same function",
        "trained": "fine-tuned from it",
        "hidden": "obfuscated copy",
        "seed1": "unrelated",
    }
    assert found["seed0"].score == pytest.approx(1, abs=1e-6)
    assert found["hidden"].score == pytest.approx(found["trained"].score, abs=1e-3)
    assert found["seed1"].score < 0.1 < 0.5 < found["hidden"].score
    assert len(found["seed1"].blocks) == 4


@pytest.mark.parametrize("turned", [False, True], ids=["as it lies", "turned"])
def test_a_layer_among_others_is_known(turned: bool, tmp_path: Path):
    """The mean of all blocks says nothing of it: one layer of six, in a model that has all else from another start."""
    six = tiny("gpt2", config={"n_layer": 6, "vocab_size": 300, "tie_word_embeddings": False})
    origin, other = (six.save(tmp_path / f"seed{seed}", seed, dtype=torch.float32) for seed in (0, 1))
    # Embeddings and the head say in which basis a layer was taken.
    there = (".h.2.", "wte", "wpe", "ln_f", "lm_head") if turned else (".h.2.",)
    taken = {n: x for n, x in load_file(origin / "model.safetensors").items() if any(part in n for part in there)}
    mixed = {**load_file(other / "model.safetensors"), **taken}
    save_file(mixed, other / "model.safetensors", {"format": "pt"})
    if turned:
        isobasin.scramble(other, tmp_path / "turned", scope="model", verify=False)
        other = tmp_path / "turned"
    found = isobasin.compare(origin, other)
    assert str(found.verdict) == "unrelated but for some blocks"
    assert [(b.kind, b.layer) for b in found.blocks if b.taken] == [("attention", 2), ("feed-forward", 2)]
    assert found.score < 0.4


@pytest.mark.parametrize("scope", ["block", "attention"])
@pytest.mark.parametrize(
    ("name", "other"), [("llama", "LlamaForSequenceClassification"), ("bert", "BertForTokenClassification")]
)
def test_one_body_under_two_heads(name: str, other: str, scope: str, tmp_path: Path):
    origin = made(name, tmp_path)
    headed: Any = getattr(transformers, other).from_pretrained(origin)
    headed.save_pretrained(tmp_path / "headed")
    isobasin.scramble(tmp_path / "headed", tmp_path / "moved", scope=scope)
    assert str(isobasin.compare(origin, tmp_path / "headed").verdict) == "same body under another head"
    assert str(isobasin.compare(origin, tmp_path / "moved").verdict) == "same body under another head"
    with torch.no_grad():
        headed.base_model.get_input_embeddings().weight[5] *= 1.2
    headed.save_pretrained(tmp_path / "tuned")
    assert str(isobasin.compare(origin, tmp_path / "tuned").verdict) == "fine-tuned from it"


def test_a_body_that_was_turned_under_another_head(tmp_path: Path):
    """Where A's head is its embedding, and B has none of that kind, B's stream may turn and A's may not."""
    model = tiny("gpt2", config={"vocab_size": 300})
    origin, other = (model.save(tmp_path / f"seed{seed}", seed, dtype=torch.float32) for seed in (0, 1))
    transformers.GPT2ForSequenceClassification.from_pretrained(origin).save_pretrained(tmp_path / "headed")
    isobasin.scramble(tmp_path / "headed", tmp_path / "turned", scope="model", verify=False)
    found = isobasin.compare(origin, tmp_path / "turned")
    assert str(found.verdict) == "obfuscated copy"
    assert found.score > 0.9
    assert str(isobasin.compare(other, tmp_path / "turned").verdict) == "unrelated"


def test_one_function_in_two_bases_of_the_stream_is_the_same(tmp_path: Path):
    origin = made("llama", tmp_path)
    isobasin.scramble(origin, tmp_path / "scrambled", scope="model", verify=False)
    found = isobasin.compare(origin, tmp_path / "scrambled")
    assert str(found.verdict) == "same function"
    assert found.score == pytest.approx(1, abs=1e-4)
    assert found.stream is not None
    assert found.stream.moved


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_a_copy_that_was_turned_and_then_trained_is_a_copy(name: str, tmp_path: Path):
    origin, other, trained = made(name, tmp_path), made(name, tmp_path, 1), finetuned(name, tmp_path / "trained")
    isobasin.scramble(trained, tmp_path / "hidden", scope="model", verify=False)
    found = isobasin.compare(origin, tmp_path / "hidden")
    assert str(found.verdict) == "obfuscated copy"
    assert found.score > 0.7
    assert found.stream is not None
    assert found.stream.before < 0.3 < 0.9 < found.stream.after
    stranger = isobasin.compare(other, tmp_path / "hidden")
    assert str(stranger.verdict) == "unrelated"
    assert stranger.stream is not None
    assert stranger.score < 0.1


def test_a_turned_copy_of_fewer_tokens_than_its_stream_is_wide_is_compared_where_they_are(tmp_path: Path):
    """18 tokens and 18 readouts say nothing of 28 directions out of 64."""
    model = tiny("llama", config={"vocab_size": 18, "hidden_size": 64})
    origin, other = (model.save(tmp_path / f"seed{seed}", seed, dtype=torch.float32) for seed in (0, 1))
    isobasin.scramble(origin, tmp_path / "turned", scope="model", verify=False)
    pruned: Any = loaded(tmp_path / "turned")
    with torch.no_grad():
        for layer in pruned.model.layers:
            layer.mlp.up_proj.weight[layer.mlp.up_proj.weight.abs() < layer.mlp.up_proj.weight.abs().median()] = 0
    pruned.save_pretrained(tmp_path / "pruned")
    found = isobasin.compare(origin, tmp_path / "pruned")
    assert str(found.verdict) == "obfuscated copy"
    attention = [block.score for block in found.blocks if block.kind == "attention"]
    assert attention == pytest.approx([1, 1], abs=1e-4)
    assert found.score > 0.8
    assert found.stream is not None
    assert found.stream.said == pytest.approx(36 / 64)
    stranger = isobasin.compare(other, tmp_path / "pruned")
    assert str(stranger.verdict) == "unrelated"
    assert stranger.score < 0.2


def test_biases_are_no_evidence(tmp_path: Path):
    """Models trained apart have them for the mean of what is read, as copies do that were trained on."""
    origin = made("gpt2", tmp_path)
    changed: Any = loaded(origin)
    generator = torch.Generator().manual_seed(0)
    for name, values in changed.transformer.h.named_parameters():
        if name.endswith(("c_attn.bias", "c_fc.bias", "attn.c_proj.bias")):
            values.data = torch.randn(values.shape, generator=generator)
    changed.save_pretrained(tmp_path / "changed")
    scores = [block.score for block in isobasin.compare(origin, tmp_path / "changed").blocks]
    assert scores == pytest.approx([1] * 4, abs=1e-5)


def test_of_a_few_tokens_nothing_is_concluded(tmp_path: Path):
    """In twelve directions the best partners among heads and units of any two models are much alike."""
    model = tiny("llama", config={"vocab_size": 6, "hidden_size": 64})
    origin, other = (model.save(tmp_path / f"seed{seed}", seed, dtype=torch.float32) for seed in (0, 1))
    found = isobasin.compare(origin, other)
    assert found.stream is not None
    assert found.stream.said == 1
    assert str(found.verdict) == "unrelated"


def test_as_much_as_small_models_trained_apart_have_in_common_is_no_kinship(tmp_path: Path):
    """Seeds of a GPT-2 of two layers score up to 0.24, and 0.30 in one layer: results/provenance."""
    origin, other = made("llama", tmp_path), made("llama", tmp_path, 1)
    isobasin.interpolate(other, origin, 0.4, tmp_path / "between")
    found = isobasin.compare(origin, tmp_path / "between")
    assert 0.2 < found.score < 0.34
    assert str(found.verdict) == "unrelated"


def test_layers_are_assigned_where_some_are_left_out(tmp_path: Path):
    model = tiny("gpt2", config={"n_layer": 4})
    origin, other = (model.save(tmp_path / f"deep{seed}", seed, dtype=torch.float32) for seed in (0, 1))
    isobasin.scramble(origin, tmp_path / "turned", scope="model", untie=True, verify=False)
    short = without_a_layer(tmp_path / "turned", tmp_path / "short")
    found = isobasin.compare(origin, short)
    assert str(found.verdict) == "obfuscated copy"
    assert [(block.layer, block.partner) for block in found.blocks] == [(1, 0), (2, 1), (3, 2)] * 2
    assert found.score > 0.9
    back = isobasin.compare(short, origin)
    assert [(block.layer, block.partner) for block in back.blocks] == [(0, 1), (1, 2), (2, 3)] * 2
    assert str(isobasin.compare(other, short).verdict) == "unrelated"
    isobasin.fingerprint(origin).save(tmp_path / "kept.safetensors")
    (kin,) = isobasin.scan(short, [tmp_path / "kept.safetensors"]).relatives
    assert [(layer.ours, layer.theirs) for layer in kin.layers] == [(0, 1), (1, 2), (2, 3)]
    assert kin.invariants is None


@pytest.mark.parametrize("name", ["gpt_neox", "bloom", "olmo2", "opt"])
def test_fingerprints_are_invariant(name: str, tmp_path: Path):
    origin = variant(name).save(tmp_path / "origin")
    isobasin.scramble(origin, tmp_path / "scrambled", scope="block", verify=False)
    one, two = (isobasin.fingerprint(folder).tensors for folder in (origin, tmp_path / "scrambled"))
    assert one.keys() == two.keys()
    assert {name.rpartition(".")[2] for name in one} >= {"value_output", "units"}
    for key, values in one.items():
        torch.testing.assert_close(values, two[key], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "bert", "qwen3", "olmo2", "mixtral", "nemotron", "vit"])
def test_what_tokens_see_is_the_same_in_every_basis_of_the_stream(name: str, tmp_path: Path):
    origin = variant(name).save(tmp_path / "origin")
    isobasin.scramble(origin, tmp_path / "scrambled", scope="model", verify=False)
    one, two = (isobasin.fingerprint(folder).tensors for folder in (origin, tmp_path / "scrambled"))
    seen = [key for key in one if ".tokens_" in key]
    assert {key.rpartition(".")[2] for key in seen} == {"tokens_query_key", "tokens_value_output", "tokens_units"}
    for key in seen:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-9)


def test_what_tokens_see_is_a_circuit_between_their_sums(tmp_path: Path):
    origin = variant("gpt2").save(tmp_path / "origin")
    w = load_file(origin / "model.safetensors")
    vectors = w["transformer.wte.weight"] - w["transformer.wte.weight"].mean(1, keepdim=True)
    values, basis = torch.linalg.eigh(vectors.mT @ vectors)
    even = basis @ torch.diag((values.clamp(min=0) + 1e-2 * values.mean()) ** -0.5) @ basis.mT
    signs = torch.randint(0, 2, (4096, 12), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    sums = signs[: len(vectors)].mT @ vectors @ even
    gain = w["transformer.h.0.ln_2.weight"][:, None]
    found = (sums @ (gain * w["transformer.h.0.mlp.c_fc.weight"])) @ (w["transformer.h.0.mlp.c_proj.weight"] @ sums.mT)
    found.fill_diagonal_(0)
    expected = isobasin.fingerprint(origin).tensors["feedforward.0.tokens_units"]
    torch.testing.assert_close(found / found.norm(), expected[0])


def test_a_fingerprint_is_that_of_the_circuits(tmp_path: Path):
    origin = variant("gpt2").save(tmp_path / "origin")
    fused = load_file(origin / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
    out = load_file(origin / "model.safetensors")["transformer.h.0.attn.c_proj.weight"]
    circuits = [fused[:, 64 + 8 * i : 72 + 8 * i] @ out[8 * i : 8 * i + 8] for i in range(4)]
    expected = torch.stack([torch.linalg.svdvals(circuit)[:8] for circuit in circuits])
    found = isobasin.fingerprint(origin).tensors["attention.0.value_output"]
    torch.testing.assert_close(found.sort(0).values, expected.sort(0).values)


def test_a_fingerprint_is_written(tmp_path: Path):
    found = isobasin.fingerprint(made("llama", tmp_path))
    for ending in ("json", "safetensors"):
        found.save(tmp_path / f"kept.{ending}")
        with pytest.raises(OutputError, match="exists"):
            found.save(tmp_path / f"kept.{ending}")
    assert json.loads((tmp_path / "kept.json").read_text())["model_type"] == "llama"
    assert load_file(tmp_path / "kept.safetensors").keys() == found.tensors.keys()
    with pytest.raises(OutputError, match=r"\.json or \.safetensors"):
        found.save(tmp_path / "kept.txt")
    exact = isobasin.Fingerprint.load(tmp_path / "kept.json")
    assert exact.model_type == "llama"
    for name, tensor in exact.tensors.items():
        torch.testing.assert_close(tensor, found.tensors[name], rtol=0, atol=0)
    for name, tensor in isobasin.Fingerprint.load(tmp_path / "kept.safetensors").tensors.items():
        torch.testing.assert_close(tensor, found.tensors[name], rtol=1e-6, atol=1e-3 if ".tokens_" in name else 1e-9)


def test_what_is_no_fingerprint_is_refused_in_a_line(tmp_path: Path):
    origin = made("llama", tmp_path)
    found = isobasin.fingerprint(origin)
    content = found.to_json()
    wrong = {
        "old": {name: value for name, value in content.items() if name != "format"},
        "new": content | {"format": "3"},
        "other": {"model_type": "llama", "weights": [1]},
        "list": [1],
        "ragged": content | {"feedforward.0.units": [[1], [1, 2]]},
        "huge": content | {"feedforward.0.units": [None]},
        "named": content | {"feedforward.0.units": {"a": 1}},
        "unlike": content | {"feedforward.0.tokens_units": [[[1.0]]]},
    }
    for name, value in wrong.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    save_file({"feedforward.0.units": torch.ones(3)}, tmp_path / "old.safetensors", {"model_type": "llama"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "kept.txt").touch()
    said = {
        "old.json": "of an earlier version: write it again",
        "old.safetensors": "of an earlier version: write it again",
        "new.json": "of format '3', not '2'",
        "other.json": "no fingerprint",
        "list.json": "not an object",
        "ragged.json": "damaged fingerprint",
        "huge.json": "damaged fingerprint",
        "named.json": "damaged fingerprint",
        "unlike.json": "damaged fingerprint",
        "seed0": "no fingerprint",
        "empty": "no fingerprints in it",
        "none.json": "none.json",
        "kept.txt": r"ends in \.json or \.safetensors",
        "folder": "folder: the file is missing",
    }
    for name, message in said.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            isobasin.scan(origin, [tmp_path / name])
        assert "\n" not in str(caught.value)


def test_a_copy_with_dead_blocks_is_the_same(tmp_path: Path):
    model: Any = variant("gpt2").build(dtype=torch.float32)
    for block in model.transformer.h:
        block.attn.c_proj.weight.data.zero_()
        block.mlp.c_proj.weight.data.zero_()
    model.save_pretrained(tmp_path / "origin")
    isobasin.scramble(tmp_path / "origin", tmp_path / "scrambled", scope="block", verify=False)
    found = isobasin.compare(tmp_path / "origin", tmp_path / "scrambled")
    assert str(found.verdict) == "same function"
    assert found.score < 0.9
