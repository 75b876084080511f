"""From an experiment's data settings to examples; each set is read and prepared once in a process."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isobasin.beside import is_own
from isobasin.choices import TaskKind
from isobasin.errors import DataError
from isobasin.experiments.settings import DataSettings
from isobasin.experiments.smoke import GENERATED, generated
from isobasin.tasks.columns import with_roles
from isobasin.tasks.data import DataOptions, Examples, prepare, read_dataset
from isobasin.tasks.processors import Processor, build_image_processor, build_tokenizer, load_config, load_processor

if TYPE_CHECKING:
    from datasets import Dataset

Part = Literal["train", "test"]

_MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")
_PLACE = "{data}"
_VARIABLE = "ISOBASIN_DATA"
# Of splits and choices of examples: the data are the same for every seed of an experiment.
_SEED = 0


def data_root() -> str:
    """The folder that `{data}` stands for: what ISOBASIN_DATA names, else `../shared/data`."""
    return str(Path(os.environ.get(_VARIABLE) or Path("..", "shared", "data")).resolve())


def rows(data: DataSettings, part: Part, root: str) -> Dataset:
    """The rows of one part, with columns named by role.

    Raises:
        DataError: They can't be found or read.
    """
    return _rows(data.model_dump_json(), part, root)


def first_examples(data: DataSettings, root: str, processor: Processor) -> Examples:
    """The training examples of a model that isn't there yet.

    Raises:
        DataError: They can't be found or read, or don't fit.
    """
    kind, options = TaskKind(data.task), _options(data, "train", root)
    return _named(prepare(rows(data, "train", root), kind, processor, options), data)


def examples(data: DataSettings, part: Part, root: str, model: Path, labels: tuple[str, ...] | None) -> Examples:
    """The examples of one part, as a model sees them.

    Args:
        data: Which data.
        part: Of them.
        root: What `{data}` stands for.
        model: Folder with the model's configuration and its tokenizer or image processor.
        labels: Names of the classes in the order of the model's outputs; None: as the data have them.

    Raises:
        DataError: They can't be found or read, or don't fit.
    """
    return _named(_examples(data.model_dump_json(), part, root, _Stored.of(model), labels), data)


def _named(found: Examples, data: DataSettings) -> Examples:
    """The examples with their source as the settings name it: records say nothing of this machine's folders."""
    anything: Any = found
    return replace(anything, facts=replace(found.facts, source=data.source))


@dataclass(frozen=True)
class _Stored:
    """A tokenizer or image processor beside a model; two with equal files are one.

    Attributes:
        digest: Of the files.
        folder: One that has them.
    """

    digest: str
    folder: str = field(compare=False)

    @classmethod
    def of(cls, model: Path) -> _Stored:
        found = hashlib.sha256()
        for file in processor_files(model):
            found.update(file.name.encode() + file.read_bytes())
        return cls(found.hexdigest(), str(model))


def processor_files(model: Path) -> list[Path]:
    """The files beside a model that are its tokenizer or image processor."""
    files = (file for file in sorted(model.iterdir()) if file.is_file() and file.suffix != ".safetensors")
    return [file for file in files if not is_own(file.name) and file.name not in _MODEL_FILES]


@lru_cache(maxsize=4)
def _rows(data_json: str, part: Part, root: str) -> Dataset:
    data = DataSettings.model_validate_json(data_json)
    kind = TaskKind(data.task)
    if data.source.startswith(GENERATED):
        dataset, _ = with_roles(generated(data, part), kind, data.columns, data.source)
        dataset.info.description = "made up for a smoke run"
        return dataset
    if data.holdout is None:
        return read_dataset(_options(data, part, root), kind)
    whole = read_dataset(_options(data, "train", root), kind)
    return whole.train_test_split(test_size=data.holdout, seed=_SEED)[part]


@lru_cache(maxsize=4)
def _examples(data_json: str, part: Part, root: str, stored: _Stored, labels: tuple[str, ...] | None) -> Examples:
    data = DataSettings.model_validate_json(data_json)
    kind = TaskKind(data.task)
    processor = load_processor(stored.folder, kind)
    config = None if labels is None else load_config(stored.folder, id2label=dict(enumerate(labels)))
    return prepare(rows(data, part, root), kind, processor, _options(data, part, root), config=config)


def _options(data: DataSettings, part: Part, root: str) -> DataOptions:
    most = data.max_train if part == "train" else data.max_test
    # A part that is held out of the training split has no split of its own.
    split = data.train if part == "train" or data.test is None else data.test
    return DataOptions(_source(data.source, root), data.name, split, data.columns, most, data.length, _SEED)


def _source(source: str, root: str) -> str:
    if not source.startswith(_PLACE):
        return source
    found = Path(root + source.removeprefix(_PLACE))
    if not found.exists():
        raise DataError(f"{source}: there is no {found}: set {_VARIABLE} to the folder that has it")
    return str(found)


def new_processor(data: DataSettings, dataset: Dataset) -> Processor:
    """A tokenizer trained on the texts of a data set, or an image processor for its images."""
    if data.task is TaskKind.image_classification:
        side, channels = image_shape(data, dataset)
        return Processor(images=build_image_processor(side, channels), channels=channels)
    assert data.tokenizer is not None
    roles = [role for role in ("text", "text_pair") if role in dataset.column_names]
    texts = chain.from_iterable(dataset[role] for role in roles)
    encoder = data.task in ("text-classification", "masked-lm")
    tokenizer = build_tokenizer(texts, data.tokenizer.kind, data.tokenizer.size, classification=encoder)
    return Processor(tokenizer=tokenizer)


def image_shape(data: DataSettings, dataset: Dataset) -> tuple[int, int]:
    """Side and channels of the images that models see; those of the first image, unless the settings say the side."""
    import numpy as np

    pixels = np.asarray(dataset[0]["image"])
    return data.image_size or pixels.shape[0], 1 if pixels.ndim == 2 else pixels.shape[2]
