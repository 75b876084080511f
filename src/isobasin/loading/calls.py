"""The only calls of transformers' `from_pretrained`, and what transformers says when it can't.

A folder is data. `trust_remote_code` is False at every call, so that its Python never runs and transformers never asks
on standard input; the attention and experts that run are transformers' own, whatever the configuration names: a name
there may stand for a kernel that is downloaded and run, or for code that compiles for minutes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from isobasin.architectures.configuration import described_by
from isobasin.checkpoints.files import WatchedFile, inside, read_object
from isobasin.errors import CheckpointError, refusing

# `None` is transformers' own choice, not the configuration's; of its ways to compute experts only this knows float64.
_OWN_CODE: dict[str, Any] = {"attn_implementation": None, "experts_implementation": "eager"}


@contextmanager
def quiet_transformers() -> Generator[None]:
    """No progress bars or warnings of transformers while it saves or loads: they would mix with ours."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    _set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        _set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _set_verbosity(level: int) -> None:
    """Set it if it is another: Python forgets for all loggers what they say whenever one is set."""
    from transformers.utils import logging as transformers_logging

    if transformers_logging.get_verbosity() != level:
        transformers_logging.set_verbosity(level)


def configuration(folder: str | os.PathLike[str]) -> Any:
    """The transformers configuration of a checkpoint's folder: facts about the model only.

    Raises:
        CheckpointError: There is none that can be read.
        ArchitectureError: transformers knows no such model type, or refuses the configuration.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path}: can't be loaded: no such folder")
    entries = read_object(WatchedFile.of(inside(path, path / "config.json")))
    return described_by(entries)


def auto(loader: str, name: str, **options: Any) -> Any:
    """What one of transformers' Auto classes loads; it raises whatever it raises.

    Args:
        loader: Name of the class, such as "AutoTokenizer".
        name: A folder or hub id.
        options: Others of `from_pretrained`.
    """
    import transformers

    from isobasin.models import ensure_registered

    ensure_registered()
    with quiet_transformers():
        return getattr(transformers, loader).from_pretrained(name, trust_remote_code=False, **options)


def pretrained(
    loader: Any,
    folder: str | os.PathLike[str],
    config: Any = None,
    stored: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """A model, and transformers' report of what it loaded.

    Args:
        loader: A model class, or an Auto class.
        folder: Local folder of the checkpoint.
        config: The configuration; None is the folder's own.
        stored: What to load instead of the folder's tensors: by name, anything of which `[...]` makes a tensor.
        options: Others of `from_pretrained`.

    Returns:
        The model in evaluation mode; `missing_keys`, without tables that the class computes from the configuration as
        it does buffers, `unexpected_keys` and `mismatched_keys`.

    Raises:
        CheckpointError: It can't be loaded.
    """
    config = configuration(folder) if config is None else config
    source = {"pretrained_model_name_or_path": None if stored is not None else os.fspath(folder), "state_dict": stored}
    what = f"{os.fspath(folder)}: transformers can't load it as {loader.__name__}"
    with quiet_transformers(), refusing(CheckpointError, lambda reason: f"{what} ({reason}): check the checkpoint"):
        model, report = loader.from_pretrained(
            **source, config=config, trust_remote_code=False, output_loading_info=True, **_OWN_CODE, **options
        )
        missing = set(report["missing_keys"])
        report["missing_keys"] = missing - _frozen(model, missing) if missing else missing
    return model.eval(), report


def _frozen(model: Any, names: Iterable[str]) -> set[str]:
    """Those of these parameters that the class freezes, which are frozen again: loading leaves none so."""
    with torch.device("meta"):
        made = type(model)(deepcopy(model.config)).named_parameters()
        frozen = {name for name, parameter in made if not parameter.requires_grad}.intersection(names)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return frozen


def like(model: Any, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Any:
    """A checkpoint's model of the same class as another model, in one type or with that one's, tensor by tensor."""
    model = getattr(model, "_orig_mod", model)  # of one that torch compiles
    if dtype is not None:
        return pretrained(type(model), folder, dtype=dtype)[0]
    kinds = {n: x.dtype for n, x in model.named_parameters(remove_duplicate=False) if x.is_floating_point()}
    found = pretrained(type(model), folder, dtype=reduce(torch.promote_types, kinds.values()))[0]
    for name, x in found.named_parameters():
        x.data = x.data.to(kinds.get(name, x.dtype))
    return found
