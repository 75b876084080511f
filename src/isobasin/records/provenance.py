"""Which software and which weights a record comes from."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from importlib import metadata

import torch

from isobasin.checkpoints import Checkpoint

_LIBRARIES = ("torch", "transformers", "datasets", "tokenizers", "accelerate", "safetensors", "numpy", "scipy")
# Entries of config.json that change when the same model is saved again.
_BOOKKEEPING = ("_name_or_path", "torch_dtype", "transformers_version")


@cache
def versions() -> dict[str, str]:
    """Of Python and of every library that a result depends on."""
    found = {"python": platform.python_version()}
    for library in ("isobasin", *_LIBRARIES):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def model_sha256(checkpoint: Checkpoint) -> str:
    """SHA-256 of a checkpoint's configuration and of all its tensors, by name; a tensor at a time."""
    config = {key: value for key, value in checkpoint.config.items() if key not in _BOOKKEEPING}
    found = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.read([name])[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
