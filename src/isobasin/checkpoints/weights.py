"""Which files of a folder hold the weights: those that transformers reads, in its order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobasin.checkpoints.files import WatchedFile, inside, read_object
from isobasin.checkpoints.kinds import other_kind
from isobasin.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NAMED = "transformers_weights"
"""The entry of a configuration that names another weight file than these."""

_PICKLE = "pytorch_model.bin"
_PICKLE_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True, eq=False)
class Index:
    """The index of a sharded checkpoint.

    Attributes:
        file: Where it lies.
        name: Its name once the weights are safetensors.
        content: What it says, but for the names of shards, which are those of safetensors.
    """

    file: WatchedFile
    name: str
    content: dict[str, Any]

    @property
    def weight_map(self) -> dict[str, str]:
        """The shard of every tensor."""
        return self.content["weight_map"]


def find_weights(
    folder: Path, names: list[str], config: dict[str, Any], allow_pickle: bool
) -> tuple[dict[str, Path], Index | None]:
    """Path of every shard by its safetensors name, and the index.

    Args:
        folder: The checkpoint.
        names: Names of what is in it.
        config: Its configuration, which may name the file.
        allow_pickle: Whether pickles are taken where there is nothing else.

    Raises:
        CheckpointError: There are no weights, or the index is broken.
    """
    name = _named(folder, config) or next((n for n in (SINGLE, INDEX, _PICKLE, _PICKLE_INDEX) if n in names), None)
    if name is None:
        forms = f"{SINGLE} or {INDEX}, and with --allow-pickle {_PICKLE} or {_PICKLE_INDEX}"
        problem = f"{folder}: no weights found: supported are {forms}"
        raise CheckpointError(other_kind(folder, names) or problem)
    path = folder / name
    pickled = name in (_PICKLE, _PICKLE_INDEX)
    if pickled and not allow_pickle:
        advice = "convert it to safetensors, or pass --allow-pickle (weights_only loading)"
        raise CheckpointError(f"{path}: pickled weights: {advice}")
    if not name.endswith(".index.json"):
        return {SINGLE if pickled else name: path}, None
    file = WatchedFile.of(inside(folder, path))
    content = read_object(file)
    weight_map = _check_weight_map(path, content.get("weight_map"), ".bin" if pickled else ".safetensors")
    if not isinstance(content.get("metadata"), dict):
        raise CheckpointError(f'{path}: has no "metadata" object, which transformers reads: add "metadata": {{}}')
    paths = {_safetensors_name(shard): folder / shard for shard in sorted(set(weight_map.values()))}
    converted = {tensor: _safetensors_name(shard) for tensor, shard in weight_map.items()}
    return paths, Index(file, INDEX if pickled else name, {**content, "weight_map": converted})


def _named(folder: Path, config: dict[str, Any]) -> str | None:
    """The weight file that the configuration names, as transformers 5 lets it."""
    name = config.get(NAMED)
    if name is None:
        return None
    kinds = (".safetensors", ".safetensors.index.json")
    if not isinstance(name, str) or not name.endswith(kinds) or any(part in name for part in "/\\\0"):
        reason = f"{NAMED} is {name!r}, not a safetensors file or index beside it"
        raise CheckpointError(f"{folder / 'config.json'}: {reason}: name one, or remove the entry")
    return name


def _check_weight_map(path: Path, weight_map: object, suffix: str) -> dict[str, str]:
    """The index's map from tensors to files, if it names plain files beside the index."""
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map from tensors to files: restore the index")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(suffix):
            raise CheckpointError(f"{path}: maps {name!r} to {file!r}, not to a {suffix} file: restore it")
        if any(character in file for character in "/\\\0"):
            advice = "only files beside the index are read: put it there, and name it without a path"
            raise CheckpointError(f"{path}: maps {name!r} to {file!r}: {advice}")
    for file in sorted(set(weight_map.values())):
        if not os.path.lexists(path.parent / file):
            raise CheckpointError(f"{path}: names {file}, which is missing: download it to {path.parent}")
    return weight_map


def _safetensors_name(file: str) -> str:
    if file.endswith(".bin"):
        return file.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"
    return file
