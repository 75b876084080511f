"""Configurations of experiments: YAML files, and those that come with the package."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from isobasin.errors import ConfigurationError, DataError, first_line, problem_in_words
from isobasin.experiments.settings import ExperimentSettings
from isobasin.tasks.reading import regular_file
from isobasin.text import near

_PACKAGED = "configs"
_SUFFIX = ".yaml"
# Many times what the largest packaged configuration has: bytes, entries with aliases written out, and levels.
_LARGEST, _MOST_ENTRIES, _DEEPEST = 2**20, 20_000, 32


def packaged() -> dict[str, str]:
    """The configurations that come with the package: their titles, by name."""
    return {name: read(name).title for name in _names()}


def read(source: str | os.PathLike[str]) -> ExperimentSettings:
    """Read a configuration.

    Args:
        source: A YAML file, or the name of a packaged configuration such as "digits".

    Raises:
        ConfigurationError: It can't be found or read, or an entry of it is wrong; names file and entry.
    """
    name = os.fspath(source)
    path = Path(name)
    if not path.exists():
        if name.endswith((_SUFFIX, ".yml")):
            raise ConfigurationError(f"{name}: no such file: check the path")
        if name not in _names():
            raise ConfigurationError(f"{name!r} is no file, and no packaged configuration: {near(name, _names())}")
        path = _home() / f"{name}{_SUFFIX}"
    return _checked(_parsed(path), name)


def _home() -> Path:
    return Path(str(files("isobasin.experiments"))) / _PACKAGED


def _names() -> list[str]:
    """Of all packaged configurations; those of folders come last."""
    found = [path.relative_to(_home()).with_suffix("").as_posix() for path in _home().rglob(f"*{_SUFFIX}")]
    return sorted(found, key=lambda name: ("/" in name, name))


class _Loader(yaml.SafeLoader):
    """Refuses what no configuration needs: a key twice, of which YAML would silently take the last, and bombs.

    A few lines of aliases stand for more entries than memory holds, and brackets for more levels than Python's stack.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _too_deep(self.peek_event().start_mark)
        found = super().compose_node(parent, index)
        self._depth -= 1
        return found

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _extent(node, {})[0] > _MOST_ENTRIES:
            problem = f"has more than {_MOST_ENTRIES} entries, aliases written out"
            raise yaml.MarkedYAMLError(None, None, problem, node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # Before the merge keys are resolved: what they bring may be replaced.
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _extent(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many nodes and how many levels a node stands for with its aliases written out."""
    if id(node) not in known:
        known[id(node)] = None
        children = [item for pair in node.value for item in (pair if isinstance(pair, tuple) else (pair,))]
        parts = [_extent(child, known) for child in children if isinstance(child, yaml.Node)]
        known[id(node)] = 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)
    found = known[id(node)]
    if found is None or found[1] > _DEEPEST:
        raise _too_deep(node.start_mark)
    return found


def _too_deep(mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, f"has more than {_DEEPEST} levels", mark)


def _parsed(path: Path) -> Any:
    try:
        return yaml.load(regular_file(path, _LARGEST).read_text(encoding="utf-8"), _Loader)
    except (DataError, OSError) as error:
        reason = f"{path}: can't be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise ConfigurationError(reason) from error
    except Exception as error:  # of some types (dates, numbers) yaml lets Python's own errors through
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or first_line(error)
        raise ConfigurationError(f"{path}{where}: isn't valid YAML ({reason})") from error


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
