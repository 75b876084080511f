"""Models with several stacks of layers or towers, and layers that read one table."""

from __future__ import annotations

import pytest
import torch
from resolving import config, refused, resolve, shapes
from safetensors.torch import load_file, save_file

from isobasin.architectures.examples import tiny
from isobasin.errors import TensorError
from isobasin.loading import load


def test_stacks_are_told_apart():
    """Layers are counted through all stacks, and a tensor outside one of them is named with all their depths."""
    bart, deeper = config("bart"), config("bart", decoder_layers=3)
    blocks = resolve(bart, shapes(bart, "model.")).attention
    assert [block.layer for block in blocks] == list(range(6))
    assert [block.stack for block in blocks] == ["encoder"] * 2 + ["decoder"] * 2 + ["cross-attention"] * 2
    assert blocks[5].name == "model.decoder.layers.1.encoder_attn"
    message = refused(TensorError, bart, shapes(deeper))
    assert "'decoder.layers.2.self_attn.q_proj.weight' belongs to layer 2" in message
    assert message.endswith("config.json has encoder_layers=2, decoder_layers=2")
    clip = config("clip")
    extra = {"vision_model.encoder.layers.2.self_attn.q_proj.weight": (32, 32)}
    assert refused(TensorError, clip, shapes(clip) | extra).endswith(
        "belongs to layer 2, but config.json has text_config.num_hidden_layers=2, vision_config.num_hidden_layers=2"
    )
    swin = config("swin", depths=[1, 1])
    message = refused(TensorError, swin, shapes(config("swin")))
    assert message.endswith("belongs to layer 0.1, but config.json has num_layers=2, depths=[1, 1]")
    t5 = config("t5", num_decoder_layers=1)
    message = refused(TensorError, t5, shapes(config("t5")))
    assert message.endswith("belongs to layer 1.0, but config.json has num_layers=2, num_decoder_layers=1")
    albert = config("albert", num_hidden_groups=1)
    assert "belongs to layer 1.0, but" in refused(TensorError, albert, shapes(config("albert")))


def test_blocks_that_read_one_table_are_known():
    ties = {"t5": ((0, 1), (2, 3)), "mpnet": ((0, 1),), "beit": (), "swin": (), "bert": ()}
    assert {name: resolve(config(name)).ties for name in ties} == ties
    shared = config("beit", use_relative_position_bias=False, use_shared_relative_position_bias=True)
    assert resolve(shared).ties == ((0, 1),)


def test_a_tower_that_is_not_there():
    """As in an image classifier that is saved under CLIP's configuration."""
    clip = config("clip")
    vision = {name: shape for name, shape in shapes(clip).items() if name.startswith("vision_model.")}
    message = refused(TensorError, clip, vision)
    assert "'text_model.encoder.layers.0.self_attn.q_proj.weight' is missing and 15 more, of 32" in message


@pytest.mark.parametrize("name", ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"])
def test_the_pooling_head_of_siglip_is_left_alone(name):
    siglip = config("siglip")
    head = {f"vision_model.head.attention.{name}": (96, 32), "vision_model.head.mlp.fc1.weight": (48, 32)}
    found = resolve(siglip, shapes(siglip) | head)
    assert not head.keys() & {n for block in (*found.attention, *found.feedforwards) for n in block.shapes()}


# What a fresh save writes first, then the hub's names, those that transformers 4 wrote of base models, those in memory.
NAMES = [
    ("language_model.model.", "vision_tower."),
    ("language_model.model.", "vision_tower.vision_model."),
    ("language_model.", "vision_tower.vision_model."),
    ("model.language_model.", "model.vision_tower.vision_model."),
    ("model.language_model.", "model.vision_tower."),
]


def test_every_naming_of_gemma3s_towers_is_read_as_transformers_reads_it(tmp_path):
    folder = tiny("gemma3").save(tmp_path / "model")
    file = folder / "model.safetensors"
    stored, expected = load_file(file), load(folder, torch.float64).state_dict()
    whole = config("gemma3")
    for beginnings in NAMES:
        named = dict(stored)
        for old, new in zip(NAMES[0], beginnings, strict=True):
            named = {new + n.removeprefix(old) if n.startswith(old) else n: t for n, t in named.items()}
        save_file(named, file, {"format": "pt"})
        found = load(folder, torch.float64).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        ours = resolve(whole, {name: tuple(tensor.shape) for name, tensor in named.items()})
        assert {block.name.split("layers.")[0] for block in ours.attention} == {
            beginnings[0],
            f"{beginnings[1]}encoder.",
        }
        for one, other in zip(ours.attention, resolve(whole).attention, strict=True):
            for name, usual in zip(one.shapes(), other.shapes(), strict=True):
                assert torch.equal(named[name], stored[usual])


def test_a_tower_of_gemma3_that_has_two_names_or_none():
    whole = config("gemma3")
    both = shapes(whole)
    text = {name: shape for name, shape in both.items() if name.startswith("language_model.")}
    again = {name.replace("language_model.model.", "model.language_model."): shape for name, shape in text.items()}
    message = refused(TensorError, whole, both | again)
    assert "and 'model.language_model.layers.0.self_attn.q_proj.weight' are told apart by a prefix alone" in message
    query = "encoder.layers.0.self_attn.q_proj.weight"
    message = refused(TensorError, whole, text)
    assert f"looked for 'vision_tower.{query}' and 'vision_tower.vision_model.{query}' and" in message
