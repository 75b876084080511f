"""The attention group of every case, written by hand."""

from __future__ import annotations

from typing import Any

from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup, QueryKeyNorm


def group(
    planes: tuple[tuple[int, int], ...] = (),
    *,
    groups: int = 4,
    queries: int = 1,
    features: int = 8,
    key: bool = False,
    value: bool = False,
    values: tuple[tuple[int, int], ...] = (),
    **scores: Any,
) -> AttentionGroup:
    pairs = BilinearGroup(features, planes), BilinearGroup(features, values)
    return AttentionGroup(groups, queries, *pairs, key, value, **scores)


HALF_8 = ((0, 4), (1, 5), (2, 6), (3, 7))
HALF_12 = tuple((j, j + 6) for j in range(6))
HALF_4 = ((0, 2), (1, 3))
PAIRS_8 = ((0, 1), (2, 3), (4, 5), (6, 7))
FREE = group(key=True, value=True)
# T5's entry for a key 0 places after the query, which is never read, is a constant by itself.
ENCODER = (0, 0, 0, 0, 1, 0, 0, 0)


def regrouped(heads: int) -> AttentionGroup:
    return group(groups=heads, features=32 // heads, key=True, value=True)


def latent(query: int, planes: tuple[tuple[int, int], ...]) -> AttentionGroup:
    shared = LatentGroup(query, 12, BilinearGroup(8, planes))
    return AttentionGroup(4, 1, BilinearGroup(4), BilinearGroup(6), latent=shared)


GROUPS = {
    "vit": FREE,
    "vit-no-qkv-bias": group(),
    "deit": FREE,
    "bert": FREE,
    "bert-decoder": FREE,
    "roberta": FREE,
    "distilbert": FREE,
    **dict.fromkeys(("electra", "xlm-roberta", "albert", "albert-inner", "dinov2", "dinov2-swiglu"), FREE),
    **dict.fromkeys(("clip", "clip_text_model", "clip_vision_model"), FREE),
    **dict.fromkeys(("siglip", "siglip_text_model", "siglip_vision_model"), FREE),
    "clip-unlike": (FREE, FREE, regrouped(8), regrouped(8)),
    **dict.fromkeys(("bart", "marian"), FREE),
    "bart-unlike": (FREE, FREE, FREE, regrouped(8), regrouped(8)),
    "whisper": group(value=True),
    "t5": (*[group(table=ENCODER)] * 2, *[group(table=(0,) * 8)] * 2, *[group()] * 2),
    "t5-gated": (
        *[group(features=12, table=ENCODER)] * 2,
        *[group(features=12, table=(0,) * 8)] * 3,
        *[group(features=12)] * 3,
    ),
    "t5-encoder": group(table=ENCODER),
    "mpnet": group(key=True, value=True, table=(*[0] * 16, 1, *[0] * 15)),
    **dict.fromkeys(("beit", "beit-shared"), group(value=True, table=(*[0] * 9, 1, 0, 1))),
    "beit-absolute": group(value=True),
    "swin": (*[group(key=True, value=True, table=(0,) * 9)] * 2, group(groups=8, key=True, value=True, table=(0,) * 9)),
    "swin-no-qkv-bias": (*[group(table=(0,) * 9)] * 2, group(groups=8, table=(0,) * 9)),
    "gpt2": FREE,
    "gpt_bigcode": group(groups=1, queries=4, key=True, value=True),
    "gpt_bigcode-multi-head": FREE,
    "gpt_neo": group(),
    "opt": FREE,
    "opt-no-bias": group(),
    "llama": group(HALF_8, groups=2, queries=2),
    "llama-biases": group(HALF_8, groups=2, queries=2, value=True),
    "llama-head-dim": group(HALF_12, groups=2, queries=2, features=12),
    "llama-multi-head": group(HALF_8),
    "llama-scaled": group(HALF_8, groups=2, queries=2),
    "mistral": group(HALF_8, groups=2, queries=2),
    "qwen2": group(HALF_8, groups=2, queries=2),
    "qwen2-head-dim": group(((0, 3), (1, 4), (2, 5)), groups=2, queries=2, features=6),
    "gpt_neox": group(HALF_4, key=True, value=True),
    "gpt_neox-no-bias": group(HALF_4),
    "gpt_neox-whole": group(HALF_8, value=True),
    "gpt_neox-scaled": group(HALF_4, key=True, value=True),
    "gptj": group(PAIRS_8[:2]),
    "gptj-whole": group(PAIRS_8),
    "roformer": group(PAIRS_8, value=True),
    "roformer-rotary-value": group(PAIRS_8, values=PAIRS_8),
    "mixtral": group(HALF_8, groups=2, queries=2),
    "qwen2_moe": group(HALF_8, groups=2, queries=2),
    "qwen2_moe-no-bias": group(HALF_8, groups=2, queries=2),
    "gemma": group(HALF_8, groups=2, queries=2),
    "gemma-head-dim": group(HALF_12, groups=2, queries=2, features=12),
    "gemma2": group(HALF_8, groups=2, queries=2),
    "gemma2-biases": group(HALF_8, groups=2, queries=2, value=True),
    "phi": group(HALF_4, groups=2, queries=2, key=True, value=True),
    "phi-whole": group(HALF_8, groups=2, queries=2, value=True),
    "phi3": group(HALF_8, groups=2, queries=2),
    "phi3-partial": group(HALF_4, groups=2, queries=2),
    "olmo": group(HALF_8, groups=2, queries=2),
    "olmo-biases": group(HALF_8, groups=2, queries=2, value=True),
    "stablelm": group(((0, 1),), groups=2, queries=2),
    "stablelm-qk-norm": group(((0, 1),), groups=2, queries=2, norm=QueryKeyNorm.centred, means=32),
    "stablelm-qk-norm-biases": group(((0, 1),), groups=2, queries=2, norm=QueryKeyNorm.centred, means=33),
    "stablelm-biases": group(((0, 1),), groups=2, queries=2, key=True),
    "starcoder2": group(HALF_8, groups=2, queries=2, value=True),
    "starcoder2-no-bias": group(HALF_8, groups=2, queries=2),
    "cohere": group(PAIRS_8, groups=2, queries=2),
    "cohere-qk-norm": group(PAIRS_8, groups=2, queries=2, norm=QueryKeyNorm.centred, means=32),
    "cohere-biases": group(PAIRS_8, groups=2, queries=2, value=True),
    "falcon": group(HALF_8, groups=1, queries=4),
    "falcon-grouped": group(HALF_8, groups=2, queries=2),
    "falcon-multi-head": group(HALF_8, value=True),
    "falcon-alibi": group(key=True, value=True, permuted=False),
    "falcon-alibi-shared": group(groups=1, queries=4, permuted=False),
    "smollm3": (group(HALF_8, groups=2, queries=2), group(groups=2, queries=2)),
    "smollm3-biases": (
        group(HALF_8, groups=2, queries=2, value=True),
        group(groups=2, queries=2, key=True, value=True),
    ),
    "glm": group(PAIRS_8[:2], groups=2, queries=2, key=True),
    "glm-no-bias": group(PAIRS_8[:2], groups=2, queries=2),
    "granite": group(HALF_8, groups=2, queries=2),
    "granite-biases": group(HALF_8, groups=2, queries=2, value=True),
    "modernbert": group(HALF_8),
    "modernbert-biases": group(HALF_8, value=True),
    "dinov3_vit": group(HALF_8, value=True),
    "dinov3_vit-biases": group(HALF_8, value=True),
    "dinov3_vit-no-bias": group(HALF_8),
    "qwen3": group(HALF_8, groups=2, queries=2, norm=QueryKeyNorm.head),
    "qwen3_moe": group(HALF_8, groups=2, queries=2, norm=QueryKeyNorm.head),
    "olmo2": group(HALF_8, groups=2, queries=2, norm=QueryKeyNorm.full),
    "gemma3_text": group(HALF_8, groups=2, queries=2, norm=QueryKeyNorm.head),
    "gemma3": (*[group(HALF_8, groups=2, queries=2, norm=QueryKeyNorm.head)] * 2, FREE, FREE),
    "gpt_oss": group(HALF_8, groups=2, queries=2, sink=True),
    "deepseek_v2": latent(0, PAIRS_8),
    "deepseek_v2-query-latent": latent(14, PAIRS_8),
    "deepseek_v2-groups": latent(0, PAIRS_8),
    "deepseek_v3": latent(14, PAIRS_8),
    "deepseek_v3-biases": latent(14, HALF_8),
    "deepseek_v3-dense": latent(0, PAIRS_8),
    "bloom": group(key=True, value=True, permuted=False),
    "mpt": group(permuted=False),
    "isobasin_vit": group(HALF_8, value=True),
    "isobasin_vit-absolute": (regrouped(8), FREE),
    "isobasin_bert": (regrouped(8), FREE),
    "isobasin_gpt2": (regrouped(2), regrouped(8)),
}
