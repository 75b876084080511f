"""Feed-forward blocks of every family: same weights, same function, same group; and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Case, case, kept, modules, save
from torch import Tensor
from transformers.activations import ACT2FN

from isobasin.architectures.activations import feedforward_group
from isobasin.architectures.building import feedforward_blocks
from isobasin.architectures.configuration import build
from isobasin.architectures.description import Description
from isobasin.architectures.examples import USUAL
from isobasin.architectures.feedforwards import FeedForward, FeedForwardBlock
from isobasin.architectures.layouts import linears, transposed_linears
from isobasin.architectures.projection import Layout, Projection
from isobasin.architectures.registry import family
from isobasin.architectures.resolve import check_comparable, check_feedforwards, specification
from isobasin.architectures.schema import Specification
from isobasin.errors import ArchitectureError, TensorError
from isobasin.model import open_model
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights, Scale, feed_forward

PLAIN, GATED = FeedForwardGroup(48), FeedForwardGroup(48, Scale.signed, Scale.none)


def has_experts(case: Case) -> bool:
    """Those are in test_experts."""
    return any(block.group.experts for block in feedforwards(case))


def feedforwards(case: Case) -> Sequence[FeedForward]:
    """The feed-forward blocks, by canonical names."""
    return family(case.model_type).feedforwards(build(case.model_type, case.config))


GROUPS = {
    **dict.fromkeys(("vit", "deit", "bert", "roberta", "roformer", "distilbert", "gpt_neox"), PLAIN),
    **dict.fromkeys(("phi", "starcoder2", "falcon", "dinov3_vit"), PLAIN),
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma", "gemma2", "phi3", "olmo", "stablelm"), GATED),
    **dict.fromkeys(("qwen3", "olmo2", "gemma3_text", "cohere", "smollm3", "glm", "granite", "modernbert"), GATED),
    **dict.fromkeys(("electra", "xlm-roberta", "albert", "bart", "marian", "whisper"), PLAIN),
    **dict.fromkeys(("clip", "clip_text_model", "clip_vision_model"), PLAIN),
    **dict.fromkeys(("siglip", "siglip_text_model", "siglip_vision_model"), PLAIN),
    **dict.fromkeys(("gpt2", "gptj", "gpt_bigcode", "gpt_neo", "bloom", "mpt"), FeedForwardGroup(128)),
    "gemma3": (GATED, GATED, PLAIN, PLAIN),
    "dinov2": FeedForwardGroup(64),
    **dict.fromkeys(("mpnet", "beit"), PLAIN),
    "t5": FeedForwardGroup(48, Scale.positive),
    "t5-gated": GATED,
    "swin": (FeedForwardGroup(64), FeedForwardGroup(64), FeedForwardGroup(128)),
    "dinov2-swiglu": GATED,
    "opt": FeedForwardGroup(48, Scale.positive),
    "gpt2-inner": FeedForwardGroup(20, Scale.positive),
    "gptj-inner": FeedForwardGroup(20),
    "bert-tanh": FeedForwardGroup(48, Scale.sign),
    "vit-relu2": FeedForwardGroup(48, Scale.positive, None, 2),
    "opt-no-bias": FeedForwardGroup(48),
    "llama-biases": FeedForwardGroup(48, Scale.signed, Scale.positive),
    "mistral-relu2": FeedForwardGroup(48, Scale.signed, Scale.positive, 2),
    "qwen2-tanh": FeedForwardGroup(48, Scale.signed, Scale.sign),
    "distilbert-relu": FeedForwardGroup(48, Scale.positive),
    "gemma2-tanh": FeedForwardGroup(48, Scale.signed, Scale.sign),
    "phi3-relu": FeedForwardGroup(48, Scale.signed, Scale.positive),
    "starcoder2-no-bias": PLAIN,
    "falcon-relu": FeedForwardGroup(128, Scale.positive),
    "modernbert-biases": FeedForwardGroup(48, Scale.signed, Scale.positive),
    "granite-biases": GATED,
}
CASES = [
    *(case(model_type) for model_type in USUAL if not has_experts(case(model_type))),
    case("gpt2", "inner", config={"n_inner": 20, "activation_function": "relu"}),
    case("gptj", "inner", config={"n_inner": 20}),
    case("bert", "tanh", config={"hidden_act": "tanh"}),
    case("vit", "relu2", config={"hidden_act": "relu2"}),
    case("dinov2", "swiglu", config={"use_swiglu_ffn": True}),
    case("t5", "gated", config={"feed_forward_proj": "gated-gelu"}),
    case("opt", "no-bias", config={"enable_bias": False, "activation_function": "gelu"}),
    case("llama", "biases", config={"mlp_bias": True, "hidden_act": "relu"}),
    case("mistral", "relu2", config={"hidden_act": "relu2"}),
    case("qwen2", "tanh", config={"hidden_act": "tanh"}),
    case("distilbert", "relu", config={"activation": "relu"}),
    case("gemma2", "tanh", config={"hidden_activation": "tanh"}),
    case("phi3", "relu", config={"hidden_act": "relu"}),
    case("starcoder2", "no-bias", config={"use_bias": False}),
    case("falcon", "relu", config={"activation": "relu", "ffn_hidden_size": None, "bias": True}),
    case("modernbert", "biases", config={"mlp_bias": True, "hidden_activation": "relu"}),
    case("granite", "biases", config={"mlp_bias": True}),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@dataclass(frozen=True)
class Saved:
    """A tiny model, its checkpoint, and what goes into and comes out of its feed-forward blocks."""

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    tensors: dict[str, Tensor]
    specification: Specification
    observed: list[tuple[Tensor, Tensor]]

    def feedforwards(self) -> tuple[FeedForwardBlock, ...]:
        return check_feedforwards(self.specification, Description(self.config, self.shapes), source="tiny")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Saved]:
    made: dict[tuple[str, bool], Saved] = {}

    def get(case: Case, base: bool = False) -> Saved:
        if (str(case), base) not in made:
            folder, model = tmp_path_factory.mktemp(str(case)), case.model(base=base)
            config, shapes, tensors = save(model, folder)
            found = specification(Description(config, shapes), source="tiny")
            made[str(case), base] = Saved(folder, config, shapes, tensors, found, observed(case, model))
        return made[str(case), base]

    return get


def observed(case: Case, model: Any) -> list[tuple[Tensor, Tensor]]:
    """Input and output of every feed-forward block in a run of the model."""
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    names = [((block.gate or block.up).weight, block.down.weight) for block in feedforwards(case)]
    for index, (first, last) in enumerate(modules(model, names)):
        first.register_forward_pre_hook(kept(inputs, index))
        last.register_forward_hook(kept(outputs, index))
    with torch.no_grad():
        model(**case.inputs)
    assert len(inputs) == len(outputs) == len(names) >= 2
    return [(inputs[index], outputs[index]) for index in range(len(names))]


def error(
    saved: Saved, block: FeedForwardBlock, change: Callable[[FeedForwardWeights], FeedForwardWeights] = lambda w: w
) -> float:
    hidden, expected = saved.observed[block.layer]
    ours = feed_forward(change(block.read(saved.tensors)), ACT2FN[block.activation], hidden)
    assert expected.abs().max() > 0.1
    return (ours - expected).abs().max().item()


@pytest.mark.parametrize("base", [False, True], ids=["head", "base"])
@every_case
def test_canonical_weights_compute_what_the_model_computes(case, base, saved):
    tiny = saved(case, base)
    blocks = tiny.feedforwards()
    assert [block.layer for block in blocks] == list(range(len(tiny.observed)))
    for block in blocks:
        # BLOOM's GELU has rounded constants.
        assert error(tiny, block) < (1e-8 if case.model_type == "bloom" else 1e-10)
        groups = GROUPS.get(str(case), block.group)
        assert block.group == (groups[block.layer] if isinstance(groups, tuple) else groups)
        assert block.width == (64 if block.stack == "stage 1" else 32)


@every_case
def test_write_inverts_read(case, saved):
    tiny = saved(case)
    generator = torch.Generator().manual_seed(3)
    for block in tiny.feedforwards():
        weights = block.read(tiny.tensors)
        written = block.write(tiny.tensors, weights)
        assert set(written) == set(block.shapes())
        assert all(torch.equal(t, tiny.tensors[name]) and t.is_contiguous() for name, t in written.items())
        other = weights.map(lambda t: torch.randn(t.shape, generator=generator, dtype=t.dtype))
        again = block.read(block.write(tiny.tensors, other))
        assert other.tensors().keys() == again.tensors().keys()
        assert all(torch.equal(t, again.tensors()[name]) for name, t in other.tensors().items())


def test_write_has_the_weights_type_and_refuses_to_drop_a_bias(saved):
    tiny = saved(case("gpt2"))
    block = tiny.feedforwards()[0]
    half = {name: tensor.to(torch.bfloat16) for name, tensor in tiny.tensors.items()}
    written = block.write(half, block.read(half))
    assert all(t.dtype == torch.float64 and torch.equal(t, half[name].double()) for name, t in written.items())
    with pytest.raises(ValueError, match="up bias"):
        block.write(half, replace(block.read(half), up_bias=None))


MISTAKES: dict[str, tuple[str, Callable[[FeedForwardWeights], FeedForwardWeights]]] = {
    "up and gate exchanged": ("llama", lambda w: replace(w, up=w.gate, gate=w.up)),
    "fused up and gate exchanged": ("phi3", lambda w: replace(w, up=w.gate, gate=w.up)),
    "fused up and gate biases exchanged": (
        "modernbert-biases",
        lambda w: replace(w, up_bias=w.gate_bias, gate_bias=w.up_bias),
    ),
    "no gate": ("qwen2", lambda w: replace(w, gate=None)),
    "units in another order": ("opt", lambda w: replace(w, up=w.up.flip(0))),
    "no up bias": ("bert", lambda w: replace(w, up_bias=None)),
    "no down bias": ("gpt2", lambda w: replace(w, down_bias=None)),
    "no gate bias": ("llama-biases", lambda w: replace(w, gate_bias=None)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_comparison_notices_a_mistake(name, saved):
    which, mistake = MISTAKES[name]
    tiny = saved(next(c for c in CASES if str(c) == which))
    assert error(tiny, tiny.feedforwards()[0], mistake) > 0.01


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - {"prelu", "xielu"}))
@pytest.mark.parametrize("gated", [False, True])
def test_the_table_of_activations_is_true(name, gated):
    """Every activation that transformers has keeps the function under the group that the table gives it."""
    generator = torch.Generator().manual_seed(1)
    up, down, gate = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    weights = FeedForwardWeights(up, down, gate if gated else None, up_bias=up[:, 0].clone())
    group = feedforward_group(6, name, gated=gated)

    moved = group.act(group.sample(generator, condition=100.0), weights)
    hidden = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    before, after = (feed_forward(w, ACT2FN[name], hidden) for w in (weights, moved))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_a_fused_gate_and_up_is_read_and_written():
    """`[gate | up]` in one tensor, as Phi stores it: a layout with a pick, its inverse derived."""
    sizes = (("part", 2), ("feature", 3), ("width", 2))
    gate, up = (
        Projection("gate_up.weight", None, Layout("(part feature) width", sizes, ("part", i, 1))) for i in range(2)
    )
    down = linears(2, 3, "up", "down", bias=False).down
    block = FeedForwardBlock(0, "mlp", up, gate, down, feedforward_group(3, "silu", gated=True), "silu")
    stored = {"gate_up.weight": torch.arange(12.0).reshape(6, 2), "down.weight": torch.arange(6.0).reshape(2, 3)}
    weights = block.read(stored)
    assert torch.equal(weights.gate, stored["gate_up.weight"][:3].double())
    assert torch.equal(weights.up, stored["gate_up.weight"][3:].double())
    assert torch.equal(weights.down, stored["down.weight"].T.double())
    written = block.write(stored, replace(weights, up=weights.up.flip(0), gate=weights.gate + 1))
    assert torch.equal(written["gate_up.weight"][:3], stored["gate_up.weight"][:3] + 1)
    assert torch.equal(written["gate_up.weight"][3:], stored["gate_up.weight"][3:].flip(0))


@pytest.mark.parametrize("builder", [linears, transposed_linears])
def test_a_block_without_units_is_refused(builder):
    with pytest.raises(ArchitectureError, match="0 units"):
        builder(4, 0, "up", "down", bias=True)


def test_names_count_the_layers():
    blocks = feedforward_blocks(2, "h.{layer}.mlp", linears(4, 3, "h.{layer}.a", "h.{layer}.b", bias=True), "relu")
    assert [list(block.shapes()) for block in blocks] == [
        [f"h.{i}.a.weight", f"h.{i}.a.bias", f"h.{i}.b.weight", f"h.{i}.b.bias"] for i in range(2)
    ]
    assert blocks[1].name == "h.1.mlp"
    assert blocks[1].shapes() == {
        "h.1.a.weight": (3, 4),
        "h.1.a.bias": (3,),
        "h.1.b.weight": (4, 3),
        "h.1.b.bias": (4,),
    }


UNEXPLAINED = [
    ("llama", "model.layers.1.mlp.norm.weight"),
    ("llama", "model.layers.0.mlp.up_proj.bias"),
    ("llama", "model.layers.0.mlp.down_proj.lora_A.weight"),
    ("qwen2", "model.layers.0.mlp.act_fn.alpha_p"),
    ("bert", "bert.encoder.layer.0.intermediate.gate.weight"),
    ("bert", "bert.encoder.layer.0.output.dense.weight_scale"),
    ("gpt2", "transformer.h.1.mlp.experts.weight"),
    ("opt", "model.decoder.layers.0.fc1.lora_B.weight"),
    ("distilbert", "distilbert.transformer.layer.1.ffn.lin3.bias"),
]


@pytest.mark.parametrize(("model_type", "name"), UNEXPLAINED)
def test_an_unexplained_tensor_is_refused_where_feedforward_is_asked_for_only(model_type, name, saved):
    tiny = saved(case(model_type))
    shapes = tiny.shapes | {name: (3,)}
    described = Description(tiny.config, shapes)
    found = specification(described, source="tiny")
    with pytest.raises(TensorError, match=r"tiny: .* is unexpected in a feed-forward module") as caught:
        check_feedforwards(found, described, source="tiny")
    assert repr(name) in str(caught.value)


def test_missing_and_misshapen_tensors_are_named(saved):
    tiny = saved(case("gpt2"))
    name = "transformer.h.0.mlp.c_fc.weight"
    for shapes, words in (
        ({n: s for n, s in tiny.shapes.items() if n != name}, f"tensor {name!r} is missing, of 8"),
        (tiny.shapes | {name: (128, 32)}, r"has shape \(128, 32\), expected \(32, 128\) from .*128 feed-forward units"),
    ):
        described = Description(tiny.config, shapes)
        with pytest.raises(TensorError, match=words):
            check_feedforwards(specification(described, source="x"), described, source="x")


def test_norms_beside_the_block_are_left_alone(saved):
    """BERT's LayerNorm lies in the module that holds the down projection."""
    assert any(name.endswith("layer.0.output.LayerNorm.weight") for name in saved(case("bert")).shapes)
    assert len(saved(case("bert")).feedforwards()) == 2


def test_a_specification_without_feedforward_blocks_has_none(saved):
    tiny = saved(case("vit"))
    none = replace(tiny.specification, feedforwards=())
    with pytest.raises(ArchitectureError, match="no feed-forward blocks are known"):
        check_feedforwards(none, Description(tiny.config, tiny.shapes), source="x")


def test_comparable_blocks(saved, tmp_path):
    ours = saved(case("llama")).specification
    with open_model(saved(case("llama"), True).folder) as base:
        check_comparable(ours, base.specification, feedforward=True)
    for changes, words in (
        ({"intermediate_size": 40}, "reference has 48 feed-forward units, model has 40"),
        ({"mlp_bias": True}, "reference has biases on nothing, model has biases on up, gate, down"),
        ({"hidden_act": "relu"}, r"reference has group \(R\*\)\^48 ⋊ S_48, model has group \(R\* × R_"),
    ):
        other = case("llama", config=changes)
        config, shapes, _ = save(other.model(), tmp_path / next(iter(changes)))
        theirs = specification(Description(config, shapes), source="other")
        check_comparable(ours, theirs)
        with pytest.raises(ArchitectureError, match=words):
            check_comparable(ours, theirs, feedforward=True)
