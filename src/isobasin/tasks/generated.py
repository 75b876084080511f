"""Texts that language models write themselves: data where there are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from isobasin.architectures.meaning import first_position
from isobasin.checkpoints import Checkpoint
from isobasin.choices import GENERATED, TaskKind
from isobasin.errors import CheckpointError, DataError, refusing
from isobasin.loading import quiet_transformers
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.kind import load_model
from isobasin.tasks.options import DataFacts, DataOptions
from isobasin.verbs.settings import Progress, silent

# How many texts of how many tokens there are unless it is said, and how many are written at a time.
_COUNT, _LENGTH, _BATCH = 1024, 128, 256
# What says how texts are read, which none are.
_READING = ("name", "split", "columns", "tokenizer", "skip_unknown")


def generated(
    writers: Sequence[Checkpoint],
    kind: TaskKind,
    options: DataOptions,
    configs: Sequence[Any],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> TensorExamples:
    """Texts that decoders draw from their own predictions, each as many as the others.

    The first token is the one that stands at the beginning of texts, or any one where there is none, and every other
    one is drawn from `p(token | those before it)` as it is predicted: no temperature, and no end before the length.

    Args:
        writers: The models.
        kind: What they do.
        options: How many texts, their length, and the seed.
        configs: The models' configurations.
        device: Where they are written: others draw other texts.
        progress: Called with how many are written.

    Raises:
        DataError: The models write no texts, or what is asked is said of data that are read.
        CheckpointError: A model can't be loaded.
    """
    if kind is not TaskKind.causal_lm:
        raise DataError(f"{GENERATED}: texts are written by causal language models only: name data with --data")
    if asked := [name for name in _READING if getattr(options, name)]:
        said = asked[0].replace("_", "-")
        raise DataError(f"{GENERATED}: nothing is read, so there is no --{said}: leave it out, or name other data")
    length, size = _length(configs, options), min(config.vocab_size for config in configs)
    count = max(options.max_examples or _COUNT, len(writers))
    texts: list[Tensor] = []
    for number, writer in enumerate(writers):
        model: Any = load_model(writer, kind, device)
        share = len(range(number, count, len(writers)))
        for written in _written(model, share, length, size, options.seed + number):
            texts.append(written.cpu())
            progress("writing texts", sum(map(len, texts)), count)
    tokens = torch.cat(texts)
    by = f"{len(writers)} model{'s' if len(writers) > 1 else ''}"
    notes = (f"texts of {length} tokens, written by {by} of this run",)
    facts = DataFacts(GENERATED, None, str(kind), count, "", notes)
    return TensorExamples.of({"input_ids": tokens, "labels": tokens}, facts)


def _length(configs: Sequence[Any], options: DataOptions) -> int:
    """Tokens of a text: what is asked, within what all models take."""
    positions = [
        config.max_position_embeddings - first_position(config)
        for config in configs
        if getattr(config, "max_position_embeddings", None)
    ]
    longest = min(positions, default=options.length or _LENGTH)
    length = options.length or min(_LENGTH, longest)
    if length > longest:
        raise DataError(f"--length {length}: the models take at most {longest} tokens")
    if length < 2:
        raise DataError(f"--length {length} leaves no tokens to predict: take more")
    return length


def _written(model: Any, count: int, length: int, size: int, seed: int) -> Iterator[Tensor]:
    """Texts of a model in batches, with tokens below a number."""
    import transformers

    if not callable(getattr(model, "generate", None)):
        raise DataError(f"{GENERATED}: {type(model).__name__} has no method that writes texts: name data with --data")
    config, generator = model.config, torch.Generator().manual_seed(seed)
    start = getattr(config, "bos_token_id", None)
    # Everything is said, so that nothing is taken over from what the checkpoint says of its own use.
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=length - 1,
        suppress_tokens=list(range(size, config.vocab_size)) or None,
        pad_token_id=0,
    )
    for done in range(0, count, _BATCH):
        first = torch.randint(size, (min(_BATCH, count - done), 1), generator=generator)
        if isinstance(start, int) and 0 <= start < size:
            first = torch.full_like(first, start)
        yield _continued(model, first.to(model.device), seed + done)


def _continued(model: Any, first: Tensor, seed: int) -> Tensor:
    """Texts that begin so."""
    devices = [first.device] if first.is_cuda else []
    with (
        quiet_transformers(),
        torch.random.fork_rng(devices),
        refusing(
            CheckpointError, lambda reason: f"{type(model).__name__} can't write texts ({reason}): name other data"
        ),
    ):
        torch.manual_seed(seed)
        return model.generate(first, attention_mask=torch.ones_like(first))
