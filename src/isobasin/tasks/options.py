"""Which data are read, and what is known of them afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isobasin.bounds import check_number, check_seed
from isobasin.choices import TaskKind

LONGEST_SIDE = 4096
"""Pixels of the longest side to which an image is brought."""


@dataclass(frozen=True)
class DataOptions:
    """What a user says about the data.

    Attributes:
        source: Hub id, as `ID@REVISION:CONFIGURATION:SPLIT` if need be, path of a file or folder, "digits"
            (scikit-learn's), or "generated": texts that the models themselves write.
        name: The hub's configuration, such as "wikitext-103-raw-v1".
        split: In the notation of `datasets`, such as "test" or "train[:90%]", or a file of the folder `source`. None:
            "test", else "validation", else the only one.
        columns: Role → column; the roles are "image", "text", "text_pair" and "label".
        max_examples: At most so many examples, chosen at random.
        length: Tokens of an example.
        seed: Of that choice, and of masks.
        task: What the model does with them; None: what its configuration says.
        tokenizer: Folder, hub id, or JSON of characters, if not the model's own.
        skip_unknown: Leave out characters that a tokenizer of single characters doesn't know, instead of refusing them.

    Raises:
        IsobasinError: A number is out of range, or there is no such task.
    """

    source: str
    name: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    max_examples: int | None = None
    length: int | None = None
    seed: int = 0
    task: TaskKind | str | None = None
    tokenizer: str | None = None
    skip_unknown: bool = False

    @property
    def recorded(self) -> dict[str, Any]:
        """What is recorded of them besides what is known of the data afterwards."""
        names = ("seed", "name", "max_examples", "length", "tokenizer")
        return {name: getattr(self, name) for name in names} | {"columns": dict(self.columns)}

    def __post_init__(self) -> None:
        for name, value in (("max examples", self.max_examples), ("length", self.length)):
            if value is not None:
                check_number(name, value, 1)
        check_seed(self.seed)


@dataclass(frozen=True)
class DataFacts:
    """What the losses are computed on.

    Attributes:
        source: As the user named it.
        split: Which part of it.
        task: What the models predict (`choices.TaskKind`).
        examples: How many.
        sha256: Of the examples as models see them.
        notes: What a reader has to know.
        num_labels: Number of classes; None for language models.
        characters: Characters per token; None for classification.
        label_names: Of the classes, where they have names.
    """

    source: str
    split: str | None
    task: str
    examples: int
    sha256: str
    notes: tuple[str, ...] = ()
    num_labels: int | None = None
    characters: float | None = None
    label_names: tuple[str, ...] | None = None
