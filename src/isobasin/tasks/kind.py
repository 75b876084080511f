"""What a model is trained for, and how it is loaded for that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isobasin.checkpoints import Checkpoint, stand_in
from isobasin.checkpoints.files import WatchedFile, read_object
from isobasin.choices import TaskKind
from isobasin.errors import CheckpointError, DataError, described
from isobasin.loading import check_plan, configuration, pretrained

_ENDINGS = {
    "ForImageClassification": TaskKind.image_classification,
    "ForSequenceClassification": TaskKind.text_classification,
    "ForCausalLM": TaskKind.causal_lm,
    "LMHeadModel": TaskKind.causal_lm,
    "ForMaskedLM": TaskKind.masked_lm,
}
LOADERS = {
    TaskKind.image_classification: "AutoModelForImageClassification",
    TaskKind.text_classification: "AutoModelForSequenceClassification",
    TaskKind.causal_lm: "AutoModelForCausalLM",
    TaskKind.masked_lm: "AutoModelForMaskedLM",
}
"""The classes of transformers that load a model for a task."""


def kind_of(config: Any) -> TaskKind:
    """The task that a configuration's `architectures` entry names, such as "ViTForImageClassification".

    Args:
        config: A transformers configuration, or its JSON as a mapping.

    Raises:
        DataError: It names none, or one without a loss that is measured here.
    """
    names: Any = config.get("architectures") if isinstance(config, Mapping) else config.architectures
    for name in names or ():
        for ending, kind in _ENDINGS.items():
            if str(name).endswith(ending):
                return kind
    said = f"architectures is {list(names)}" if names else "it has no architectures entry"
    raise DataError(f"the configuration doesn't say what the model is for ({said}): name it with --task")


def load_model(
    source: str | os.PathLike[str] | Checkpoint, kind: TaskKind | str, device: str | torch.device = "cpu"
) -> nn.Module:
    """A checkpoint's model with the task's head, in evaluation mode.

    Args:
        source: Local folder of the checkpoint, or the open checkpoint.
        kind: The task.
        device: Where to put it.

    Returns:
        In float64 if the checkpoint is stored so, in float32 otherwise.

    Raises:
        CheckpointError: It can't be loaded, or lacks weights that the head needs.
    """
    import transformers

    if isinstance(source, Checkpoint):
        if source.original is None:
            return load_model(source.folder, kind, device)
        with stand_in(source, source.read(source.tensors)) as written:
            return load_model(written, kind, device)
    folder, kind = source, TaskKind(kind)
    config, loader, stored = configuration(folder), getattr(transformers, LOADERS[kind]), _stored(Path(folder))
    if stored is not None:
        check_plan(stored, loader, config)
    try:
        model, report = pretrained(loader, folder, config, dtype=_dtype(Path(folder), stored))
    except CheckpointError as error:
        reason = described(error.__cause__ or error)
        raise CheckpointError(
            f"{os.fspath(folder)}: can't be loaded for {kind} ({reason}): check it, and --task"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{os.fspath(folder)}: lacks {len(missing)} weights that {kind} needs, such as {missing[0]!r}: "
            "fine-tune it for the task first, or name another with --task"
        )
    return model.to(device).eval()


def _stored(folder: Path) -> Checkpoint | None:
    """The files of a folder; None if they aren't safetensors."""
    try:
        return Checkpoint.open(folder)
    except CheckpointError:
        return None


def _dtype(folder: Path, stored: Checkpoint | None) -> torch.dtype:
    """Float64 if any stored tensor is, else float32; of pickles by what the configuration says."""
    if stored is not None:
        double = any(info.dtype == torch.float64 for info in stored.tensors.values())
    else:
        entries = read_object(WatchedFile.of(folder / "config.json"))
        double = "float64" in (entries.get("dtype"), entries.get("torch_dtype"))
    return torch.float64 if double else torch.float32


def register_own_models() -> None:
    """Make transformers' Auto classes know isobasin's own model types."""
    import_module("isobasin.models")
