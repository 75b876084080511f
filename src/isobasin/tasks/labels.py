"""Labels as the numbers that a model's outputs are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isobasin.errors import DataError
from isobasin.tasks.examples import chosen
from isobasin.tasks.options import DataOptions

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels `(n,)`, int64.

    Attributes:
        ids: Of every example.
        count: Number of classes.
        names: Of the classes, where they have names.
        notes: How they were found.
    """

    ids: Tensor
    count: int
    names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def read_labels(dataset: Dataset, config: Any, source: str) -> Labels:
    """The column "label" of a data set as a model's numbers.

    Numbers are taken as they are, but 1 … n as 0 … n - 1 for a model with n labels. Names are looked up in the model's
    `label2id`; if they aren't there, they are numbered in sorted order.

    Args:
        dataset: The rows.
        config: The model's configuration, or None.
        source: For messages.

    Raises:
        DataError: A label is missing, or outside the model's.
    """
    values: list[Any] = dataset.with_format("arrow")[:]["label"].to_pylist()
    names = getattr(dataset.features["label"], "names", None)
    count: int | None = None if config is None else config.num_labels
    if count == 1:
        raise DataError("the model has one output (num_labels is 1), a regression: only classification is measured")
    if any(value is None or value != value or value == -1 for value in values):
        raise DataError(f"{source}: rows without label: choose a split that has labels with --split")
    if names is not None:
        _check(min(values), max(values), len(names), source, "data set's")
        values = [names[value] for value in values]
        return _named(values, tuple(names), config, source)
    if all(isinstance(value, str) for value in values):
        return _named(values, None, config, source)
    return _numbered(values, count, source)


def chosen_rows(dataset: Dataset, config: Any, options: DataOptions) -> tuple[Dataset, Labels]:
    """As many rows as are wanted, and their labels; raises as `read_labels`."""
    labels = read_labels(dataset, config, options.source)
    rows = chosen(len(dataset), options.max_examples, options.seed)
    return (dataset, labels) if rows is None else (dataset.select(rows.tolist()), replace(labels, ids=labels.ids[rows]))


def _numbered(values: list[Any], count: int | None, source: str) -> Labels:
    wrong = next(((row, value) for row, value in enumerate(values) if not _whole(value)), None)
    if wrong is not None:
        row, value = wrong
        raise DataError(f"{source}: row {row + 1} has label {value!r}, which is neither a whole number nor a name")
    ids = torch.tensor([int(value) for value in values])
    low, high = int(ids.min()), int(ids.max())
    notes: tuple[str, ...] = ()
    if count is not None and low == 1 and high == count:
        ids, high, notes = ids - 1, high - 1, (f"labels 1 to {count} are taken as 0 to {count - 1}",)
    _check(low if not notes else 0, high, count, source)
    return Labels(ids, count or high + 1, None, notes)


def _whole(value: Any) -> bool:
    """Whether a value is an integer, in whatever type, that int64 can hold."""
    return isinstance(value, (int, float)) and abs(value) < 2**63 and int(value) == value


def _named(values: list[str], names: tuple[str, ...] | None, config: Any, source: str) -> Labels:
    """Numbers of named labels: the model's, or those of the data set, or in sorted order."""
    known: dict[str, int] = {} if config is None else {str(k): int(v) for k, v in (config.label2id or {}).items()}
    folded = {name.casefold(): number for name, number in known.items()}
    used = names or tuple(sorted(set(values)))
    count = None if config is None else int(config.num_labels)
    if all(name.casefold() in folded for name in used):
        table = {name: folded[name.casefold()] for name in used}
        notes: tuple[str, ...] = ()
        if names is not None and [table[name] for name in names] != list(range(len(names))):
            notes = ("labels are matched with the model's by name",)
    else:
        table = {name: number for number, name in enumerate(used)}
        notes = () if names is not None else (f"labels are numbered in sorted order: {', '.join(used)}",)
    ids = torch.tensor([table[value] for value in values])
    _check(int(ids.min()), int(ids.max()), count, source)
    total = count or len(used)
    by_id = {number: name for name, number in table.items()}
    return Labels(ids, total, tuple(by_id.get(number, str(number)) for number in range(total)), notes)


def _check(low: int, high: int, count: int | None, source: str, whose: str = "model's") -> None:
    outside = low if low < 0 else high
    if low < 0 or (count is not None and high >= count):
        limit = "negative" if count is None else f"outside the {whose} {count} labels, 0 to {count - 1}"
        raise DataError(f"{source}: label {outside} is {limit}: choose the column with --columns label=…")
