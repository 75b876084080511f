"""What rows of tensors stand for: tokens, positions, labels; and which tensors are a model's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from isobasin.architectures.entries import trying
from isobasin.architectures.registry import lookup
from isobasin.canonical import Canonical
from isobasin.errors import ArchitectureError

# Entries that count positions; a table may have a few rows more than they say.
_POSITIONS = ("max_position_embeddings", "max_target_positions", "max_source_positions")
_SPARE = 4


@dataclass(frozen=True)
class Tables:
    """Canonical names of the tensors whose rows are no part of the width of a model.

    Attributes:
        tokens: Embeddings of tokens, and what predicts them.
        positions: Embeddings of positions.
        labels: What predicts labels.
        head: Everything outside the base model, and what only heads read.
    """

    tokens: frozenset[str]
    positions: frozenset[str]
    labels: frozenset[str]
    head: frozenset[str]


def tables_of(end: Canonical) -> Tables:
    """The tables of a model, by what its configuration counts; none where it is unknown to transformers."""
    config, head = end.configuration, _head(end)
    if config is None:
        return Tables(frozenset(), frozenset(), frozenset(), head)
    text = config.get_text_config()
    width = getattr(text, "hidden_size", None)
    tokens = getattr(text, "vocab_size", None)
    positions = [n for entry in _POSITIONS if isinstance(n := getattr(text, entry, None), int)]
    rows = {name: shape[0] for name, shape in end.shapes.items() if len(shape) in (1, 2)}
    outer = {name: n for name, n in rows.items() if name in head or _is_outer(name)}
    return Tables(
        frozenset(name for name, n in outer.items() if n == tokens != width),
        frozenset(
            name for name, n in outer.items() if name not in head and any(0 <= n - p <= _SPARE for p in positions)
        ),
        frozenset(name for name, n in outer.items() if name in head and n == config.num_labels != width),
        head,
    )


def _is_outer(name: str) -> bool:
    """Whether a tensor belongs to no layer: no part of its name is a number."""
    return not any(part.isdigit() for part in name.split("."))


def _head(end: Canonical) -> frozenset[str]:
    """The tensors that don't belong to the base model, or that only heads read."""
    entry = lookup(end.checkpoint.config.get("model_type"))
    beginnings: tuple[str, ...] = ()
    if entry is not None and entry.stream is not None:
        # Of a stream that can't move, heads are known by the base model's prefix alone.
        with suppress(ArchitectureError), trying(f"config.json of model type {entry.model_type} can't be read"):
            stream = entry.stream(end.configuration)
            modules = [m for head in stream.readouts for m in (head.module, head.transform, *head.then) if m]
            beginnings = (*(f"{module}." for module in modules), *stream.outside)
    prefix = end.view.beginnings.get("", "")
    outside = {name for name, stored in end.view.tensors.items() if prefix and not stored.startswith(prefix)}
    return frozenset(outside | {name for name in end.view.tensors if beginnings and name.startswith(beginnings)})


def labels_of(end: Canonical) -> Sequence[str] | None:
    """The names of a model's labels in order; None where they have none of their own."""
    config = end.configuration
    found = None if config is None else config.id2label
    names: Mapping[Any, Any] = found if isinstance(found, Mapping) else {}
    numbers = {str(k): str(v) for k, v in names.items()}
    ordered = [numbers.get(str(i)) for i in range(len(numbers))]
    if not ordered or any(name is None or name == f"LABEL_{i}" for i, name in enumerate(ordered)):
        return None
    return [str(name) for name in ordered]
