"""Qwen3-MoE: the attention of Qwen3. Layers have experts or dense feed-forward blocks, which aren't moved."""

from isobasin.architectures.families import llama, qwen3
from isobasin.architectures.family import Family

FAMILY = Family("qwen3_moe", llama.PREFIXES, qwen3.blocks, llama.BUFFERS)
