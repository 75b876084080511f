"""Every key of an experiment's file: as JSON Schema for editors, and as a page for people.

`python -m isobasin.experiments.keys` prints docs/experiments.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from isobasin.experiments.settings import ExperimentSettings

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_PAGE = """# An experiment's file

Every key of the YAML file that `isobasin experiment run` takes; what it does with them is said of
[whole studies](connectivity.md#whole-studies). `make pages` writes this page. A file to begin with:

    isobasin experiment init digits > my.yaml

For an editor that completes and checks keys as you write (VS Code with the YAML extension, and whatever else speaks to
yaml-language-server), put the JSON Schema beside it; the first line of `my.yaml` names it:

    isobasin experiment schema > experiment.schema.json

A key without a default has to be there. Tables that have much in common can share it, as YAML does:
`base: &base {...}`, then `other: {<<: *base, width: 64}`.
"""


def schema() -> dict[str, Any]:
    """The JSON Schema of an experiment's file."""
    return {"$schema": _DRAFT, **ExperimentSettings.model_json_schema(), "title": "An experiment of isobasin"}


def page() -> str:
    """The page docs/experiments.md."""
    whole = schema()
    return "\n".join([_PAGE, *_tables("", whole, whole["$defs"])])


def _tables(place: str, found: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    """The keys at a place of the file, and then those further inside."""
    yield f"## `{place}`\n" if place else "## The file\n"
    yield f"{_words(found)}\n"
    yield "| key | what it holds | default | meaning |\n|---|---|---|---|"
    for key, entry in found["properties"].items():
        default = f"`{_default(entry['default'])}`" if "default" in entry else ""
        yield f"| `{key}` | {_kind(entry, known)} | {default} | {_words(entry)} |"
    yield ""
    for key, entry in found["properties"].items():
        for step, name in _inside(entry):
            if "properties" in known[name]:
                yield from _tables(f"{place}.{key}{step}".lstrip("."), known[name], known)


def _words(entry: dict[str, Any]) -> str:
    return " ".join(entry["description"].split()).replace("|", "&#124;")


def _default(value: Any) -> str:
    # Of a table that isn't there all entries have their defaults.
    return "{}" if isinstance(value, dict) else json.dumps(value)


def _inside(entry: dict[str, Any], step: str = "") -> Iterator[tuple[str, str]]:
    """What an entry refers to, and the step from the entry to it."""
    if "$ref" in entry:
        yield step, _name(entry)
    for option in entry.get("anyOf", ()):
        yield from _inside(option, step)
    if isinstance(entry.get("items"), dict):
        yield from _inside(entry["items"], f"{step}[]")
    if isinstance(entry.get("additionalProperties"), dict):
        yield from _inside(entry["additionalProperties"], f"{step}.NAME")


def _name(entry: dict[str, Any]) -> str:
    return entry["$ref"].rpartition("/")[-1]


def _kind(entry: dict[str, Any], known: dict[str, Any]) -> str:
    """What an entry holds, in words."""
    if "$ref" in entry:
        name = _name(entry)
        if "enum" in known[name]:
            return f"[{name}](choices.md#{name.lower()})"
        return "table, see below" if "properties" in known[name] else "anything"
    if "anyOf" in entry:
        return " or ".join(_kind(option, known) for option in entry["anyOf"])
    if "const" in entry:
        return f"`{json.dumps(entry['const'])}`"
    if "prefixItems" in entry:
        return f"[{', '.join(_kind(item, known) for item in entry['prefixItems'])}]"
    if entry["type"] == "array":
        return f"list: {_kind(entry['items'], known)}"
    if entry["type"] == "object":
        return f"names with: {_kind(entry['additionalProperties'], known)}"
    return entry["type"]


if __name__ == "__main__":
    print(page(), end="")
