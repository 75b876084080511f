"""Certificates of families that are right, and of planted mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Any

import pytest

import isobasin
from isobasin.architectures import building
from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import build
from isobasin.architectures.examples import EXAMPLES, tiny, variant
from isobasin.architectures.layouts import interleaved_planes
from isobasin.architectures.registry import family
from isobasin.architectures.tiny import TinyModel
from isobasin.certification import loaded
from isobasin.certification.certify import Certificate, certify, variants
from isobasin.certification.smallest import smallest
from isobasin.errors import ArchitectureError
from isobasin.symmetries.feedforward import FeedForwardGroup, Scale
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, QueryKeyNorm
from isobasin.verbs.families import attention_formula, feedforward_formula

# By hand, of attention and feed-forward blocks: the group, and what normalisations hide besides: columns and bias of
# the output projection, and rows of what reads. Two heads of four features; grouped queries have two groups of two.
COUNTS = {
    "gpt2": (2 * (16 + 16 + 4 + 4), 0, 8 + 1 + 24, 12 + 1 + 12),
    "bert": (2 * (16 + 16 + 4 + 4), 0, 8 + 1 + 24, 12 + 1 + 12),
    "gpt_neox": (2 * (2 + 4 + 16 + 2 + 4), 0, 8 + 1 + 24, 12 + 1 + 12),
    # No biases: keys that don't rotate are free, and one combination of values moves along the mean alone.
    "gptj": (2 * (2 + 4 + 16), 0, 8 + 4 + 1, 12 + 1 + 12),
    "llama": (2 * (4 + 16), 12, 0, 0),
    "qwen2": (2 * (4 + 16), 12, 0, 0),
}
Planted = Callable[..., Certificate]

# Biases that are free, partly rotated heads, grouped ones, normalised ones, tables; planted groups are others, and for
# experts `test_experts_that_few_tokens_choose_are_seen` stands.
FIVE = ("gpt2", "gpt_neox", "llama", "qwen3", "t5-encoder")


def in_suite(names: Iterable[str]) -> pytest.MarkDecorator:
    """Those of some models that are certified in every run."""
    return pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n not in FIVE)) for n in names])


@in_suite(COUNTS)
def test_families_are_exact(name: str):
    found = certify(name)
    assert found.exact
    assert found.made
    assert [(block.kind, block.layer) for block in found.blocks] == [
        (kind, layer) for kind in ("attention", "feed-forward") for layer in (0, 1)
    ]
    attention, units, hidden, hidden_units = COUNTS[name]
    for block in found.blocks:
        ours, beside = (attention, hidden) if block.kind == "attention" else (units, hidden_units)
        assert block.stated == block.measured == ours
        assert block.hidden == block.expected == beside
        assert block.verdict == "exact"
        assert min(block.gap, block.hidden_gap) > 1e6


# By hand, the dimensions of attention and feed-forward groups of one family for every other kind; None: not known.
KINDS = {
    "qwen3": (2 * 16 + 2, 12),  # gains of two planes trade, for all heads
    "gemma3_text": (2 * 16 + 2, 12),  # and lack a 1 as they are stored
    "olmo2": (2 * (16 + 2), 12),  # for each key/value head
    "cohere-qk-norm": (2 * (16 + 2 + 3 * 16), 12),  # means of two queries and their key, for every input
    "stablelm-qk-norm-biases": (64 + 7 + 3 * 17, 12),  # and their biases; one plane of 8 features
    "gpt_oss": (2 * (4 + 16), 16 + 1),  # a row of the router, with a bias
    "mixtral": (2 * (4 + 16), 3 * 4 + 16),
    "bloom": (2 * (16 + 16 + 4 + 4), 0),
    "clip": (2 * (16 + 16 + 4 + 4), 0),
    "whisper": (2 * (16 + 16 + 4), 0),
    "dinov3_vit": (2 * (4 + 16 + 4), 0),
    "albert": (2 * (16 + 16 + 4 + 4), 0),
    "falcon-multi-head": (2 * (4 + 16 + 4), 0),
    "t5-encoder": (2 * (16 + 16 + 2), 12),  # a table of one constant and one entry that nothing reads
    "beit-shared": (2 * (16 + 16 + 4 + 2), 0),  # one table for all layers, with two constants
}


@in_suite(KINDS)
def test_families_of_every_kind_are_exact(name: str):
    """Of other kinds in `make test-all`, of all families in `make certify`."""
    found = certify(name)
    assert found.exact
    attention, units = KINDS[name]
    assert {block.measured for block in found.blocks if block.kind == "attention"} == {attention}
    assert {block.measured for block in found.blocks if block.kind != "attention"} == ({units} - {None})
    assert min(min(block.gap, block.hidden_gap) for block in found.blocks) > 1e8


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    """The certificate of a model whose attention's group is stated otherwise."""

    def with_group(name: str, change: Callable[[Any], Any]) -> Certificate:
        right = building.attention_group
        monkeypatch.setattr(building, "attention_group", lambda *args, **options: change(right(*args, **options)))
        return certify(name)

    return with_group


def features(group: AttentionGroup) -> int:
    return group.query_key.features


def test_a_group_that_is_too_small(planted: Planted):
    found = planted("bert", lambda group: replace(group, key_shift=False))
    assert not found.exact
    for block in found.blocks[:2]:
        assert (block.stated, block.measured, block.missing, block.wrong) == (72, 80, 8, 0)
        assert block.verdict == "too small: 8 symmetries missing"
    assert all(block.exact for block in found.blocks[2:])


def test_an_entry_of_a_table_that_nothing_reads(planted: Planted):
    found = planted("t5-encoder", lambda group: replace(group, table=tuple(0 for _ in group.table)))
    for block in found.blocks[:2]:
        assert (block.stated, block.measured, block.missing, block.wrong) == (66, 68, 2, 0)


def test_gains_of_which_too_few_trade(planted: Planted):
    found = planted("olmo2", lambda group: replace(group, norm=QueryKeyNorm.head))
    for block in found.blocks[:2]:
        assert (block.stated, block.measured, block.missing, block.wrong) == (34, 36, 2, 0)


def test_means_that_are_not_stated(planted: Planted):
    found = planted("cohere-qk-norm", lambda group: replace(group, means=0))
    for block in found.blocks[:2]:
        assert (block.stated, block.measured, block.missing, block.wrong) == (36, 132, 96, 0)


def test_a_group_that_is_too_large(planted: Planted):
    """All of GL(4) on queries and keys of which two features rotate, and their key bias."""
    found = planted("gpt_neox", lambda group: replace(group, query_key=BilinearGroup(features(group))))
    for block in found.blocks[:2]:
        assert (block.stated, block.measured, block.missing, block.wrong) == (80, 56, 0, 24)
        assert block.verdict == "too large: 24 stated ones change the function"


def test_a_group_of_the_right_dimension_that_is_another(planted: Planted):
    """Features that rotate in another order: the counts are equal, the directions are not."""

    def interleaved(group: AttentionGroup) -> AttentionGroup:
        return replace(group, query_key=BilinearGroup(features(group), interleaved_planes(features(group))))

    found = planted("gpt_neox-whole", interleaved)
    for block in found.blocks[:2]:
        assert block.stated == block.measured
        assert block.missing == block.wrong > 0
        assert "too small" in block.verdict
        assert "too large" in block.verdict


@pytest.mark.parametrize(
    ("name", "scale", "missing", "wrong"), [("opt", Scale.none, 12, 0), ("distilbert", Scale.positive, 0, 12)]
)
def test_wrong_scales_of_units(name: str, scale: Scale, missing: int, wrong: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "feedforward_group", lambda units, *_, **__: FeedForwardGroup(units, scale, None, 1))
    found = certify(name)
    assert all(block.exact for block in found.blocks[:2])
    assert all((block.missing, block.wrong) == (missing, wrong) for block in found.blocks[2:])


def test_experts_that_few_tokens_choose_are_seen():
    """At this seed a few more tokens are needed than there are values."""
    assert certify("deepseek_v3-biases", seed=1).exact


def test_small_models_are_certified_at_their_own_weights():
    model = smallest(tiny("bert")).build(3)
    found = certify(model)
    assert not found.made
    assert found.exact
    # A value feature that is no more read by anything: its column and its bias are free.
    model.bert.encoder.layer[1].attention.output.dense.weight.data[:, 0] = 0
    found = isobasin.certify(model)
    assert [block.exact for block in found.blocks] == [True, False, True, True]
    assert found.blocks[1].missing > 0


def test_large_models_are_certified_by_a_small_one_with_the_same_switches():
    model = tiny("llama", config={"attention_bias": True, "hidden_size": 64, "num_key_value_heads": 4}).build()
    found = certify(model)
    assert found.made
    assert found.exact
    assert found.blocks[0].group == small_block(tiny("llama", config=model.config.to_diff_dict())).group
    assert str(found.blocks[0].group) == "(QK (C*)^2 × VO GL(4) × R^4 (value bias))^2 ⋊ S_2"


def small_block(model: TinyModel) -> AttentionBlock:
    """The first attention block of the smallest model of the same kind."""
    small = smallest(model)
    return family(small.model_type).blocks(build(small.model_type, small.config))[0]


@pytest.mark.parametrize(
    ("model", "group"),
    [
        (variant("llama"), "(QK (C*)^2 × VO GL(4))^2 ⋊ S_2 wr S_2"),
        (tiny("llama", config={"num_key_value_heads": 1}), "(QK (C*)^2 × VO GL(4))^1 ⋊ S_2 wr S_1"),
        (variant("llama-multi-head"), "(QK (C*)^2 × VO GL(4))^2 ⋊ S_2"),
        (variant("gptj-whole"), "(QK (C*)^2 × VO GL(4))^2 ⋊ S_2"),
        (tiny("gptj", config={"rotary_dim": 2}), "(QK GL(6) × (C*)^1 × VO GL(8))^2 ⋊ S_2"),
        (variant("vit-no-qkv-bias"), "(QK GL(4) × VO GL(4))^2 ⋊ S_2"),
    ],
    ids=["grouped", "one-group", "multi-head", "rotary", "quarter-rotary", "biases"],
)
def test_small_models_are_of_the_same_kind(model: TinyModel, group: str):
    assert str(small_block(model).group) == group


@pytest.mark.parametrize("model", EXAMPLES, ids=str)
def test_small_models_have_groups_of_the_same_kinds(model: TinyModel):
    """But for the sizes, in every stack; and they are small."""

    def formulas(of: TinyModel) -> set[str]:
        entry, config = family(of.model_type), build(of.model_type, of.config)
        attention = {attention_formula(block.group) for block in entry.blocks(config)}
        return attention | {feedforward_formula(block) for block in entry.feedforwards(config)}

    small = smallest(model)
    assert formulas(small) == formulas(model)
    config = build(small.model_type, small.config)
    for block in (*family(small.model_type).blocks(config), *family(small.model_type).feedforwards(config)):
        assert sum(map(prod, block.shapes().values())) <= 1200


@pytest.mark.parametrize(
    "model_type",
    [
        *("bart", "beit", "clip", "gpt_neo", "marian", "mixtral", "mpnet", "qwen3_moe", "smollm3", "swin", "t5"),
        *("deepseek_v2", "deepseek_v3", "gemma3", "whisper"),
    ],
)
def test_checkpoints_of_usual_sizes_become_small(model_type: str):
    """The default sizes of their configurations."""
    # Without this number, which has no default, DeepSeek-V2 can't choose experts.
    config = {"num_experts_per_tok": 6} if model_type == "deepseek_v2" else {}
    small = smallest(replace(tiny(model_type), config=config))
    model = small.build()
    assert sum(parameter.numel() for parameter in model.parameters()) < 40_000


@pytest.mark.parametrize(("name", "more"), [("llama-head-dim", True), ("qwen2-head-dim", False), ("llama", None)])
def test_heads_stay_wider_or_narrower_than_their_share(name: str, more: bool | None):
    block = small_block(variant(name))
    shared = block.group.heads * block.group.query_key.features
    assert shared == block.width if more is None else (shared > block.width) == more


def test_values_that_are_others_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch):
    right = loaded.load

    def doubled(*args: Any) -> Any:
        module = right(*args)
        module.bert.encoder.layer[0].attention.self.query.weight.data *= 2
        return module

    monkeypatch.setattr(loaded, "load", doubled)
    with pytest.raises(ArchitectureError, match=r"other values of the tensors of bert\.encoder\.layer\.0\.attention"):
        certify("bert")


def test_variants_by_name():
    assert variants("gpt_neox") == ["gpt_neox", "gpt_neox-no-bias", "gpt_neox-whole", "gpt_neox-scaled"]
    with pytest.raises(ArchitectureError, match="did you mean gpt2"):
        variants("gptt2")
