"""What `--json` prints, held to the schemas that come with the package; and a sketch of a schema from what is printed.

`python tests/cli/json_schemas.py < printed.jsonl` prints a sketch for a new command: put it into
`src/isobasin/schemas/COMMAND.json`, say what its entries mean, and refer to `common.json` where it has what they are.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import isobasin

FOLDER = Path(isobasin.__file__).parent / "schemas"
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def path_of(command: str) -> Path:
    """The schema of a command's output."""
    return FOLDER / f"{command.replace(' ', '-')}.json"


def check(printed: str) -> dict[str, Any]:
    """What was printed, if it is one object of its command's schema, or an error.

    Raises:
        jsonschema.ValidationError: It isn't.
    """
    content = json.loads(printed)
    _validator("error" if "error" in content else content["command"]).validate(content)
    return content


@cache
def _validator(command: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource

    path = path_of(command)
    assert path.exists(), f"{path} is missing: `python {__file__} < printed.jsonl` sketches it"
    loaded = {file.name: json.loads(file.read_text()) for file in FOLDER.glob("*.json")}
    Draft202012Validator.check_schema(loaded[path.name])
    registry = Registry().with_resources([(name, Resource.from_contents(x)) for name, x in loaded.items()])
    return Draft202012Validator(loaded[path.name], registry=registry)


def sketch(samples: list[Any]) -> dict[str, Any]:
    """A schema that all samples have."""
    types = sorted({_type(sample) for sample in samples})
    if "integer" in types and "number" in types:
        types.remove("integer")
    # What isn't finite is null.
    types = sorted({*types, "null"}) if "number" in types else types
    found: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
    if objects := [sample for sample in samples if isinstance(sample, dict)]:
        names = list(dict.fromkeys(name for sample in objects for name in sample))
        found["properties"] = {name: sketch([s[name] for s in objects if name in s]) for name in names}
        found["required"] = [name for name in names if all(name in sample for sample in objects)]
        found["additionalProperties"] = False
    if lists := [sample for sample in samples if isinstance(sample, list)]:
        found["items"] = sketch(items) if (items := [item for sample in lists for item in sample]) else {}
    return found


def _type(value: Any) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return "null" if value is None else kinds[type(value)]


if __name__ == "__main__":
    lines = [json.loads(line) for line in sys.stdin]
    name = lines[0]["command"]
    print(json.dumps({"$schema": _DRAFT, "$id": path_of(name).name, "title": name, **sketch(lines)}, indent=2))
