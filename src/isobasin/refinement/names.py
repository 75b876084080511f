"""What transformers calls a checkpoint's tensors in memory: its names on disk are stable, those are not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isobasin.checkpoints import stand_in
from isobasin.choices import TaskKind
from isobasin.errors import ArchitectureError
from isobasin.model import Model
from isobasin.tasks.kind import load_model


def names_in_memory(model: Model, kind: TaskKind) -> dict[str, list[str]]:
    """From the names on disk to those of a loaded module's parameters; tied ones have several.

    A copy of the checkpoint whose tensors each hold one number of their own is loaded: where that number turns up, the
    tensor went.

    Raises:
        ArchitectureError: transformers makes other tensors of the stored ones than they are.
    """
    stored, infos = list(model.view.tensors.values()), model.checkpoint.tensors
    pieces = model.view.written({name: torch.full(infos[name].shape, float(i))} for i, name in enumerate(stored))
    probes = {name: probe.clone() for piece in pieces for name, probe in piece.items()}
    with stand_in(model.checkpoint, probes) as folder:
        module = load_model(folder, kind)
    found: dict[str, list[str]] = {name: [] for name in stored}
    for name, parameter in named_parameters(module).items():
        number = float(parameter.detach().flatten()[0])
        if not bool((parameter == number).all()) or number != int(number) or not 0 <= number < len(stored):
            raise ArchitectureError(
                f"{model.name}: transformers makes parameter {name!r} of other tensors than are stored, so data "
                "can't be used with it"
            )
        found[stored[int(number)]].append(name)
    return found


def named_parameters(module: nn.Module) -> Mapping[str, Tensor]:
    """A module's parameters by name, tied ones under each of theirs."""
    return dict(module.named_parameters(remove_duplicate=False))
