"""Blocks of experts as the families state them, against those that transformers computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from isobasin.architectures.activations import activation_functions
from isobasin.architectures.blocks import labels
from isobasin.architectures.building import experts_blocks
from isobasin.architectures.configuration import build
from isobasin.architectures.examples import tiny, variant
from isobasin.architectures.feedforwards import ExpertsBlock
from isobasin.architectures.layouts import correction, router, separate_experts
from isobasin.architectures.registry import family
from isobasin.architectures.tiny import TinyModel
from isobasin.errors import ArchitectureError, TensorError
from isobasin.matching.feedforward import match_feedforward
from isobasin.model import open_model
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights, Scale, feed_forward

# Whether the weights of chosen experts sum to one.
FAMILIES = {
    **{"mixtral": True, "qwen2_moe": False, "qwen3_moe": False, "gpt_oss": True},
    **{"deepseek_v2": False, "deepseek_v3": True},
}
MODELS = [
    *map(tiny, FAMILIES),
    tiny("qwen2_moe", "normed", config={"norm_topk_prob": True}),
    tiny("deepseek_v2", "scaled", config={"routed_scaling_factor": 1.5, "mlp_bias": True}),
    *map(variant, ("deepseek_v2-groups", "deepseek_v3-biases")),
]
CHOSEN = 2


def choice(block: ExpertsBlock, weights: FeedForwardWeights, scores: Tensor) -> Tensor:
    """A token's experts: those of the highest scores in one group, that of the highest score or pair of scores."""
    decides = scores if weights.correction is None else scores + weights.correction
    by_group = decides.unflatten(-1, (block.group.expert_groups, -1))
    best = by_group.topk(1 if weights.correction is None else 2).values.sum(-1).argmax()
    others = torch.arange(len(by_group)) != best
    return by_group.masked_fill(others[:, None], -torch.inf).flatten().topk(CHOSEN).indices


def routed(
    block: ExpertsBlock, weights: FeedForwardWeights, hidden: Tensor, normed: bool, factor: float = 1.0
) -> Tensor:
    """The experts that are chosen, token by token; scores are sigmoids where they are corrected."""
    assert weights.router is not None
    activation, multiplied = activation_functions(block.activation)
    logits = hidden @ weights.router.mT + (0 if weights.router_bias is None else weights.router_bias)
    out = torch.zeros_like(hidden)
    for token, scores in enumerate(logits.softmax(-1) if weights.correction is None else logits.sigmoid()):
        chosen = choice(block, weights, scores)
        shares = scores[chosen] / scores[chosen].sum() if normed else scores[chosen]
        for share, index in zip(shares, chosen.tolist(), strict=True):
            out[token] += factor * share * feed_forward(weights.expert(index), activation, hidden[token], multiplied)
    return out


@pytest.fixture(params=MODELS, ids=str)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TinyModel, Any, Any]:
    model: TinyModel = request.param
    with open_model(model.save(tmp_path / "model")) as found:
        return model, model.build(), found


def test_the_blocks_are_those_that_transformers_computes(opened):
    model, module, found = opened
    factor = getattr(module.config, "routed_scaling_factor", 1.0)
    blocks = [block for block in found.feedforwards() if isinstance(block, ExpertsBlock)]
    assert blocks
    for block in blocks:
        mlp = module.model.layers[block.layer].mlp
        hidden = torch.randn(9, block.width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        router = mlp.router if model.model_type == "gpt_oss" else mlp.gate
        _, shares, chosen = router(hidden)
        with torch.no_grad():
            expected = mlp.experts(hidden, chosen, shares)
        weights = block.read(found.stored(block))
        normed = model.config.get("norm_topk_prob", FAMILIES[model.model_type])
        # transformers' softmax is float32.
        torch.testing.assert_close(routed(block, weights, hidden, normed, factor), expected, rtol=1e-5, atol=1e-6)

        element = block.group.sample(torch.Generator().manual_seed(2), shift=0.3)
        moved = block.group.act(element, weights)
        before, after = (routed(block, w, hidden, normed) for w in (weights, moved))
        torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-12)


def test_the_other_blocks_are_those_that_transformers_computes(opened):
    """Those of layers without experts, and those that all tokens share."""
    _, module, found = opened
    for block in found.feedforwards():
        if not isinstance(block, ExpertsBlock):
            hidden = torch.randn(9, block.width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            with torch.no_grad():
                expected = module.get_submodule(block.name)(hidden)
            ours = feed_forward(block.read(found.stored(block)), activation_functions(block.activation)[0], hidden)
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_permuted_experts_compute_the_same_numbers(opened):
    """Without scales and shift the same tokens go to the same experts; the sum of a softmax has another order."""
    *_, found = opened
    block = next(block for block in found.feedforwards() if isinstance(block, ExpertsBlock))
    weights = block.read(found.stored(block))
    start = block.group.identity()
    moved = block.group.act(start.having({"experts": start.experts.flip(0)}), weights)
    hidden = torch.randn(20, block.width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, after = (routed(block, w, hidden, normed=True) for w in (weights, moved))
    torch.testing.assert_close(before, after, rtol=1e-14, atol=1e-14)


def test_what_is_read_can_be_written(opened):
    *_, found = opened
    for block in found.feedforwards():
        stored = found.stored(block)
        again = block.write({name: torch.zeros_like(x) for name, x in stored.items()}, block.read(stored))
        assert again.keys() == stored.keys() == block.shapes().keys()
        assert all(
            torch.equal(again[name], x) and again[name].shape == block.shapes()[name] for name, x in stored.items()
        )


def test_groups():
    def groups(model_type: str, **config: Any) -> list[FeedForwardGroup]:
        model = tiny(model_type, config=config)
        return [block.group for block in family(model_type).feedforwards(build(model_type, model.config))]

    dense, shared = (FeedForwardGroup(n, Scale.signed, Scale.none) for n in (48, 20))
    experts = FeedForwardGroup(16, Scale.signed, Scale.none, experts=5, shift=32)
    assert groups("mixtral") == [replace(dense, experts=3, shift=32)] * 2
    assert groups("qwen2_moe") == [experts, shared, dense]
    assert groups("qwen2_moe", mlp_only_layers=[], decoder_sparse_step=2) == [dense, experts, shared]
    assert groups("qwen2_moe", num_experts=0) == [dense, dense]
    assert groups("qwen3_moe", mlp_only_layers=[0]) == [dense, experts]
    of_four = replace(experts, experts=4)
    assert groups("deepseek_v2") == [dense, of_four, replace(shared, units=32)]
    assert groups("deepseek_v2", n_group=2, topk_group=1)[1] == of_four
    limited = {"topk_method": "group_limited_greedy", "n_group": 2}
    assert groups("deepseek_v2", **limited, topk_group=1)[1] == replace(of_four, expert_groups=2)
    assert groups("deepseek_v2", **limited, topk_group=2)[1] == of_four
    assert groups("deepseek_v2", first_k_dense_replace=2, topk_method="noaux_tc") == [dense, dense]
    corrected = replace(of_four, expert_groups=2, shift=0)
    assert groups("deepseek_v3") == [dense, corrected, replace(shared, units=16)]
    assert groups("deepseek_v3", n_group=1)[1] == replace(corrected, expert_groups=1)
    assert groups("deepseek_v3", first_k_dense_replace=3, n_group=8) == [dense, dense]
    assert groups("gpt_oss") == [FeedForwardGroup(48, Scale.none, Scale.none, experts=4, shift=33)] * 2


def test_routers_of_sigmoids_with_groups_and_a_correction():
    """What such a family states, in tensors."""
    experts = separate_experts(6, 3, 4, "{expert}.up", "{expert}.down", "{expert}.gate")
    rows, added = router(6, 4, "{layer}.router"), correction(4, "{layer}.correction")
    block = experts_blocks(2, "mlp", rows, experts, "silu", softmax=False, correction=added, groups=2)[1]
    assert block.group == FeedForwardGroup(3, Scale.signed, Scale.none, experts=4, expert_groups=2)
    assert block.shapes()["1.correction"] == (4,)
    assert block.deciding == {"1.correction"}
    generator = torch.Generator().manual_seed(0)
    stored = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in block.shapes().items()}
    element = block.group.sample(generator)
    moved = block.write(stored, block.group.act(element, block.read(stored)))
    assert torch.equal(moved["1.correction"], stored["1.correction"][element.experts])
    hidden = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    outputs = [
        feed_forward(block.read(x), torch.nn.functional.silu, hidden, scores=torch.sigmoid) for x in (stored, moved)
    ]
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
    found = match_feedforward(block.group, block.read(stored), block.read(moved))
    back = block.write(moved, found.moved)
    assert all(torch.allclose(back[name], x, rtol=0, atol=1e-10) for name, x in stored.items())


def test_a_missing_or_further_expert_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    name = "model.layers.0.mlp.experts.{}.up_proj.weight"
    for index, words in ((4, "is missing"), (5, "is unexpected in a feed-forward module")):
        folder = tiny("qwen3_moe").save(tmp_path / str(index))
        stored = load_file(folder / "model.safetensors")
        weight = stored.pop(name.format(4))
        save_file(
            stored | ({} if index == 4 else {name.format(i): weight.clone() for i in (4, 5)}),
            folder / "model.safetensors",
            {"format": "pt"},
        )
        with open_model(folder) as found, pytest.raises(TensorError, match=words) as caught:
            found.feedforwards()
        assert name.format(index) in str(caught.value)


def test_activations():
    with pytest.raises(ArchitectureError, match="unknown to transformers"):
        activation_functions("clamped")


def test_labels_of_blocks():
    assert labels([0, 0, 1, 2, 2, 2]) == ["0", "0.1", "1", "2", "2.1", "2.2"]
