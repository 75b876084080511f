"""The command that is being carried out, as a recipe: what a folder's `recipe.yaml` says, and what runs it again.

A command of the program says what it is before it calls a function of the library; a function that is called from
Python says so itself (`recorded`). Whoever writes the result asks for it (`followed`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from isobasin.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")

# Where to write and what to print, and what gives the same bits however it is chosen.
_NOT_RECORDED = ("output", "force", "as_json", "dry_run", "progress", "engine", "ray_address", "workers", "threads")
_VERSION, _COMMAND, _OPTIONS = "isobasin", "command", "options"


@dataclass(frozen=True)
class Recipe:
    """A command and its options.

    Attributes:
        command: As on the command line: "merge".
        options: By the name of the parameter, plain values; what isn't given or is off is left out.
        unsaid: Names of those that came from Python and that no file can say: the recipe can't be run again.
    """

    command: str
    options: Mapping[str, Any]
    unsaid: tuple[str, ...] = ()

    @classmethod
    def of(cls, command: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Recipe:
        """The recipe of a call.

        Args:
            command: The command.
            values: Of its parameters, by name.
            defaults: Of those that have one: what is off by default isn't recorded as off.
        """
        given = {name: value for name, value in values.items() if name not in _NOT_RECORDED and value is not None}
        given = {name: x for name, x in given.items() if x is not False or defaults.get(name) is True}
        if given.pop("verify", True) is False:
            given["no_verify"] = True
        options = {name: _plain(value) for name, value in given.items()}
        return cls(command, options, tuple(name for name, value in options.items() if value is None))

    @classmethod
    def parsed(cls, content: Any, name: str) -> Recipe:
        """The recipe that a YAML file holds; `name` is the file's.

        Raises:
            ConfigurationError: It holds something else.
        """
        known = (_VERSION, _COMMAND, _OPTIONS)
        if not isinstance(content, dict) or not isinstance(content.get(_COMMAND), str):
            raise ConfigurationError(f"{name}: isn't a recipe: it has no entry {_COMMAND!r}")
        if more := [key for key in content if key not in known]:
            raise ConfigurationError(f"{name}: unknown entry {more[0]!r}: a recipe has {', '.join(known)}")
        options = content.get(_OPTIONS) or {}
        if not isinstance(options, dict):
            raise ConfigurationError(f"{name}: {_OPTIONS} is no table of names and values")
        return cls(content[_COMMAND], {str(key): value for key, value in options.items()})

    def to_yaml(self) -> str:
        """The recipe as YAML."""
        import yaml

        said = {name: value for name, value in self.options.items() if name not in self.unsaid}
        content = {_VERSION: version(), _COMMAND: self.command, _OPTIONS: said}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


_FOLLOWED: ContextVar[Recipe | None] = ContextVar("followed", default=None)


def followed() -> Recipe | None:
    """The recipe that is being followed; None where nobody said."""
    return _FOLLOWED.get()


@contextmanager
def following(recipe: Recipe) -> Generator[None]:
    """Follow a recipe in the block."""
    token = _FOLLOWED.set(recipe)
    try:
        yield
    finally:
        _FOLLOWED.reset(token)


@contextmanager
def saying(**options: Any) -> Generator[None]:
    """Follow the same recipe in the block, with options whose defaults were found out."""
    current = followed()
    if current is None:
        yield
        return
    with following(replace(current, options={**current.options, **options})):
        yield


def recorded(verb: Callable[P, T]) -> Callable[P, T]:
    """A function that writes a model, recorded while it runs, unless the command of its name is already followed."""
    taken = signature(verb)
    defaults = {name: parameter.default for name, parameter in taken.parameters.items()}

    @wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        current = followed()
        if current is not None and current.command == verb.__name__:
            return verb(*args, **kwargs)
        bound = taken.bind(*args, **kwargs)
        bound.apply_defaults()
        with following(Recipe.of(verb.__name__, bound.arguments, defaults)):
            return verb(*args, **kwargs)

    return call


def version() -> str:
    """Of this isobasin; its package is there before any of its modules."""
    return sys.modules["isobasin"].__version__


def _plain(value: Any) -> Any:
    """A value as YAML can hold it; None for what it can't."""
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return None if None in items else items
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # A type of torch's prints as `torch.bfloat16`.
    name = str(value)
    return name.removeprefix("torch.") if type(value).__module__ == "torch" and name.startswith("torch.") else None
