"""A scope drawn anew: exactly its tensors change, as transformers initialises them."""

from __future__ import annotations

import math
import re

import pytest
import torch
from tiny_trained import FACTS, KINDS, build, examples, settings

from isobasin.architectures.tiny import randomise
from isobasin.choices import Redrawn
from isobasin.errors import ArchitectureError
from isobasin.experiments.models import new_model
from isobasin.experiments.scopes import reinitialise, reinitialise_layer, scope_parameters, trainable
from isobasin.model import open_model

every_kind = pytest.mark.parametrize("kind", KINDS, ids="-".join)
every_scope = pytest.mark.parametrize("scope", Redrawn)

# Written out, so that the tests don't share the code's way of finding them.
_ATTENTION = {
    "vit": r"vit\.layers\.(\d)\.attention\.[qkvo]_proj\.(weight|bias)",
    "bert": r"\w+\.encoder\.layer\.(\d)\.attention\.(self\.(query|key|value)|output\.dense)\.(weight|bias)",
    "gpt2": r"transformer\.h\.(\d)\.attn\.c_(attn|proj)\.(weight|bias)",
    "gpt_neox": r"gpt_neox\.layers\.(\d)\.attention\.(query_key_value|dense)\.(weight|bias)",
    "llama": r"model\.layers\.(\d)\.self_attn\.[qkvo]_proj\.weight",
}
_LAYER = r"\w+\.(encoder\.layer|layers|h)\.(\d)\..*"
_COUNT = {"vit": (8, 16), "bert": (8, 16), "gpt2": (4, 12), "gpt_neox": (4, 12), "llama": (4, 9)}


def family(kind) -> str:
    return "gpt_neox" if kind[:2] == ("gpt2", "rotary") else kind[0]


def expected(kind, model, scope) -> set[str]:
    names = {name for name, _ in model.named_parameters()}
    if scope is Redrawn.entire_model:
        return {name for name in names if "embed_positions" not in name}
    if scope is Redrawn.first_layer:
        return {n for n in names if (m := re.fullmatch(_LAYER, n)) and m[2] == "0"}
    found = {n: m[1] for n in names if (m := re.fullmatch(_ATTENTION[family(kind)], n))}
    return {name for name, layer in found.items() if layer == "0" or scope is Redrawn.all_attention}


def parameters(model) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@every_kind
@every_scope
def test_exactly_the_scope_changes(kind, scope):
    model = randomise(build(*kind), 1)
    before = {name: p.detach().clone() for name, p in parameters(model).items()}
    names = scope_parameters(model, scope)
    assert set(names) == expected(kind, model, scope)
    attention, layer = _COUNT[family(kind)]
    counts = {Redrawn.first_attention: attention, Redrawn.all_attention: 2 * attention, Redrawn.first_layer: layer}
    assert len(names) == counts.get(scope, len(names))
    drawn = reinitialise(model, scope, 1)
    assert type(drawn) is type(model)
    assert drawn.config.to_dict() == model.config.to_dict()
    after = parameters(drawn)
    assert {name for name in before if not torch.equal(after[name], before[name])} == set(names)
    assert all(torch.equal(parameters(model)[name], before[name]) for name in before)
    assert not {p.data_ptr() for p in drawn.parameters()} & {p.data_ptr() for p in model.parameters()}


@every_kind
def test_the_seed_decides(kind):
    model = build(*kind, seed=1)
    one, same, other = (reinitialise(model, Redrawn.all_attention, seed) for seed in (1, 1, 2))
    weights = [name for name in scope_parameters(model, Redrawn.all_attention) if name.endswith("weight")]
    assert all(torch.equal(parameters(one)[name], parameters(same)[name]) for name in parameters(one))
    for name in weights:
        assert not torch.equal(parameters(one)[name], parameters(other)[name])
        # Not what the model itself was made of, although its seed was the same.
        assert not torch.equal(parameters(one)[name], parameters(model)[name])


def test_drawing_leaves_the_global_generator_alone():
    model = build("vit", "rotary", "image-classification")
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    reinitialise(model, Redrawn.entire_model, 1)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_kind
def test_weights_are_drawn_as_the_class_initialises_them(kind):
    model = randomise(build(*kind, width=256, heads=4, options={"initializer_range": 0.03}), 1)
    drawn = parameters(reinitialise(model, Redrawn.first_layer, 1))
    for name in scope_parameters(model, Redrawn.first_layer):
        tensor = drawn[name]
        if "norm" in name.lower() or ".ln_" in name:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not tensor.any()
        else:
            residual = kind[:2] == ("gpt2", "absolute") and "c_proj" in name
            std = 0.03 / math.sqrt(2 * 2) if residual else 0.03
            assert tensor.std().item() == pytest.approx(std, rel=0.03)
            assert abs(tensor.mean().item()) < 0.1 * std


@every_kind
def test_one_layer_of_attention(kind):
    model = randomise(build(*kind, layers=3), 1)
    drawn = reinitialise_layer(model, 1, 7)
    changed = {n for n, p in parameters(model).items() if not torch.equal(p, parameters(drawn)[n])}
    pattern = _ATTENTION[family(kind)]
    assert changed == {n for n in parameters(model) if (m := re.fullmatch(pattern, n)) and m[1] == "1"}


@every_kind
@every_scope
@pytest.mark.parametrize("freeze", [True, False])
def test_what_is_trained(kind, scope, freeze):
    model = build(*kind)
    trainable(model, Redrawn.first_attention, True)  # must not matter
    trainable(model, scope, freeze)
    wanted = expected(kind, model, scope if freeze else Redrawn.entire_model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted


def test_a_table_of_positions_stays_frozen_after_loading(tmp_path):
    """Loading makes every parameter trainable."""
    model = build("bert", "rotary", "masked-lm")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    trainable(loaded, Redrawn.entire_model, False)
    table = "roformer.encoder.embed_positions.weight"
    assert not parameters(loaded)[table].requires_grad
    drawn = reinitialise(loaded, Redrawn.entire_model, 1)
    assert torch.equal(parameters(drawn)[table], parameters(model)[table])


def facts_of(model, without) -> dict[str, object]:
    return {name: value for name, value in model.config.to_dict().items() if name not in without}


def heads_of(model, folder) -> list[int]:
    model.save_pretrained(folder)
    with open_model(folder) as opened:
        return [block.group.heads for block in opened.specification.attention]


@every_kind
@pytest.mark.parametrize("scope", [Redrawn.all_attention, Redrawn.entire_model])
@pytest.mark.parametrize("heads", [2, 8])
def test_other_heads_everywhere_are_an_ordinary_model(kind, scope, heads, tmp_path):
    model = randomise(build(*kind), 1)
    drawn = reinitialise(model, scope, 1, heads)
    assert type(drawn) is type(model)
    assert heads_of(drawn, tmp_path) == [heads, heads]
    names = set(scope_parameters(model, scope))
    kept = {n for n, p in parameters(model).items() if n not in names and "embed_positions" not in n}
    assert all(torch.equal(parameters(model)[n], parameters(drawn)[n]) for n in kept)
    # Everything is as in a model made with so many heads, tables of rotary frequencies too.
    fresh = new_model(settings(*kind[:2], heads=heads), kind[2], seed=0, **FACTS[kind[2]])
    fresh.load_state_dict({n: p for n, p in drawn.state_dict().items() if n in fresh.state_dict()})
    batch = examples(kind[2]).fetch(range(3))
    assert torch.equal(drawn.eval()(**batch).logits, fresh.eval()(**batch).logits)
    if heads == 8:
        usual = reinitialise(model, scope, 1).eval()
        assert not torch.equal(usual(**batch).logits, drawn(**batch).logits)


@pytest.mark.parametrize("kind", [k for k in KINDS if k[1] == "absolute" or k[0] == "vit"], ids="-".join)
@pytest.mark.parametrize("scope", [Redrawn.first_attention, Redrawn.first_layer])
def test_other_heads_in_the_first_layer_are_one_of_our_models(kind, scope, tmp_path):
    model = randomise(build(*kind, layers=3), 1)
    drawn = reinitialise(model, scope, 1, 8)
    assert type(drawn).__name__ == f"Isobasin{type(model).__name__.removeprefix('Isobasin')}"
    assert heads_of(drawn, tmp_path) == [8, 4, 4]
    names = set(scope_parameters(model, scope))
    assert names == set(scope_parameters(drawn, scope))
    assert {n for n, p in parameters(model).items() if not torch.equal(p, parameters(drawn)[n])} == names
    model.save_pretrained(tmp_path / "before")  # completes the configuration, as saving the other one did
    changed = {"model_type", "architectures", "heads_per_layer", "rotary", "rope_theta"}
    assert facts_of(drawn, changed) == facts_of(model, changed)
    assert getattr(drawn.config, "rotary", False) == (kind[1] == "rotary")
    # Again, and back.
    twice = reinitialise(drawn, scope, 2, 2)
    assert heads_of(twice, tmp_path / "twice") == [2, 4, 4]
    everywhere = reinitialise(drawn, Redrawn.all_attention, 2, 2)
    assert heads_of(everywhere, tmp_path / "everywhere") == [2, 2, 2]
    same = reinitialise(model, scope, 1, 4)
    assert type(same) is type(model)


@pytest.mark.parametrize(
    ("kind", "scope", "heads", "message"),
    [
        (("vit", "absolute", "image-classification"), Redrawn.all_attention, 5, "5 heads can't share the width 32"),
        (("vit", "rotary", "image-classification"), Redrawn.first_attention, 32, "can't rotate"),
        (("bert", "rotary", "masked-lm"), Redrawn.all_attention, 32, "can't rotate"),
        (("bert", "rotary", "masked-lm"), Redrawn.first_attention, 8, "RoFormerForMaskedLM can't have 8 heads in one"),
        (("gpt2", "rotary", "causal-lm"), Redrawn.first_layer, 8, "GPTNeoXForCausalLM can't have 8 heads in one"),
        (("llama", "rotary", "causal-lm"), Redrawn.first_attention, 2, "LlamaForCausalLM can't have 2 heads in one"),
    ],
)
def test_heads_that_cannot_be_are_refused_in_one_line(kind, scope, heads, message):
    with pytest.raises(ArchitectureError, match=message) as caught:
        reinitialise(build(*kind), scope, 1, heads)
    assert "\n" not in str(caught.value)


def test_grouped_queries_keep_their_groups(tmp_path):
    model = build("llama", "rotary", "causal-lm", key_value_heads=2)
    drawn = reinitialise(model, Redrawn.all_attention, 1, 8)
    assert (drawn.config.num_key_value_heads, drawn.config.head_dim) == (2, 4)
    assert heads_of(drawn, tmp_path) == [8, 8]
    with pytest.raises(ArchitectureError, match="1 heads can't share 2 key/value heads"):
        reinitialise(model, Redrawn.all_attention, 1, 1)


def test_type_and_mode_are_kept():
    model = build("vit", "absolute", "image-classification").double().eval()
    drawn = reinitialise(model, Redrawn.first_attention, 1)
    assert {p.dtype for p in drawn.parameters()} == {torch.float64}
    assert not drawn.training
