"""Which column of a data set has which role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isobasin.choices import TaskKind
from isobasin.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = {
    TaskKind.image_classification: ("image", "label"),
    TaskKind.text_classification: ("text", "label"),
    TaskKind.causal_lm: ("text",),
    TaskKind.masked_lm: ("text",),
}
"""The columns that every task needs."""

_USUAL = {
    "image": ("image", "img", "pixel_values", "images"),
    "text": ("text", "sentence", "content", "description", "review", "sentence1", "premise"),
    "label": ("label", "labels", "class", "target"),
}
_PAIRS = {"sentence1": "sentence2", "premise": "hypothesis"}


def with_roles(dataset: Dataset, kind: TaskKind, columns: Mapping[str, str], source: str) -> tuple[Dataset, list[str]]:
    """The data set with its columns named by role, others left out, and notes on what was guessed.

    Args:
        dataset: The rows.
        kind: The task.
        columns: Role → column, where the user says it.
        source: For messages.

    Raises:
        DataError: A role has no column, or a named column doesn't exist.
    """
    allowed = (*ROLES[kind], *(["text_pair"] if kind == TaskKind.text_classification else []))
    for role, column in columns.items():
        if role not in allowed:
            raise DataError(f"--columns: {kind} has no role {role!r}: it has {', '.join(allowed)}")
        if column not in dataset.column_names:
            raise DataError(f"{source}: has no column {column!r}: it has {_shown(dataset)}")
        if list(columns.values()).count(column) > 1:
            raise DataError(f"--columns: column {column!r} has two roles: give each its own")
    chosen = dict(columns)
    notes: list[str] = []
    lower = {name.lower(): name for name in reversed(dataset.column_names)}
    for role in ROLES[kind]:
        found = next((lower[name] for name in _USUAL[role] if name in lower), None)
        if role not in chosen and found is not None:
            chosen[role] = found
    if "text_pair" in allowed and "text" not in columns and _PAIRS.get(chosen.get("text", "").lower()) in lower:
        chosen.setdefault("text_pair", lower[_PAIRS[chosen["text"].lower()]])
    if any(role not in chosen for role in ROLES[kind]):
        chosen |= _by_type(dataset, kind, chosen, notes)
    missing = [role for role in ROLES[kind] if role not in chosen]
    if missing:
        advice = ",".join(f"{role}=…" for role in missing)
        raise DataError(f"{source}: which column is the {missing[0]}? It has {_shown(dataset)}: say --columns {advice}")
    dataset = dataset.select_columns(list(dict.fromkeys(chosen.values())))
    return dataset.rename_columns({column: role for role, column in chosen.items() if role != column}), notes


def _by_type(dataset: Dataset, kind: TaskKind, chosen: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    """Of the columns left: the only string is the text, the only integer the label."""
    left = [name for name in dataset.column_names if name not in chosen.values()]
    types: dict[str, str] = {name: str(getattr(dataset.features[name], "dtype", "")) for name in left}
    found: dict[str, str] = {}
    for role, wanted in (("text", ("string", "large_string")), ("label", ("int64", "int32", "uint8"))):
        fitting = [name for name in left if types[name] in wanted]
        if role in ROLES[kind] and role not in chosen and len(fitting) == 1 and len(left) <= 2:
            found[role] = fitting[0]
            notes.append(f"column {fitting[0]!r} is taken as the {role}")
    return found


def _shown(dataset: Dataset) -> str:
    """The columns, with the first value of each."""
    first: Any = dataset.with_format("arrow")[:1]

    def value(name: str) -> str:
        text = repr(first.column(name)[0].as_py()) if len(dataset) else ""
        return text if len(text) <= 24 else text[:21] + "…"

    return ", ".join(f"{name} ({value(name)})" for name in dataset.column_names)
