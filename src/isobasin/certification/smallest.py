"""The smallest model of the same kind: with it the Jacobians take seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, build, key
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.layouts import Sizes
from isobasin.architectures.registry import family, lookup
from isobasin.architectures.tiny import TinyModel

_UNITS = 12
_EXPERT_UNITS = 4
_LABELS = 8
# Wherever a configuration has them. What else it says are switches, which stay.
_SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "attention_types": [[["global", "local"], 1]],
    "vocab_size": 200,
    "decoder_vocab_size": 200,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "max_position_embeddings": 16,
    "max_target_positions": 16,
    "max_source_positions": 10,
    "num_mel_bins": 8,
    # Three patches a side: by two, planes that rotate by the place in an image turn by half turns, which hide more.
    "image_size": 12,
    "patch_size": 4,
    "num_experts_per_tok": 2,
    "topk_group": 1,
    # One for each patch.
    "mm_tokens_per_image": 9,
}
_UNIT_SIZES = ("n_inner", "d_ff", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
# Wider latents than heads, so that these use all of theirs, and narrower than the stream.
_LATENT = {"kv_lora_rank": 6, "qk_nope_head_dim": 2, "qk_rope_head_dim": 4, "v_head_dim": 3}
# An epsilon hides the scale of what is normalised, but for what it adds: so much that no rounding looks like it.
_EPSILON = 1e-2
# What the class makes again, from sizes that are other ones here.
_DERIVED = (
    *("id2label", "label2id", "model_type", "transformers_version", "architectures", "dtype", "torch_dtype"),
    *("stage_names", "out_features", "out_indices"),
)
_SIZE_ENDINGS = ("size", "dim", "inner")


def smallest(model: TinyModel) -> TinyModel:
    """The same model with the smallest sizes that keep its groups of the same kind.

    Grouped queries stay grouped, heads that don't share the width stay narrower or wider than their share, and the same
    share of features rotates, in at least two planes or beside two features that don't rotate.
    """
    return replace(model, config=_shrunk(build(model.model_type, model.config))).but(model.certified)


def _shrunk(config: Config) -> dict[str, Any]:
    """The entries of such a configuration; those of a model with several towers have one for each."""
    entries = {name: x for name, x in config.to_diff_dict().items() if name not in _DERIVED}
    nested = {name: getattr(config, name) for name in config.sub_configs}
    towers = {name: _shrunk(tower) for name, tower in nested.items() if lookup(tower.model_type)}
    if towers:
        return entries | {name: x for name, x in _SIZES.items() if name in entries} | towers
    entry = family(config.model_type)
    block, feedforwards = entry.blocks(config)[0], entry.feedforwards(config)
    sizes = _sizes(block)
    small = _SIZES | {
        "hidden_size": sizes.width,
        "num_attention_heads": sizes.heads,
        "decoder_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "num_kv_heads": sizes.kv_heads,
        "head_dim": sizes.features,
        "rotary_dim": round(_rotating(block) * sizes.features),
        **_units(feedforwards),
    }
    if block.group.latent is not None:
        small |= _LATENT | ({"q_lora_rank": _LATENT["kv_lora_rank"] + 1} if block.group.latent.query else {})
    if entries.get("heads_per_layer") is not None:
        small["heads_per_layer"] = [sizes.heads, 2 * sizes.heads]
    if block.table is not None:
        del small["max_position_embeddings"]  # only long texts read all of a table
    known = {key(config, name): x for name, x in small.items() if key(config, name) in entries}
    # Families have more names for these two than could be listed.
    by_value = {block.width: sizes.width} | ({feedforwards[0].group.units: small["d_ff"]} if feedforwards else {})
    alike = {
        n: by_value[x] for n, x in entries.items() if n.endswith(_SIZE_ENDINGS) and type(x) is int and x in by_value
    }
    epsilons = dict.fromkeys((name for name in entries if "_eps" in name), _EPSILON)
    return {**_shorter(entries, config), **epsilons, **alike, **known, "num_labels": _LABELS}


def _units(feedforwards: Sequence[FeedForward]) -> dict[str, int]:
    """Sizes of the feed-forward blocks: fewer units in experts, of which there are few in as many groups as before.

    Where layers without experts come first, one of the two layers has none.
    """
    found = [block.group.expert_groups for block in feedforwards if block.group.experts]
    groups = max(found, default=1)
    experts = 3 if groups == 1 else 2 * groups
    dense = int(feedforwards[0].group.experts is None) if found else 2
    units = dict.fromkeys(_UNIT_SIZES, _EXPERT_UNITS if found else _UNITS)
    counts = {"num_experts": experts, "num_local_experts": experts, "n_group": groups, "first_k_dense_replace": dense}
    return units | counts


def _sizes(block: AttentionBlock) -> Sizes:
    """The smallest sizes of a block of the same kind."""
    group = block.group
    share = _rotating(block)
    features = next(n for n in (4, 8, 16, 32, 64) if share * n % 2 == 0) if 0 < share < 1 else 4
    if group.queries_per_kv == 1:
        heads, groups = 2, 2
    else:
        heads, groups = (4, 2) if group.kv_heads > 1 and features == 4 else (2, 1)
    shared = block.width - group.heads * group.query_key.features
    return Sizes(heads * (features + (shared > 0) - (shared < 0)), heads, groups, features)


def _rotating(block: AttentionBlock) -> float:
    """The share of a head's features that rotates."""
    return 2 * len(block.group.query_key.planes) / block.group.query_key.features


def _shorter(entries: dict[str, Any], config: Config) -> dict[str, Any]:
    """The entries with lists of something per layer cut to the first and the last one."""
    layers = config.num_hidden_layers
    return {n: [x[0], x[-1]] if isinstance(x, list) and len(x) == layers else x for n, x in entries.items()}
