"""Our classes against those of transformers, and against attention written plainly."""

from __future__ import annotations

import pytest
import torch
import transformers
from own_models import HEADS, OWN, Own, own
from torch import nn

import isobasin
from contracts.checks import blocks, recover, tensors
from isobasin.architectures.families import isobasin_vit
from isobasin.architectures.layouts import interleaved_planes
from isobasin.errors import ArchitectureError, VerificationError
from isobasin.loading import load
from isobasin.model import open_model
from isobasin.models.attention import regroup, rotate
from isobasin.symmetries.function import attend
from isobasin.testing.assertions import assert_function_preserved, outputs

every = pytest.mark.parametrize("case", OWN, ids=str)
regrouped = pytest.mark.parametrize("case", [case for case in OWN if not case.rotary], ids=str)


def plain(case: Own, model, heads: int):
    """The model of transformers with the same tensors and one number of heads everywhere."""
    plain_class = getattr(transformers, case.plain)
    config = {k: v for k, v in case.config.items() if k not in ("heads_per_layer", "rotary", "rope_theta")}
    config["n_head" if "n_head" in config else "num_attention_heads"] = heads
    other = plain_class(plain_class.config_class(**config, attn_implementation="sdpa")).double().eval()
    other.load_state_dict(model.state_dict())
    return other


def layers(model) -> list[nn.Module]:
    return list(next(m for m in model.modules() if isinstance(m, nn.ModuleList)))


def seen(modules, run) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What goes into and out of some modules during a run."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def hook(_, args, kwargs, output):
        given = args[0] if args else kwargs["hidden_states"]
        found.append((given, output[0] if isinstance(output, tuple) else output))

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


@every
def test_a_saved_model_is_the_same_function_whatever_attention_is_asked_for(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    auto = getattr(transformers, case.auto)
    expected = outputs(model, case.inputs())
    assert expected
    for asked in (None, "eager", "sdpa"):
        loaded = auto.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation=asked).eval()
        assert type(loaded).__name__ == case.own
        loaded.set_attn_implementation("sdpa")
        found = outputs(loaded, case.inputs())
        assert found.keys() == expected.keys()
        for name, x in expected.items():
            # Where tensors lie in memory decides a convolution's last digit on some processors.
            torch.testing.assert_close(found[name], x, rtol=1e-12, atol=1e-12)
    assert type(load(tmp_path, torch.float64)).__name__ == case.own


@regrouped
@pytest.mark.parametrize("heads", [2, 4, 8])
def test_equal_heads_everywhere_are_the_plain_model(case, heads):
    model = case.build(heads_per_layer=[heads] * 3)
    assert_function_preserved(plain(case, model, heads), model, 1e-13)


@regrouped
def test_each_layer_is_the_plain_layer_with_its_heads(case):
    model = case.build()
    runs = seen(layers(model), lambda: model(**case.inputs()))
    assert len(runs) == 3
    for layer, (given, returned) in enumerate(runs):
        for heads in {2, 4, 8}:
            with torch.no_grad():
                found = layers(plain(case, model, heads))[layer](given)
            agrees = torch.allclose(found, returned, rtol=0, atol=1e-12)
            assert agrees == (heads == case.config["heads_per_layer"][layer])


@pytest.mark.parametrize("name", ["vit-rotary", "vit-rotary-heads"])
def test_rotary_attention_is_what_it_says(name, tmp_path):
    """`attend` with the positions of the tokens from 0, the class token's first, times the usual frequencies."""
    case = own(name)
    model = case.build()
    model.save_pretrained(tmp_path)
    theta = case.config.get("rope_theta", 10_000.0)
    runs = seen([layer.attention for layer in layers(model)], lambda: model(**case.inputs()))
    for (given, returned), (group, weights) in zip(runs, blocks(tmp_path), strict=True):
        d = group.query_key.features
        assert group.query_key.planes == tuple((j, j + d // 2) for j in range(d // 2))
        assert group.heads == 48 // d
        angles = torch.tensor([[n * theta ** (-2 * j / d) for j in range(d // 2)] for n in range(17)]).double()
        torch.testing.assert_close(returned, attend(weights, group, given, angles), rtol=0, atol=1e-6)
        assert not torch.allclose(returned, attend(weights, group, given, 0 * angles), rtol=0, atol=1e-3)


def test_rotation_in_float64():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = torch.view_as_complex(torch.stack((x[..., :4], x[..., 4:]), -1))
    frequencies = torch.tensor([50.0 ** (-2 * j / 8) for j in range(4)], dtype=torch.float64)
    turned = turned * torch.exp(1j * torch.arange(5).double().unsqueeze(-1) * frequencies)
    torch.testing.assert_close(rotate(x, 50.0), torch.cat((turned.real, turned.imag), -1), rtol=0, atol=1e-14)


def test_regrouping_keeps_the_order_of_features():
    x = torch.arange(2 * 3 * 12).reshape(2, 3, 12)
    four, two = (x.unflatten(-1, (h, -1)).transpose(1, 2) for h in (4, 2))
    assert torch.equal(regroup(four, 2), two)
    assert torch.equal(regroup(two, 4), four)


def test_a_rotary_vit_has_no_positions(tmp_path):
    model = own("vit-rotary").build()
    model.save_pretrained(tmp_path)
    stored = tensors(tmp_path)["vit.embeddings.position_embeddings"]
    assert stored.shape == (1, 17, 48)
    assert not stored.any()
    for one in (model, type(model).from_pretrained(tmp_path)):
        assert not [name for name, _ in one.named_parameters() if "position" in name]
    plain_names = set(tensors(tmp_path))
    own("vit").build().save_pretrained(tmp_path / "absolute")
    assert set(tensors(tmp_path / "absolute")) == plain_names


def test_generating_with_a_cache_is_generating_without():
    model, tokens = own("gpt2").build(), torch.tensor([[3, 5, 7]])
    found = [model.generate(tokens, max_new_tokens=8, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert found[0].shape == (1, 11)
    assert torch.equal(*found)


@every
def test_a_group_element_preserves_the_function_and_is_found_again(case, tmp_path):
    case.build().save_pretrained(tmp_path / "original")
    moved = isobasin.scramble(tmp_path / "original", tmp_path / "moved", seed=1, condition=10.0)
    assert moved.verified is not None
    assert moved.verified.max_rel <= 1e-9
    assert_function_preserved(tmp_path / "original", tmp_path / "moved", 1e-9)
    recover(tmp_path / "original", tmp_path, seed=2, condition=10.0, tolerance=1e-8)


def test_the_wrong_planes_are_noticed(tmp_path, monkeypatch):
    own("vit-rotary").build().save_pretrained(tmp_path / "original")
    monkeypatch.setattr(isobasin_vit, "half_planes", interleaved_planes)
    with pytest.raises(VerificationError):
        isobasin.scramble(tmp_path / "original", tmp_path / "moved", seed=1, condition=10.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads_per_layer": [2, 4]}, "2 entries for 3 layers"),
        ({"heads_per_layer": [2, 5, 4]}, "5 heads can't share the width 48"),
        ({"heads_per_layer": [16, 4, 4], "rotary": True}, "16 heads of 3 features can't rotate"),
    ],
)
def test_heads_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        own("vit").build(**changes)
    model = own("vit").build()
    for name, value in changes.items():
        setattr(model.config, name, value)
    model.save_pretrained(tmp_path)
    with pytest.raises(ArchitectureError, match=message), open_model(tmp_path):
        pass


def test_heads_per_layer_are_in_the_specification(tmp_path):
    own("gpt2").build().save_pretrained(tmp_path)
    with open_model(tmp_path) as model:
        assert [block.group.heads for block in model.specification.attention] == HEADS
        assert [block.group.query_key.features for block in model.specification.attention] == [24, 12, 6]
