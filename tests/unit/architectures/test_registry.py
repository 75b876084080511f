"""The registry: what is in it, and what it refuses."""

from __future__ import annotations

import pytest

from isobasin.architectures.registry import families, family, register
from isobasin.errors import ArchitectureError


def test_all_families_are_there():
    encoders = ["albert", "bert", "deit", "dinov2", "dinov3_vit", "distilbert", "electra", "modernbert", "roberta"]
    encoders += ["roformer", "vit"]
    decoders = ["gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral", "opt", "qwen2"]
    decoders += ["cohere", "falcon", "gemma", "gemma2", "glm", "granite", "mixtral", "olmo", "phi", "phi3"]
    decoders += ["qwen2_moe", "smollm3", "stablelm", "starcoder2", "bloom", "gemma3_text", "gpt_oss", "mpt", "olmo2"]
    decoders += ["deepseek_v2", "deepseek_v3", "qwen3", "qwen3_moe"]
    names = [entry.model_type for entry in families()]
    others = ["bart", "clip", "clip_text_model", "clip_vision_model", "marian", "siglip", "siglip_text_model"]
    others += ["siglip_vision_model", "whisper", "xlm-roberta", "beit", "gemma3", "mpnet", "swin", "t5"]
    own = ["isobasin_bert", "isobasin_gpt2", "isobasin_vit"]
    assert names == sorted(encoders + decoders + others + own)
    assert all(family(name).model_type == name for name in names)


def test_unknown_type_names_the_nearest_and_how_to_add_one():
    with pytest.raises(ArchitectureError) as error:
        family("lama")
    assert "'lama'" in str(error.value)
    assert "did you mean llama" in str(error.value)
    assert "CONTRIBUTING.md, Add a family" in str(error.value)


def test_unknown_type_that_is_near_to_none_lists_all():
    with pytest.raises(ArchitectureError, match=r"supported are albert, .*, vit"):
        family("zzzzzzzz")


def test_collisions_are_refused():
    with pytest.raises(ArchitectureError, match=r"two families.*'vit'"):
        register([family("vit"), family("bert"), family("vit")])


def test_registry_is_immutable():
    registry = register([family("vit")])
    with pytest.raises(TypeError):
        registry["bert"] = family("bert")  # pyright: ignore[reportIndexIssue]
