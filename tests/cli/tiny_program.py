"""Tiny checkpoints on disk, ways to break them, and the program in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

GPT2 = {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 40}
LLAMA = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1}


def gpt2(folder: Path, seed: int = 0, **changes: int) -> Path:
    """A random GPT-2 on disk."""
    return _saved(transformers.GPT2LMHeadModel, transformers.GPT2Config(**{**GPT2, **_TOKENS, **changes}), folder, seed)


def _saved(architecture: Any, config: Any, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture(config)
        for parameter in model.parameters():
            parameter.data.normal_(0.0, 0.4)
    model.save_pretrained(folder)
    return folder


def llama(folder: Path, seed: int = 0) -> Path:
    """A random Llama with grouped queries on disk."""
    return _saved(transformers.LlamaForCausalLM, transformers.LlamaConfig(**LLAMA, **_TOKENS), folder, seed)


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "isobasin", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """This process's variables without those that change what is printed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "ISOBASIN_DEBUG")}
    # What the fixtures' own process has set must not be what keeps the program's process quiet.
    kept = {k: v for k, v in kept.items() if not k.startswith(("HF_HUB_DISABLE_P", "HF_HUB_VERB", "TRANSFORMERS_"))}
    return {**kept, "HF_HUB_OFFLINE": "1", **more}


def run_process(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(**more), timeout=120, check=False
    )
