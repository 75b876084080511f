"""From a name or a path to examples that a model can be given."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from isobasin.canonical import Source, name_of, open_checkpoint
from isobasin.checkpoints import Checkpoint
from isobasin.choices import GENERATED, TaskKind
from isobasin.errors import DataError
from isobasin.reads import keeping
from isobasin.tasks.columns import with_roles
from isobasin.tasks.examples import Examples
from isobasin.tasks.generated import generated
from isobasin.tasks.kind import kind_of
from isobasin.tasks.options import DataFacts, DataOptions
from isobasin.tasks.processors import config_of, load_processor
from isobasin.tasks.reading import reading
from isobasin.tasks.sources import read_source
from isobasin.verbs.settings import Progress, silent

if TYPE_CHECKING:
    from datasets import Dataset

    from isobasin.tasks.processors import Processor

__all__ = [
    "Data",
    "DataFacts",
    "DataOptions",
    "Examples",
    "asked_for",
    "examples_in",
    "examples_of",
    "keeping_data",
    "prepare",
    "read_dataset",
]

Data = Union[str, "os.PathLike[str]", DataOptions, Examples]
"""What a verb takes as data: a hub id or path, the same with more said of it, or examples that are prepared."""


def asked_for(data: Data) -> DataOptions | Examples:
    """Data of which only a name is given as the options that say no more; others as they are."""
    return DataOptions(os.fspath(data)) if isinstance(data, (str, os.PathLike)) else data


def keeping_data(data: Data | None) -> AbstractContextManager[None]:
    """Keep what data are read from, and with: no folder that has it is replaced in the block."""
    asked = None if data is None else asked_for(data)
    if isinstance(asked, DataOptions):
        return keeping(Path(asked.source).expanduser(), asked.tokenizer)
    return keeping(None if asked is None else asked.facts.source)


def examples_of(
    data: Data,
    model: Source,
    *others: Source,
    allow_pickle: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> Examples:
    """Data as a model sees them, with its tokenizer or image processor; prepared examples as they are.

    Args:
        data: The data.
        model: The model.
        others: Those that are aligned with it, which write data too if these are "generated".
        allow_pickle: Load pickled weights, with `weights_only`.
        device: Where data are generated.
        progress: Called as that goes on.

    Raises:
        DataError: They can't be found or read, or don't fit the model.
        CheckpointError: The model can't be found or read.
    """
    with ExitStack() as stack:
        needed = (model, *others) if _is_generated(data) else (model,)
        opened = [stack.enter_context(open_checkpoint(one, allow_pickle=allow_pickle)) for one in needed]
        return examples_in(data, name_of(model), *opened, device=device, progress=progress)


def examples_in(
    data: Data,
    name: str,
    checkpoint: Checkpoint,
    *others: Checkpoint,
    device: str = "cpu",
    progress: Progress = silent,
) -> Examples:
    """The same as a model sees them that is open already, as the others are; `name` is what the user called it.

    Raises:
        DataError: They can't be found or read, or don't fit the model.
    """
    asked = asked_for(data)
    if isinstance(asked, Examples):
        return asked
    config = config_of(name, checkpoint)
    kind = kind_of(checkpoint.config) if asked.task is None else TaskKind(asked.task)
    if _is_generated(asked):
        configs = [config, *(config_of(name, other) for other in others)]
        return generated((checkpoint, *others), kind, asked, configs, device=device, progress=progress)
    processor = load_processor(checkpoint.folder, kind, asked.tokenizer)
    return prepare(read_dataset(asked, kind), kind, processor, asked, config=config)


def _is_generated(data: Data) -> bool:
    """Whether the models write the data themselves."""
    asked = asked_for(data)
    return isinstance(asked, DataOptions) and asked.source == GENERATED


def read_dataset(options: DataOptions, kind: TaskKind | str) -> Dataset:
    """The rows of one split, their columns named by role: "image", "text", "text_pair", "label".

    Args:
        options: Which data. `max_examples` is not applied yet.
        kind: The task, which decides the roles.

    Returns:
        The rows; what a reader has to know of how they were read is in `info.description`, a line each.

    Raises:
        DataError: They can't be found or read, or a role has no column.
        DependencyError: A package that reads them is missing.
    """
    with reading(f"{options.source}: can't be read"):
        dataset, notes = read_source(options.source, options.name, options.split)
        if not len(dataset):
            raise DataError(f"{options.source}: has no rows: choose another split with --split, or check the data")
        dataset, more = with_roles(dataset, TaskKind(kind), options.columns, options.source)
    # Notes travel with the rows: `info` survives `select`, `filter` and `map`.
    dataset.info.description = "\n".join([*notes, *more])
    return dataset


def prepare(
    dataset: Dataset, kind: TaskKind | str, processor: Processor, options: DataOptions, *, config: Any = None
) -> Examples:
    """Examples from the rows that `read_dataset` returned.

    Texts to classify are cut to `options.length` tokens, or to what the model allows. For language models documents
    are joined, with the end-of-text token after each, and cut into blocks; lines of a running text are joined as they
    are. For masked ones 15 % of the tokens are to be predicted, drawn once with `options.seed`.

    Args:
        dataset: Rows with columns named by role.
        kind: The task.
        processor: Tokenizer or image processor.
        options: Number, length, seed; source and split for the facts.
        config: The model's configuration: labels, longest input, vocabulary. None checks nothing against it.

    Raises:
        DataError: The rows don't fit the model or the processor.
    """
    kind = TaskKind(kind)
    with reading(f"{options.source}: can't be prepared for the model"):
        if kind == TaskKind.image_classification:
            from isobasin.tasks.images import prepare_images

            return prepare_images(dataset, processor, options, config)
        from isobasin.tasks import texts

        if kind == TaskKind.text_classification:
            return texts.prepare_classification(dataset, processor, options, config)
        return texts.prepare_blocks(dataset, kind, processor, options, config)
