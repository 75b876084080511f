"""Tied tensors stored apart: the same class and the same function, with `tie_word_embeddings` false."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from isobasin.architectures.description import Description
from isobasin.architectures.view import View
from isobasin.checkpoints import Checkpoint, extended
from isobasin.errors import ArchitectureError
from isobasin.loading.calls import quiet_transformers
from isobasin.loading.classes import planned, plans

_ENTRY = "tie_word_embeddings"


def untied(checkpoint: Checkpoint, description: Description, view: View) -> Checkpoint:
    """A checkpoint in which every tensor that the class would tie is there by itself; the same one if none are tied.

    Args:
        checkpoint: The files.
        description: What they say.
        view: Which tensor each is.

    Raises:
        ArchitectureError: transformers ties them whatever the configuration says, or would lack a tensor then.
    """
    if not any(map(view.find, view.ties)):
        return checkpoint
    tied = plans([(checkpoint, description.config)])[0]
    entries = _entries(description.entries)
    whole = extended(checkpoint, _lacking(Description(entries, checkpoint.shapes), view, tied.kind), entries)
    config = Description(entries, whole.shapes).config
    if getattr(config, _ENTRY, False):
        raise ArchitectureError(f"model type {config.model_type} ties its head whatever config.json says: no --untie")
    found = planned(whole, tied.kind, config)
    for name in found.missing:
        if name not in tied.missing:
            raise ArchitectureError(f"{tied.kind.__name__} would lack {name!r} if it were not tied: no --untie")
    return whole


def _entries(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that ties nothing, nor does one nested in it."""
    nested = {n: {**x, _ENTRY: False} for n, x in entries.items() if isinstance(x, Mapping) and x.get(_ENTRY)}
    return {**entries, **nested, _ENTRY: False}


def _lacking(untied: Description, view: View, kind: Any) -> dict[str, str]:
    """What a class has of its own by an untied configuration, and which stored tensor's values each has so far."""
    with quiet_transformers(), torch.device("meta"):
        model = kind(deepcopy(untied.config))
    names = View.of(Description(untied.entries, {name: tuple(x.shape) for name, x in model.named_parameters()})).tensors
    stored = View.of(untied).tensors
    pairs = {name: view.find(canonical) for canonical, name in names.items() if canonical not in stored}
    return {name: source for name, source in pairs.items() if source is not None}
