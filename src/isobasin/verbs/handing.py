"""Aligned models handed over to mergekit, for ways to combine them that are its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.bounds import check_number
from isobasin.canonical import Canonical
from isobasin.checkpoints import Checkpoint, temporary_folder, write_checkpoint
from isobasin.choices import MergeMethod
from isobasin.errors import DependencyError, IsobasinError, IsobasinWarning, first_line
from isobasin.model import Model
from isobasin.verbs.interpolate import tensors_of

_EXTRA = 'pip install "isobasin[mergekit]"'


def check_mergekit(way: MergeMethod, count: int, density: float | None) -> None:
    """Refuse what mergekit would, before any work.

    Args:
        way: How models are combined.
        count: How many there are.
        density: Share of the largest changes that `ties` keeps; None for all.

    Raises:
        DependencyError: It isn't installed.
        IsobasinError: These models can't be combined so.
    """
    if density is not None:
        if way is not MergeMethod.ties:
            raise IsobasinError("--density is about the changes that ties keeps: give it with --merge-method ties")
        check_number("density", density, 0, 1)
    if way is MergeMethod.mean:
        return
    if way is MergeMethod.slerp and count != 2:
        raise IsobasinError(f"slerp is about the arc between two models, not {count}: use mean")
    try:
        import_module("mergekit.merge")
    except ImportError as error:
        raise DependencyError(f"--merge-method {way} is mergekit's, which isn't there ({error}): {_EXTRA}") from error


def handed_over(
    models: Sequence[Model],
    moves: Sequence[Alignment | None],
    way: MergeMethod,
    weights: Sequence[float],
    density: float | None,
) -> Iterator[dict[str, Tensor]]:
    """The tensors of what mergekit makes of models after their moves, by canonical names, one at a time.

    The moved models are written to a temporary folder in float32, or wider where the first one is.

    Args:
        models: Open models with the same tensors.
        moves: One for each; None for a model that stays.
        way: How they are combined.
        weights: One for each model; where the first is what others come from, one for each of these.
        density: Share of the largest changes that `ties` keeps; None for all.

    Raises:
        IsobasinError: mergekit failed.
    """
    first = models[0].canonical
    dtype = torch.promote_types(models[0].dtype(), torch.float32)
    with temporary_folder() as home:
        folders = [Path(home) / str(index) for index in range(len(models))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IsobasinWarning)  # of files that nobody needs here
            for model, move, folder in zip(models, moves, folders, strict=True):
                pieces = () if move is None else model.view.written(move.moved(model))
                write_checkpoint(model.checkpoint, folder, pieces, dtype=dtype)
        result = Path(home) / "result"
        _run(_configuration(folders, way, weights, density, dtype), result)
        made = Canonical.of("mergekit's result", Checkpoint.open(result))
        for (piece,) in tensors_of([made], first.view.tensors):
            yield piece


def _configuration(
    folders: Sequence[Path], way: MergeMethod, weights: Sequence[float], density: float | None, dtype: torch.dtype
) -> dict[str, Any]:
    """What mergekit is told."""
    names = [str(folder) for folder in folders]
    found = {"merge_method": way.replace("-", "_"), "base_model": names[0], "dtype": str(dtype).removeprefix("torch.")}
    if way is MergeMethod.slerp:
        return found | {"models": [{"model": name} for name in names], "parameters": {"t": weights[-1]}}
    kept = {} if density is None else {"density": density}
    tasks = [
        {"model": name, "parameters": {"weight": weight, **kept}}
        for name, weight in zip(names[1:], weights, strict=True)
    ]
    return found | {"models": tasks}


def _run(configuration: dict[str, Any], out: Path) -> None:
    """Let mergekit write a folder."""
    merge, config, options = (import_module(f"mergekit.{name}") for name in ("merge", "config", "options"))
    how = options.MergeOptions(write_model_card=False, copy_tokenizer=False, quiet=True)
    try:
        merge.run_merge(config.MergeConfiguration.model_validate(configuration), str(out), how)
    except Exception as error:  # its errors have no common base class
        way = configuration["merge_method"]
        raise IsobasinError(f"mergekit's {way} failed ({type(error).__name__}: {first_line(error)})") from error
