"""Configurations of experiments: YAML files, and those that come with the package."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from isobasin.errors import ConfigurationError, problem_in_words
from isobasin.experiments.settings import ExperimentSettings
from isobasin.tasks.strict_yaml import read_yaml
from isobasin.text import near

_PACKAGED = "configs"
_SUFFIX = ".yaml"
_MODELINE = "# yaml-language-server: $schema=experiment.schema.json"


def packaged() -> dict[str, str]:
    """The configurations that come with the package: their titles, by name."""
    return {name: read(name).title for name in _names()}


def packaged_text(name: str) -> str:
    """The file of a packaged configuration, as one to begin with.

    Raises:
        ConfigurationError: There is none of this name.
    """
    return f"{_MODELINE}\n{_packaged_file(name, '').read_text(encoding='utf-8')}"


def read(source: str | os.PathLike[str]) -> ExperimentSettings:
    """Read a configuration.

    Args:
        source: A YAML file, or the name of a packaged configuration such as "digits".

    Raises:
        ConfigurationError: It can't be found or read, or an entry of it is wrong; names file and entry.
    """
    name = os.fspath(source)
    path = Path(name)
    # A folder of that name may be where it was run before: `experiment run digits -o digits`.
    if not path.exists() or (path.is_dir() and name in _names()):
        if name.endswith((_SUFFIX, ".yml")):
            raise ConfigurationError(f"{name}: no such file: check the path")
        path = _packaged_file(name, "is no file, and ")
    return _checked(read_yaml(path), name)


def _home() -> Path:
    return Path(str(files("isobasin.experiments"))) / _PACKAGED


def _packaged_file(name: str, problem: str) -> Path:
    if name not in _names():
        raise ConfigurationError(f"{name!r} {problem or 'is '}no packaged configuration: {near(name, _names())}")
    return _home() / f"{name}{_SUFFIX}"


def _names() -> list[str]:
    """Of all packaged configurations; those of folders come last."""
    found = [path.relative_to(_home()).with_suffix("").as_posix() for path in _home().rglob(f"*{_SUFFIX}")]
    return sorted(found, key=lambda name: ("/" in name, name))


def _checked(content: Any, name: str) -> ExperimentSettings:
    if not isinstance(content, dict):
        raise ConfigurationError(f"{name}: isn't an experiment: it has no entries such as title, models and data")
    try:
        return ExperimentSettings.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigurationError(f"{name}: {_said(found[0])}{more}") from error


def _said(error: Any) -> str:
    """One of pydantic's errors in words."""
    if error["type"] == "extra_forbidden":
        where = ".".join(map(str, error["loc"]))
        return f"unknown entry {where}: {near(str(error['loc'][-1]), _fields(error['loc'][:-1]))}"
    return problem_in_words(error)


def _fields(place: tuple[int | str, ...]) -> list[str]:
    """Which entries there are at a place of the file."""
    kind: Any = ExperimentSettings
    for step in place:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(step)].annotation
        else:
            # The values of a table, or the items of a list.
            kind = next((item for item in get_args(kind)[::-1] if item is not Ellipsis), None)
    # Of an entry that may be null, what else it may be.
    kind = next((item for item in get_args(kind) if isinstance(item, type) and issubclass(item, BaseModel)), kind)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []
