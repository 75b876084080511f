"""What transformers calls a checkpoint's tensors in memory: its names on disk are stable, those are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isobasin.checkpoints import stand_in
from isobasin.choices import TaskKind
from isobasin.errors import ArchitectureError
from isobasin.model import Model
from isobasin.tasks.kind import load_model


@dataclass(frozen=True)
class Place:
    """Where a stored tensor is in a loaded module.

    Attributes:
        parameter: The module's parameter.
        part: Which of its entries, `(start, end)` by axis; empty for all of it. Experts that are stored one by one are
            parts of one parameter.
        shape: The parameter's.
    """

    parameter: str
    part: tuple[tuple[int, int], ...] = ()
    shape: tuple[int, ...] = ()

    @property
    def module(self) -> str:
        """The module that has the parameter."""
        return self.parameter.rpartition(".")[0]


Places = Mapping[str, Sequence[Place]]
"""Where the tensors of these names are; tied ones are in several places."""


def parameters(tensors: Iterable[tuple[Tensor, Sequence[Place]]]) -> dict[str, Tensor]:
    """A module's parameters of tensors with their places, differentiable by them."""
    found: dict[str, Tensor] = {}
    for tensor, places in tensors:
        for place in places:
            if not place.part:
                found[place.parameter] = tensor
                continue
            # What no tensor is given for is no number, instead of whatever memory holds.
            if place.parameter not in found:
                found[place.parameter] = tensor.new_full(place.shape, math.nan)
            part = found[place.parameter][tuple(slice(*ends) for ends in place.part)]
            part.copy_(tensor.reshape(part.shape))
    return found


def names_in_memory(model: Model, kind: TaskKind) -> dict[str, list[Place]]:
    """From the names on disk to where a loaded module has the tensors.

    A copy of the checkpoint whose tensors each hold one number of their own is loaded: where that number turns up, the
    tensor went.

    Raises:
        ArchitectureError: transformers makes other tensors of the stored ones than they are, or parts of.
    """
    stored, infos = list(model.view.tensors.values()), model.checkpoint.tensors
    pieces = model.view.written({name: torch.full(infos[name].shape, float(i))} for i, name in enumerate(stored))
    probes = {name: probe.clone() for piece in pieces for name, probe in piece.items()}
    with stand_in(model.checkpoint, probes) as folder:
        module = load_model(folder, kind)
    found: dict[str, list[Place]] = {name: [] for name in stored}
    # Frozen tables are computed from the configuration, as buffers are.
    learned = ((name, x.detach()) for name, x in named_parameters(module).items() if x.requires_grad)
    for name, values in learned:
        # Sorting all values of a large tensor would take longer than loading it.
        numbers = values.unique() if bool((values != values.flatten()[0]).any()) else values.flatten()[:1]
        for number in numbers.tolist():
            known = number == int(number) and 0 <= number < len(stored)
            part = _part(values == number, infos[stored[int(number)]].shape) if known else None
            if part is None:
                raise ArchitectureError(
                    f"{model.name}: transformers makes parameter {name!r} of other tensors than are stored, so data "
                    "can't be used with it"
                )
            place = Place(name) if len(numbers) == 1 else Place(name, part, tuple(values.shape))
            found[stored[int(number)]].append(place)
    return found


def _part(there: Tensor, shape: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """The box of entries that hold a tensor of some shape, `(start, end)` by axis; None where they are no such box."""
    axes = range(there.ndim)
    seen = [there.any([other for other in axes if other != axis]) if there.ndim > 1 else there for axis in axes]
    ends = [(int(rows[0]), int(rows[-1]) + 1) for rows in (x.nonzero().flatten() for x in seen)]
    sides = [end - start for start, end in ends]
    alike = [side for side in sides if side != 1] == [side for side in shape if side != 1]
    return tuple(ends) if alike and int(there.sum()) == math.prod(sides) else None


def named_parameters(module: nn.Module) -> Mapping[str, Tensor]:
    """A module's parameters by name, tied ones under each of theirs."""
    return dict(module.named_parameters(remove_duplicate=False))
