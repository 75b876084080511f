"""Heads, blocks and experts of 16-bit files are compared one by one, each by what rounding does to it."""

from __future__ import annotations

import pytest
import torch
from test_verification import changed

import isobasin
from isobasin.architectures.examples import tiny, variant
from isobasin.model import open_model
from isobasin.verification import explaining, running
from isobasin.verification.abreast import Abreast
from isobasin.verification.models import _plans
from isobasin.verification.parts import Parts, beside, changes, products, unlike_parts
from isobasin.verification.running import How, Run

DEEP = {"num_hidden_layers": 6}
WHOLE = {"head", "block 0", "block 1", "output"}


def parts_of(folder, dtype=torch.float64):
    """What is noted of a model on its way."""
    with open_model(folder) as model:
        return Run(model, _plans(model)[0], How(dtype, 0, "cpu", more=True)).parts


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("llama", WHOLE),
        ("gpt2", WHOLE),
        ("bert", {"head", "block 0", "output"}),  # the second sum is of what the first normalisation returned
        ("gptj", {"head", "block 0", "output"}),  # both blocks are added at once
        ("bloom", WHOLE),  # written out, with masks as numbers
        ("gpt_oss", {*WHOLE, "router", "expert"}),  # a score that no key has
        ("deepseek_v3", {*WHOLE, "router", "expert"}),  # groups of experts
        ("gemma2", WHOLE),  # normalised before it is added
        ("dinov2", WHOLE),  # scaled before it is added
        ("whisper", {*WHOLE, "block 2"}),  # two sides, and attention from one to the other
    ],
)
def test_no_move_changes_what_parts_make(name, kinds, tmp_path):
    """But which head is which, and which expert."""
    a = variant(name).save(tmp_path / "a")
    ours = parts_of(a)
    assert {part.kind for part in ours} == kinds
    layers = {part.layer for part in ours}
    assert len(layers) == (4 if name == "whisper" else 2)
    assert all({part.kind for part in ours if part.layer == layer} >= kinds & WHOLE for layer in layers)
    for scope in ("block",) if name == "whisper" else ("block", "model"):
        theirs = parts_of(isobasin.scramble(a, tmp_path / scope, scope=scope, seed=3).path)
        nothing = [[torch.full((len(part.products),), 5e-6) for part in ours]] * 2
        assert unlike_parts(list(map(beside, ours, theirs)), nothing) == ()
        assert any(not torch.allclose(x.products, y.products) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("scope", ["block", "model"])
@pytest.mark.parametrize(
    ("name", "rows", "part"),
    [
        ("mlp.down_proj", slice(None), "block 1"),
        ("mlp.gate_proj", slice(12), "block 1"),
        ("self_attn.o_proj", slice(None), "block 0"),
        ("self_attn.v_proj", slice(8), "block 0"),
        ("self_attn.q_proj", slice(16, 24), "head 2"),
    ],
)
def test_a_twentieth_that_rounding_of_all_layers_hides_is_found(name, rows, part, scope, tmp_path):
    a = tiny("llama", config=DEEP).save(tmp_path / "a", dtype=torch.bfloat16)
    b = isobasin.scramble(a, tmp_path / "b", scope=scope, seed=3).path
    assert isobasin.verify(a, b).equal
    name = f"model.layers.4.{name}.weight"
    found = isobasin.verify(a, changed(b, tmp_path / "changed", lambda tensors: tensors[name][rows].mul_(1.05)))
    assert not found.equal
    assert found.parts == (f"{part} of 'model.layers.4'",)
    assert found.explained
    assert found.reason == f"{part} of 'model.layers.4' differs"


def test_a_heads_query_bias_is_compared(tmp_path):
    a = variant("stablelm-biases").save(tmp_path / "a", dtype=torch.bfloat16)
    b = isobasin.scramble(a, tmp_path / "b", scope="model", seed=3).path
    assert isobasin.verify(a, b).equal
    name = "model.layers.1.self_attn.q_proj.bias"
    found = isobasin.verify(a, changed(b, tmp_path / "changed", lambda tensors: tensors[name][8:16].mul_(1.2)))
    assert found.parts == ("head 1 of 'model.layers.1'",)
    assert found.explained


def test_a_router_is_compared(tmp_path):
    """Whatever it changes of what experts are chosen for few tokens."""
    a = tiny("qwen3_moe").save(tmp_path / "a", dtype=torch.bfloat16)
    b = isobasin.scramble(a, tmp_path / "b", scope="model", seed=3).path
    name = "model.layers.1.mlp.gate.weight"
    found = isobasin.verify(a, changed(b, tmp_path / "changed", lambda tensors: tensors[name].mul_(1.03)))
    assert found.parts == ("router of 'model.layers.1'",)
    assert found.explained


def test_a_mean_that_no_normalisation_sees_is_no_difference(tmp_path):
    """Not of any move that is made here, but of writers that others have centred."""
    a = tiny("gptj").save(tmp_path / "a", dtype=torch.bfloat16)
    b = changed(a, tmp_path / "b", lambda tensors: tensors["transformer.h.0.mlp.fc_out.bias"].add_(0.5))
    assert isobasin.verify(a, b).equal


def test_layers_read_what_the_first_one_reads(tmp_path):
    """What a layer leaves changes no part of another."""
    a = tiny("gpt2").save(tmp_path / "a", dtype=torch.bfloat16)
    b = changed(a, tmp_path / "b", lambda tensors: tensors["transformer.h.0.mlp.c_proj.weight"].mul_(2))
    for x, y in zip(parts_of(a), parts_of(b), strict=True):
        assert torch.equal(x.products, y.products) == (x.layer == "transformer.h.1" or x.kind in ("head", "block 0"))


def test_parts_are_the_same_a_layer_at_a_time(tmp_path, monkeypatch):
    """Where inputs take turns, and one of them alone finds its layers side by side."""
    a = tiny("whisper").save(tmp_path / "a", dtype=torch.bfloat16)
    with open_model(a) as model:
        held = Run(model, _plans(model)[0], How(torch.float64, 0, "cpu", more=True))
        monkeypatch.setattr(running, "_HELD_LIMIT", 0)
        streamed = Run(model, _plans(model)[0], How(torch.float64, 0, "cpu", more=True))
    assert streamed._streamed
    assert held.outputs.keys() == streamed.outputs.keys()
    assert all(torch.equal(x, streamed.outputs[key]) for key, x in held.outputs.items())
    assert len(held.parts) == len(streamed.parts)
    assert all(torch.equal(x.products, y.products) for x, y in zip(held.parts, streamed.parts, strict=True))


@torch.no_grad()
def test_what_layers_add_to_what_the_first_one_reads_is_added_up():
    """And nothing is hooked afterwards."""
    model = tiny("gpt2").build()
    layers = {str(i): layer for i, layer in enumerate(model.transformer.h)}
    tokens = torch.arange(12).view(2, 6)
    before = model(tokens, output_hidden_states=True)
    with Abreast(layers, mean=True):
        within = model(tokens).logits
    first = before.hidden_states[0]
    added = sum(layer(first) - first for layer in layers.values())
    assert torch.allclose(within, model.lm_head(model.transformer.ln_f(first + added)))
    assert not torch.allclose(within, before.logits)
    assert torch.equal(model(tokens).logits, before.logits)


class Attending(torch.nn.Module):
    """A layer whose heads' scores are as they are given, and what a mask adds."""

    def forward(self, stream, scores, mask, fused=False):
        if fused:  # queries times keys that are unit vectors
            keys = torch.eye(6, dtype=scores.dtype).expand(scores.shape)
            return torch.nn.functional.scaled_dot_product_attention(scores, keys, keys, mask, scale=1.0), stream
        return torch.softmax(scores + mask, -1), stream


def test_heads_are_their_scores_however_they_are_computed_and_masked():
    """But for what softmax doesn't see: what is added for all keys, and what is hidden."""
    scores = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    stream, found = torch.zeros(2, 6, 8, dtype=torch.float64), []
    shifts = torch.arange(6, dtype=torch.float64).unsqueeze(-1)
    for many in (-torch.inf, torch.finfo(torch.float64).min, -1e4):
        mask = torch.zeros(6, 6, dtype=torch.float64).masked_fill(hidden, many)
        for given, fused in ((scores, False), (scores, True), (scores + shifts, False)):
            layer = Attending()
            with Abreast({"layer": layer}, mean=False) as abreast:
                layer(stream, given, mask, fused)
            found += [part.products for part in abreast.parts if part.kind == "head"]
    assert len(found) == 9
    assert all(torch.allclose(found[0], other) for other in found)
    assert not torch.allclose(found[0][0], found[0][1])


def test_changes_are_what_is_left_after_the_best_turn():
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 12, 40, generator=generator, dtype=torch.float64)
    x, noise = (each / each.norm(dim=-1, keepdim=True) for each in (x, noise))
    turn = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q
    assert changes(products(x)[None], products(x @ turn)[None]) < 1e-7
    y = (x + 1e-2 * noise) @ turn
    left, _, right = torch.linalg.svd(y.T @ x)
    expected = (x - y @ left @ right).norm() / x.norm()
    found = changes(products(x)[None], products(y)[None])
    assert torch.allclose(found, expected[None], rtol=1e-6)
    assert 0 < expected < 1e-2


def test_what_is_no_number_is_infinitely_far_and_not_compared():
    x = products(torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(0)))
    y = x.clone()
    y[1, 3, 3] = torch.nan
    assert changes(x, y).isinf().tolist() == [False, True]
    assert changes(torch.zeros_like(x), torch.zeros_like(x)).tolist() == [0, 0]
    assert changes(torch.zeros_like(x), x).isinf().all()
    ours, theirs = [Parts("layer", "head", x)], [Parts("layer", "head", y)]
    assert unlike_parts(list(map(beside, ours, theirs)), [[torch.zeros(2)]] * 2) == ()


def test_what_rounding_changes_much_is_not_compared():
    x = products(torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(0)))
    pair = [Parts("layer", "head", x)], [Parts("layer", "head", x * torch.tensor([1.0, 4.0])[:, None, None])]
    for much, named in ((0.05, ("head 1 of 'layer'",)), (0.11, ())):
        assert unlike_parts(list(map(beside, *pair)), [[torch.full((2,), much)]] * 2) == named


def test_further_roundings_explain_what_one_does_not(tmp_path, monkeypatch):
    a = tiny("marian").save(tmp_path / "a", 1, dtype=torch.bfloat16)
    b = isobasin.scramble(a, tmp_path / "b", seed=4, verify=False).path
    assert isobasin.verify(a, b).equal
    monkeypatch.setattr(explaining, "_MORE_OF_PARTS", 0)
    monkeypatch.setattr(explaining, "NEAR", 1)
    assert isobasin.verify(a, b).parts
