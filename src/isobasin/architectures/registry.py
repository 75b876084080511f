"""The families that are supported, by model type: each file of `families` is found, and registered nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType

from transformers import CONFIG_MAPPING

from isobasin.architectures import families as files
from isobasin.architectures.entries import shown
from isobasin.architectures.family import Family
from isobasin.errors import ArchitectureError

__all__ = ["Family", "families", "family", "kind", "lookup", "register"]


def register(entries: Iterable[Family]) -> Mapping[str, Family]:
    """An immutable registry.

    Raises:
        ArchitectureError: If two families claim one model type.
    """
    registry: dict[str, Family] = {}
    for entry in entries:
        if entry.model_type in registry:
            raise ArchitectureError(f"two families are registered for model type {entry.model_type!r}")
        registry[entry.model_type] = entry
    return MappingProxyType(registry)


def _found() -> Iterator[Family]:
    """What every file of `families` states."""
    for module in iter_modules(files.__path__):
        yield import_module(f"{files.__name__}.{module.name}").FAMILY


_REGISTRY = register(_found())


def families() -> tuple[Family, ...]:
    """All families, in the order of their model types."""
    return tuple(_REGISTRY[name] for name in sorted(_REGISTRY))


def lookup(model_type: object) -> Family | None:
    """The family of what a configuration gives for its model type; None if there is none."""
    return _REGISTRY.get(model_type) if isinstance(model_type, str) else None


def family(model_type: str) -> Family:
    """The family of a model type.

    Raises:
        ArchitectureError: If there is none; names the nearest ones.
    """
    if model_type in _REGISTRY:
        return _REGISTRY[model_type]
    near = get_close_matches(model_type, _REGISTRY, n=3)
    what, hint = "unknown model type", f"supported are {', '.join(sorted(_REGISTRY))};"
    if model_type in CONFIG_MAPPING:  # no mistake of who wrote it
        what, hint = (
            "no symmetries are known of model type",
            "`isobasin symmetry --families` lists those of which some are.",
        )
    elif near:
        hint = f"did you mean {' or '.join(near)}?"
    raise ArchitectureError(f"{what} {shown(model_type)}: {hint} To add one, see CONTRIBUTING.md, Add a family")


def kind(model_type: str) -> str:
    """The model type whose function a model of this type has; the type itself where nothing is known of it."""
    entry = lookup(model_type)
    return model_type if entry is None or entry.computes is None else entry.computes
