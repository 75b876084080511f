"""YAML files that users write: configurations of experiments, and recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from isobasin.errors import ConfigurationError, DataError, first_line
from isobasin.tasks.reading import regular_file

# Many times what the largest packaged configuration has: bytes, entries with aliases written out, and levels.
_LARGEST, _MOST_ENTRIES, _DEEPEST = 2**20, 20_000, 32


def read_yaml(path: Path) -> Any:
    """What a YAML file of a user's holds.

    Raises:
        ConfigurationError: It can't be read, is no YAML, or larger than anything that isobasin asks for.
    """
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
