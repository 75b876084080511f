"""From a name or a path to examples that a model can be given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isobasin.choices import TaskKind
from isobasin.errors import DataError
from isobasin.tasks.columns import with_roles
from isobasin.tasks.examples import Examples
from isobasin.tasks.options import DataFacts, DataOptions
from isobasin.tasks.reading import reading
from isobasin.tasks.sources import read_source

if TYPE_CHECKING:
    from datasets import Dataset

    from isobasin.tasks.processors import Processor

__all__ = ["DataFacts", "DataOptions", "Examples", "prepare", "read_dataset"]


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
