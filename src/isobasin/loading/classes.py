"""Which class of transformers runs a checkpoint, what it reads of the file, and the model itself.

A checkpoint is tried on a class without its values: transformers is handed tensors that only know their shape, and
those that it asks for are the ones that it reads. Its own report leaves out what a class declares to be of no
interest, which is why this doesn't go by the report alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobasin.architectures.configuration import described_by
from isobasin.architectures.entries import check_extent
from isobasin.checkpoints import Checkpoint, TensorInfo
from isobasin.errors import CheckpointError
from isobasin.loading.calls import pretrained, quiet_transformers
from isobasin.loading.deferred import Deferred
from isobasin.loading.streaming import at_once


@dataclass(frozen=True, eq=False)
class Plan:
    """A checkpoint under a class.

    Attributes:
        checkpoint: The files.
        kind: The class.
        config: The configuration.
        unread: Stored tensors that the class doesn't read.
        missing: Names in memory of parameters that the file doesn't have, so that they are random.
        at_once: How many values are in memory when it is streamed, see `Streamed`.
    """

    checkpoint: Checkpoint
    kind: Any
    config: Any
    unread: tuple[str, ...]
    missing: tuple[str, ...]
    at_once: int

    def load(self, dtype: torch.dtype, seed: int = 0, *, deferred: bool = False) -> Any:
        """The model in evaluation mode; what the file lacks is drawn from `seed`, so that two loads agree.

        Args:
            dtype: Its type.
            seed: Of what the file lacks.
            deferred: Read no values: what the file has are `Deferred` tensors.

        Raises:
            CheckpointError: It can't be loaded, or not without values.
        """
        stored = {name: _Values(self.checkpoint, name, deferred) for name in self.checkpoint.tensors}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return pretrained(self.kind, self.checkpoint.folder, self.config, stored, dtype=dtype)[0]


def load(folder: Path, dtype: torch.dtype, seed: int = 0) -> Any:
    """The transformers model of a checkpoint, in evaluation mode, as the class that `plans` finds.

    Weights that the checkpoint lacks (an unused pooler, say) are initialised from `seed`, so that two loads agree.

    Raises:
        CheckpointError: transformers can't load it.
    """
    checkpoint = Checkpoint.open(folder)
    config = described_by(checkpoint.config, checkpoint.shapes)
    return plans([(checkpoint, config)])[0].load(dtype, seed)


def plans(ends: Sequence[tuple[Checkpoint, Any]]) -> list[Plan]:
    """Checkpoints, each with its configuration, under the one class that runs all of them.

    It is the one that a configuration's `architectures` names, if transformers or this library has it, it belongs to
    the model type and it reads every stored tensor; otherwise, of the classes that transformers knows for the model
    type, the one that leaves fewest stored tensors unread, and then has fewest parameters that the files lack. It is
    the one that is named as well where only some of the files have all that it computes with: one without head would
    hide that they are other models.

    Raises:
        CheckpointError: No class can be tried, or a file doesn't fit the class that its own configuration names.
    """
    named = dict.fromkeys(kind for _, config in ends for kind in _named(config))
    best: tuple[tuple[int, int], list[Plan]] | None = None
    failure: CheckpointError | None = None
    for kind in chain(named, (kind for kind in _known(ends[0][1]) if kind not in named)):
        try:
            tried = [planned(checkpoint, kind, config) for checkpoint, config in ends]
        except CheckpointError as error:
            if kind in named and all(kind in _named(config) for _, config in ends):
                raise
            failure = failure or error
            continue
        left = sum(len(plan.unread) for plan in tried), sum(len(plan.missing) for plan in tried)
        if best is None or left < best[0]:
            best = left, tried
        uneven = kind in named and not left[0] and len({plan.missing for plan in tried}) > 1
        if uneven or best[0] == (0, 0):
            break
    if best is None:
        what = f"transformers has no class for model type {ends[0][1].model_type!r}"
        raise failure or CheckpointError(f"{ends[0][0].folder}: {what}")
    return best[1]


def misfit(checkpoint: Checkpoint, config: Any) -> str | None:
    """Which stored tensor has another shape than the class has that a configuration names, in words; None if none has.

    What no class can say of a file is no misfit.
    """
    for kind in _named(config):
        try:
            planned(checkpoint, kind, config)
        except CheckpointError as error:
            return str(error.__cause__) if isinstance(error.__cause__, _MisfitError) else None
    return None


def _named(config: Any) -> Iterator[Any]:
    """The class that a configuration names, if there is one and it belongs to the model type."""
    import transformers

    from isobasin import models

    names = config.architectures
    if not isinstance(names, (list, tuple)) or not names or not isinstance(names[0], str):
        return
    kind = getattr(transformers, names[0], None) or getattr(models, names[0], None)
    belongs = getattr(getattr(kind, "config_class", None), "model_type", None) == config.model_type
    if belongs and isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        yield kind


# Of the classes that would do, those without a head come last.
_BARE = ("MODEL_FOR_PRETRAINING_MAPPING", "MODEL_FOR_TEXT_ENCODING_MAPPING", "MODEL_FOR_BACKBONE_MAPPING")


def _known(config: Any) -> Iterator[Any]:
    """All classes that transformers' Auto classes know for a configuration."""
    from transformers.models.auto import modeling_auto

    names = [n for n in vars(modeling_auto) if n.startswith("MODEL_FOR_") and n.endswith("_MAPPING")]
    for name in (*(n for n in names if n not in _BARE), "MODEL_MAPPING", *_BARE):
        found = getattr(modeling_auto, name, {}).get(type(config), ())
        yield from found if isinstance(found, tuple) else (found,)


class _MisfitError(Exception):
    """A stored tensor has another shape than a class wants: which one."""


# What was found for a class, a configuration and a header: two models that are compared mostly have the same ones.
_found: dict[Any, tuple[tuple[str, ...], tuple[str, ...], int]] = {}


def planned(checkpoint: Checkpoint, kind: Any, config: Any) -> Plan:
    """What a class would read of a checkpoint with this configuration; no values are read.

    Raises:
        CheckpointError: The class can't be built, or a stored tensor has another shape than it wants.
        ArchitectureError: The model would hold many more values than are stored.
    """
    header = tuple((name, info.dtype, info.shape) for name, info in checkpoint.tensors.items())
    given = kind, config.to_json_string(use_diff=False), header
    if given not in _found:
        try:
            _found[given] = _tried(checkpoint, kind, config)
        except _MisfitError as error:
            raise CheckpointError(f"{checkpoint.folder}: {error} by config.json: check both") from error
    return Plan(checkpoint, kind, config, *_found[given])


def _tried(checkpoint: Checkpoint, kind: Any, config: Any) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """The names that are unread and missing in `planned`, and the values at once; it raises what that does."""
    check_plan(checkpoint, kind, config)
    shapes = {name: _Shape(info) for name, info in checkpoint.tensors.items()}
    model, report = pretrained(
        kind, checkpoint.folder, config, shapes, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise _MisfitError(f"tensor {name!r} has shape {tuple(stored)}, but {kind.__name__} has {tuple(wanted)}")
    # Buffers are computed from the configuration, not drawn; biases of weights that are there are 0.
    lacking = report["missing_keys"].intersection(name for name, _ in model.named_parameters())
    missing = sorted(n for n in lacking if not n.endswith(".bias") or f"{n.removesuffix('bias')}weight" in lacking)
    return tuple(n for n, s in shapes.items() if not s.asked), tuple(missing), at_once(model)


def check_plan(checkpoint: Checkpoint, kind: Any, config: Any) -> None:
    """Refuse a model that is out of all proportion to the file: transformers gives memory to whatever is missing.

    Args:
        checkpoint: The files.
        kind: A model class, or an Auto class.
        config: The configuration.

    Raises:
        ArchitectureError: It would hold many more values than are stored.
    """
    try:
        with quiet_transformers(), torch.device("meta"):
            model = getattr(kind, "from_config", kind)(deepcopy(config))
    except Exception:  # why it can't be built is said where it is loaded
        return
    check_extent(model, checkpoint.shapes)


class _Shape:
    """What transformers takes for a tensor in a file, without values; it notes whether it was asked for any."""

    def __init__(self, info: TensorInfo) -> None:
        self.info, self.asked = info, False

    def __getitem__(self, index: Any) -> _Shape:
        self.asked = True
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of this shape on no device."""
        return torch.empty(self.info.shape, dtype=dtype or self.info.dtype, device="meta")


class _Values:
    """What transformers takes for a tensor in a file: it is read when it is asked for, or later, by our own reader."""

    def __init__(self, checkpoint: Checkpoint, name: str, deferred: bool) -> None:
        self._checkpoint, self._name, self._deferred = checkpoint, name, deferred

    def __getitem__(self, index: Any) -> Tensor:
        if not self._deferred:
            return self._read()
        info = self._checkpoint.tensors[self._name]
        return Deferred(torch.empty(info.shape, dtype=info.dtype, device="meta"), self._read)

    def _read(self) -> Tensor:
        return self._checkpoint.read([self._name])[self._name]
