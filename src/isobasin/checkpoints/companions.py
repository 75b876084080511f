"""The files that go along with the weights: which are copied, and which are left out."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from filecmp import cmp
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from isobasin.beside import is_own
from isobasin.checkpoints.files import WatchedFile, entries, leads_outside, read_json

_MODULES = "modules.json"
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data", ".ckpt", ".distcp"),
    *(".npz", ".tflite", ".nemo"),
)
_INDEX = ".index.json"
# What a training leaves: its state, what it logged, and scores of the model that it made. They are not the result's.
_TRAINING = (
    *("train_log.json", "trainer_state.json", "trainer_log.jsonl", "training_args.*", "*_results.*", "*.tfevents.*"),
    *("optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "mergekit_config.yml"),
)
_SKIPPED = (".cache", ".git")
# Modules of sentence-transformers that go by what a model predicts, and not by its hidden states.
_READ_LOGITS = {"MLMTransformer", "SpladePooling"}


@dataclass(frozen=True)
class Companions:
    """What lies in a checkpoint's folder beside its weights, config and index.

    Attributes:
        files: What goes along with the weights, by its path in the folder.
        weights: Files and folders that are left out because they hold other weights.
        outside: Files and folders that are left out because they lead out of the folder, or are no files.
    """

    files: dict[Path, WatchedFile] = field(default_factory=dict)
    weights: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)


def companions(folder: Path, read: frozenset[str]) -> Companions:
    """Look through a checkpoint's folder.

    A sub-folder that holds weights is another model's and left out, unless the folder's own list of modules names it.
    So are, without a word, what says how the model was made and how good it is: card, alignment, logs of a training.

    Args:
        folder: The checkpoint.
        read: Names of the files that are read: weights, index, config.
    """
    found = Companions()
    _look(folder, Path(), read, modules(folder), found)
    return found


def copy(file: WatchedFile, target: Path) -> None:
    """Copy a file with what it holds and its mode, as far as the umask lets it; its owner may always write.

    Raises:
        CheckpointError: It changes meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open() as opened, target.open("xb") as out:
        shutil.copyfileobj(opened, out, 2**20)
    set_mode(target, file.mode)


def set_mode(path: Path, mode: int) -> None:
    """Give a file the mode of what it is a copy of, as far as the umask lets it; its owner may always write."""
    path.chmod((mode | 0o600) & ~umask())


def set_folder_mode(path: Path, like: Path) -> None:
    """The same for a folder."""
    path.chmod((stat.S_IMODE(like.stat().st_mode) & 0o777 | 0o700) & ~umask())


def umask() -> int:
    """The process's mask; reading it means setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def modules(folder: Path) -> frozenset[PurePosixPath]:
    """Sub-folders that a sentence-transformers folder names as modules of the model."""
    names = [entry.get("path") for entry in _listed(folder)]
    return frozenset(PurePosixPath(name) for name in names if isinstance(name, str) and name.strip("./"))


def reads_hidden_states(folder: Path) -> bool:
    """Whether sentence-transformers reads a model's hidden states: its list of modules lies there or a folder above."""
    above = [entry for entry in _listed(folder.parent) if entry.get("path") == folder.name]
    kinds = [str(entry.get("type")).rpartition(".")[2] for entry in (*_listed(folder), *above)]
    return bool(kinds) and not set(kinds) <= _READ_LOGITS


def unlike_modules(one: Path, other: Path) -> list[str]:
    """The files of modules that sentence-transformers puts behind both models, and that aren't the same to the byte."""
    found: list[str] = []
    for module in sorted(modules(one) & modules(other)):
        ends = [
            {p.relative_to(end): p for p in sorted((end / module).rglob("*")) if p.is_file()} for end in (one, other)
        ]
        for path in sorted(ends[0].keys() | ends[1].keys()):
            ours, theirs = (end.get(path) for end in ends)
            if ours is None or theirs is None or not cmp(ours, theirs, shallow=False):
                found.append(path.as_posix())
    return found


def _listed(folder: Path) -> list[dict[str, Any]]:
    """The modules that a sentence-transformers folder names."""
    path = folder / _MODULES
    if not os.path.isfile(path) or leads_outside(folder, path):
        return []
    listed: Any = read_json(WatchedFile.of(path))
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _look(folder: Path, here: Path, read: frozenset[str], named: frozenset[PurePosixPath], found: Companions) -> None:
    """Sort what is in one folder."""
    whole = any(module in (place := PurePosixPath(here), *place.parents) for module in named)
    for name in entries(folder / here):
        inside, path = here / name, folder / here / name
        if name in _SKIPPED or (here == Path() and (name in read or is_own(name))):
            continue
        if not whole and (name.endswith(_INDEX) or any(fnmatch(name, pattern) for pattern in _TRAINING)):
            continue
        if os.path.isdir(path) and not path.is_symlink():
            wanted = any(PurePosixPath(inside) in (module, *module.parents) for module in named)
            if whole or wanted or not any(map(_is_weights, _files(path))):
                _look(folder, inside, read, named, found)
            else:
                found.weights.append(inside)
        elif not os.path.isfile(path) or leads_outside(folder, path):
            found.outside.append(inside)
        elif not whole and _is_weights(name):
            found.weights.append(inside)
        else:
            found.files[inside] = WatchedFile.of(path)


def _files(folder: Path) -> Iterator[str]:
    """Names of all files under a folder; links to folders are not followed."""
    for _, _, names in os.walk(folder):
        yield from names


def _is_weights(name: str) -> bool:
    return name.endswith(_WEIGHTS)
