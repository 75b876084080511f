"""Every family against its transformers model: same weights, same attention, same group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from expected_groups import GROUPS
from reference_attention import Tables, attention, random_move
from safetensors.torch import save_file
from tiny_models import CASES, Case, Run, case, observed, save
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.description import Description
from isobasin.architectures.resolve import specification
from isobasin.architectures.schema import Specification
from isobasin.loading import load
from isobasin.symmetries.groups import BilinearGroup
from isobasin.symmetries.weights import AttentionWeights


@dataclass(frozen=True)
class Saved:
    """A tiny model and its checkpoint."""

    case: Case
    model: Any
    folder: Path
    tensors: dict[str, Tensor]
    specification: Specification
    observed: list[Run]
    tables: dict[int, Tables]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case, bool], Saved]:
    """Each model is built once for all tests here."""
    made: dict[tuple[str, bool], Saved] = {}

    def get(case: Case, base: bool = False) -> Saved:
        if (str(case), base) not in made:
            folder = tmp_path_factory.mktemp(str(case))
            model = case.model(base=base)
            config, shapes, tensors = save(model, folder)
            resolved = specification(Description(config, shapes), source="tiny")
            turning = [block.layer for block in resolved.attention[:2] if block.group.rotary.planes]
            tables = {layer: case.scored.tables(model, layer) for layer in turning}
            runs = observed(case, model)
            made[str(case), base] = Saved(case, model, folder, tensors, resolved, runs, tables)
        return made[str(case), base]

    return get


def error(
    saved: Saved,
    block: AttentionBlock,
    change: Callable[[AttentionWeights], AttentionWeights] = lambda weights: weights,
) -> float:
    """Largest difference between transformers' attention and ours, over the whole output of a layer."""
    weights = change(block.read(saved.tensors))
    run, scored = saved.observed[block.layer], saved.case.scored
    causal = saved.case.causal if scored.causal_in is None else block.stack in scored.causal_in
    scored = scored.beside.get(block.stack, scored)
    facts: dict[str, Any] = {"causal": causal, "memory": run.memory, **scored.scores(saved.case.config)}
    if scored.bias is not None:
        facts["bias"] = scored.bias(weights, causal)
    ours = attention(weights, block.group, run.hidden, saved.tables.get(block.layer), **facts)
    assert ours.shape == run.output.shape
    assert run.output.abs().max() > 0.1
    return (ours - run.output).abs().max().item()


# Base models have no prefix; that doesn't depend on the variant.
@pytest.mark.parametrize(
    ("case", "base"),
    [pytest.param(c, False, id=str(c)) for c in CASES]
    + [pytest.param(c, True, id=f"{c}-base") for c in CASES if not c.variant],
)
def test_canonical_weights_compute_what_the_model_computes(case, base, saved):
    tiny = saved(case, base)
    assert tiny.specification.model_type == case.model_type
    assert [block.layer for block in tiny.specification.attention] == list(range(len(tiny.observed)))
    assert len(tiny.observed) >= 2
    for block in tiny.specification.attention:
        assert error(tiny, block) < case.tolerance


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in GROUPS], ids=str)
def test_group(case, saved):
    """Others are held by docs/families.md, and by their certificates."""
    groups = GROUPS[str(case)]
    blocks = saved(case).specification.attention
    for block, expected in zip(blocks, groups if isinstance(groups, tuple) else (groups,) * len(blocks), strict=True):
        assert block.group == expected
        assert block.width == (64 if block.stack == "stage 1" else 32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_written_move_leaves_the_model_unchanged(case, saved, tmp_path):
    """Read, move by a random element of the group, write, load in transformers: equal in every output."""
    tiny = saved(case)
    generator = torch.Generator().manual_seed(2)
    new = dict(tiny.tensors)
    tied = {index: indices[0] for indices in tiny.specification.ties for index in indices}
    for index, block in enumerate(tiny.specification.attention):
        heads = 2 + tied.get(index, index)
        moved = block.write(tiny.tensors, random_move(block.read(tiny.tensors), block.group, generator, heads))
        assert set(moved) == set(block.shapes())
        weights = [projection.weight for projection in block.projections.values()]
        assert all((moved[name] - tiny.tensors[name]).abs().max() > 0.01 for name in weights)
        new.update(moved)
    tiny.model.config.save_pretrained(tmp_path)
    save_file(new, tmp_path / "model.safetensors", metadata={"format": "pt"})
    models = [load(folder, torch.float64) for folder in (tiny.folder, tmp_path)]
    with torch.no_grad():
        before, after = (model(**case.inputs, output_hidden_states=True) for model in models)
    before, after = (next(t for t in returned.values() if isinstance(t, Tensor)) for returned in (before, after))
    assert before.abs().max() > 0.01
    torch.testing.assert_close(after, before, rtol=0, atol=max(case.tolerance * 10, 1e-9))


def queries_and_keys(weights: AttentionWeights) -> dict[str, Tensor]:
    """What LayerNorm subtracts means from, in models whose heads have one."""
    return {n: x for n, x in weights.tensors().items() if n in ("query", "key", "query_bias", "key_bias")}


@pytest.mark.parametrize("case", [c for c in CASES if "qk-norm" in c.variant], ids=str)
def test_means_that_layer_norm_takes_away_are_not_read(case, saved):
    """Not seen by transformers, not read, and left where they are by a move that permutes heads."""
    tiny = saved(case)
    generator = torch.Generator().manual_seed(5)
    for block in tiny.specification.attention:
        raw = block._read(tiny.tensors, "cpu", torch.float64)
        weights = block.read(tiny.tensors)
        read = queries_and_keys(weights)
        assert all(x.mean(-1).abs().max() < 1e-15 for x in read.values())
        for name, x in queries_and_keys(raw).items():
            assert (x - read[name]).abs().max() > 0.01
            assert (x - read[name]).std(-1).max() < 1e-15
        moved = block.write(tiny.tensors, random_move(weights, block.group, generator))
        for name, x in queries_and_keys(block._read(moved, "cpu", torch.float64)).items():
            torch.testing.assert_close(x.mean(-1), queries_and_keys(raw)[name].mean(-1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_write_inverts_read(case, saved):
    tiny = saved(case)
    generator = torch.Generator().manual_seed(3)
    for block in tiny.specification.attention:
        weights = block.read(tiny.tensors)
        written = block.write(tiny.tensors, weights)
        assert set(written) == set(block.shapes())
        for name, tensor in written.items():
            # Gains that are stored without a 1, what latents' gains are folded into, and queries and keys without
            # their mean go through one rounding.
            rounding = 1e-15 * bool(block.gain_offset or block.group.latent or block.group.means)
            torch.testing.assert_close(tensor, tiny.tensors[name], rtol=0, atol=rounding)
            assert tensor.is_contiguous()
        other = weights.map(lambda t: torch.randn(t.shape, generator=generator, dtype=t.dtype))
        if block.group.means:
            other = replace(other, **{role: x - x.mean(-1, True) for role, x in queries_and_keys(other).items()})
        original = {name: tensor.clone() for name, tensor in tiny.tensors.items()}
        again = block.read(block.write(tiny.tensors, other))
        assert other.tensors().keys() == again.tensors().keys()
        for name, t in other.tensors().items():
            torch.testing.assert_close(again.tensors()[name], t, rtol=0, atol=rounding)
        assert all(torch.equal(tiny.tensors[name], original[name]) for name in original)


def test_write_has_the_weights_type(saved):
    tiny = saved(case("gpt2"))
    block = tiny.specification.attention[0]
    half = {name: tensor.to(torch.bfloat16) for name, tensor in tiny.tensors.items()}
    weights = block.read(half)
    assert weights.query.dtype == torch.float64
    written = block.write(half, weights)
    assert all(t.dtype == torch.float64 and torch.equal(t, half[name].double()) for name, t in written.items())


def test_write_refuses_to_drop_or_invent_a_bias(saved):
    block, tensors = saved(case("bert")).specification.attention[0], saved(case("bert")).tensors
    with pytest.raises(ValueError, match="key bias"):
        block.write(tensors, replace(block.read(tensors), key_bias=None))
    block, tensors = saved(case("qwen2")).specification.attention[0], saved(case("qwen2")).tensors
    with pytest.raises(ValueError, match="output bias"):
        block.write(tensors, replace(block.read(tensors), output_bias=torch.zeros(32)))


# The comparison above must be able to fail: each of these mistakes makes a visible difference.


def swapped_planes(block: AttentionBlock) -> AttentionBlock:
    """The same number of rotated features in the other order."""
    group, planes = block.group, block.group.rotary.planes
    half = len(planes)
    interleaved = tuple((2 * j, 2 * j + 1) for j in range(half))
    other = interleaved if planes != interleaved else tuple((j, j + half) for j in range(half))
    pair = BilinearGroup(8, other)
    if group.latent is not None:
        return replace(block, group=replace(group, latent=replace(group.latent, rotary=pair)))
    return replace(block, group=replace(group, query_key=pair))


def swapped_parts(block: AttentionBlock) -> AttentionBlock:
    return replace(block, query=block.value, value=block.query)


def swapped_slots(block: AttentionBlock) -> AttentionBlock:
    """Keys and values, which are of one shape where there are fewer of them than queries too."""
    return replace(block, key=block.value, value=block.key)


def pattern(old: str, new: str) -> Callable[[AttentionBlock], AttentionBlock]:
    def change(block: AttentionBlock) -> AttentionBlock:
        projections = {
            role: replace(p, layout=replace(p.layout, pattern=new))
            for role, p in block.projections.items()
            if p.layout.pattern == old
        }
        assert projections
        return replace(block, **projections)

    return change


MISTAKES = [
    ("llama", swapped_planes),
    ("mistral", swapped_planes),
    ("qwen2", swapped_planes),
    ("gpt_neox", swapped_planes),
    ("gptj", swapped_planes),
    ("phi", swapped_planes),
    ("phi3", swapped_planes),
    ("cohere", swapped_planes),
    ("glm", swapped_planes),
    ("deepseek_v2", swapped_planes),
    ("deepseek_v3", swapped_planes),
    ("falcon", swapped_planes),
    ("modernbert", swapped_planes),
    ("dinov3_vit", swapped_planes),
    ("phi3", swapped_slots),
    ("falcon", swapped_slots),
    ("modernbert", swapped_slots),
    ("roformer", swapped_planes),
    ("gpt2", swapped_parts),
    ("gpt_neox", swapped_parts),
    ("bert", swapped_parts),
    ("gpt2", pattern("(head feature) width", "width (head feature)")),
    ("gpt2", pattern("width (part head feature)", "width (head part feature)")),
    ("gpt_neox", pattern("(group slot feature) width", "(slot group feature) width")),
    ("vit", pattern("(head feature) width", "(feature head) width")),
    ("vit", pattern("width (head feature)", "(head feature) width")),
]


@pytest.mark.parametrize(("model_type", "mistake"), MISTAKES)
def test_comparison_notices_a_wrong_layout(model_type, mistake, saved):
    tiny = saved(case(model_type))
    for block in tiny.specification.attention:
        assert error(tiny, mistake(block)) > 0.01


@pytest.mark.parametrize("bias", ["query_bias", "value_bias", "output_bias"])
@pytest.mark.parametrize("model_type", ["vit", "bert", "gpt2", "opt", "distilbert", "gpt_neox", "roformer"])
def test_comparison_notices_a_dropped_bias(model_type, bias, saved):
    tiny = saved(case(model_type))
    block = tiny.specification.attention[0]
    assert error(tiny, block, lambda weights: replace(weights, **{bias: None})) > 0.01


@pytest.mark.parametrize("model_type", ["qwen2", "roformer", "gpt_neox"])
def test_key_bias_matters_where_it_rotates(model_type, saved):
    tiny = saved(case(model_type))
    block = tiny.specification.attention[0]
    assert error(tiny, block, lambda weights: replace(weights, key_bias=None)) > 0.01


def test_value_bias_is_not_free_where_values_rotate(saved):
    tiny = saved(next(c for c in CASES if str(c) == "roformer-rotary-value"))
    block = tiny.specification.attention[0]

    def trade(weights: AttentionWeights) -> AttentionWeights:
        shift = torch.ones_like(weights.value_bias)
        traded = torch.einsum("gm,gsdm->d", shift, weights.output)
        return replace(weights, value_bias=weights.value_bias + shift, output_bias=weights.output_bias - traded)

    assert error(tiny, block, trade) > 0.01
