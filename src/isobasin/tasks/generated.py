"""Texts that language models write themselves: data where there are none."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
from isobasin.tasks.precision import quicker_in_bfloat16
from isobasin.tasks.processors import load_processor
from isobasin.tasks.texts import check_masks, framed, with_masks
from isobasin.verbs.settings import Progress, silent

# How many texts of how many tokens there are unless it is said, and how many are written at a time.
_COUNT, _LENGTH, _BATCH = 1024, 128, 256
# How often a share of a text is masked and drawn anew, as large as models are trained with, and how many scores of
# tokens are held meanwhile.
_SWEEPS, _SHARE, _SCORES = 24, 0.15, 2**26
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
    """Texts that language models draw from their own predictions, each as many as the others.

    A causal one begins with the token that stands at the beginning of texts, or any one where there is none, and draws
    every other one from `p(token | those before it)` as it is predicted: no temperature, and no end before the length.
    A masked one begins with any tokens between the tokenizer's special ones. 24 times 15 % of them, chosen at random,
    are masked and drawn anew from `p(token | the others)`; then 15 % are masked once more, to be predicted.

    Args:
        writers: The models.
        kind: What they do.
        options: How many texts, their length, and the seed; of masked ones another tokenizer than the first's.
        configs: The models' configurations.
        device: Where they are written, in bfloat16 where that is quicker: others draw other texts.
        progress: Called with how many are written.

    Raises:
        DataError: The models write no texts, what is asked is said of data that are read, or there is no tokenizer.
        CheckpointError: A model can't be loaded.
    """
    if kind not in (TaskKind.causal_lm, TaskKind.masked_lm):
        raise DataError(f"{GENERATED}: texts are written by language models only: name data with --data")
    tokenizer = None
    if kind is TaskKind.masked_lm:
        tokenizer = load_processor(writers[0].folder, kind, options.tokenizer).tokenizer
        check_masks(tokenizer)
    unused = (name for name in _READING if tokenizer is None or name != "tokenizer")
    if asked := [name for name in unused if getattr(options, name)]:
        said = asked[0].replace("_", "-")
        raise DataError(f"{GENERATED}: nothing is read, so there is no --{said}: leave it out, or name other data")
    frame = 0 if tokenizer is None else tokenizer.num_special_tokens_to_add()
    length, size = _length(configs, options, frame), min(config.vocab_size for config in configs)
    count = max(options.max_examples or _COUNT, len(writers))
    write = _written if tokenizer is None else partial(_filled, tokenizer)
    texts: list[Tensor] = []
    for number, writer in enumerate(writers):
        model: Any = load_model(writer, kind, device)
        single = {x.dtype for x in model.parameters()} == {torch.float32}
        if single and quicker_in_bfloat16(model.parameters(), device):
            model.to(torch.bfloat16)
        share = len(range(number, count, len(writers)))
        for written in write(model, share, length, size, options.seed + number):
            texts.append(written.cpu())
            progress("writing texts", sum(map(len, texts)), count)
    tokens = torch.cat(texts)
    tensors = {"input_ids": tokens, "labels": tokens}
    by = f"{len(writers)} model{'s' if len(writers) > 1 else ''}"
    notes = (f"texts of {length} tokens, written by {by} of this run",)
    facts = DataFacts(GENERATED, None, str(kind), count, "", notes)
    return TensorExamples.of(tensors if tokenizer is None else with_masks(tokens, tokenizer, options), facts)


def _length(configs: Sequence[Any], options: DataOptions, frame: int) -> int:
    """Tokens of a text, special ones included: what is asked, within what all models take."""
    positions = [
        config.max_position_embeddings - first_position(config)
        for config in configs
        if getattr(config, "max_position_embeddings", None)
    ]
    longest = min(positions, default=options.length or _LENGTH)
    length = options.length or min(_LENGTH, longest)
    if length > longest:
        raise DataError(f"--length {length}: the models take at most {longest} tokens")
    if length - frame < 2:
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
    with _writing(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return model.generate(first, attention_mask=torch.ones_like(first))


@torch.no_grad()
def _filled(tokenizer: Any, model: Any, count: int, length: int, size: int, seed: int) -> Iterator[Tensor]:
    """Texts of a masked model in batches, with tokens of the tokenizer's below a number."""
    device, width, mask = model.device, model.config.vocab_size, tokenizer.mask_token_id
    generator = torch.Generator(device).manual_seed(seed)
    frame = framed(torch.full((1, length - tokenizer.num_special_tokens_to_add()), mask), tokenizer).to(device)
    places = (frame[0] == mask).nonzero().squeeze(-1)
    known = {token for token in tokenizer.get_vocab().values() if token < size} - {*tokenizer.all_special_ids}
    tokens = torch.tensor(sorted(known), device=device)
    most, redrawn = max(1, min(_BATCH, _SCORES // (length * width))), max(1, round(_SHARE * len(places)))
    for done in range(0, count, most):
        texts = frame.repeat(min(most, count - done), 1)
        with _writing(model):
            drawn = torch.randint(len(tokens), (len(texts), len(places)), generator=generator, device=device)
            texts[:, places] = tokens[drawn]
            for _ in range(_SWEEPS):
                chosen = torch.rand(drawn.shape, generator=generator, device=device).topk(redrawn, 1).indices
                chosen = places[chosen]
                texts.scatter_(1, chosen, mask)
                scores = model(input_ids=texts, attention_mask=torch.ones_like(texts)).logits
                scores = scores.gather(1, chosen.unsqueeze(-1).expand(-1, -1, scores.shape[-1]))
                likely = scores[..., tokens].float().softmax(-1).flatten(0, 1)
                texts.scatter_(1, chosen, tokens[likely.multinomial(1, generator=generator)].view_as(chosen))
        yield texts


@contextmanager
def _writing(model: Any) -> Generator[None]:
    """Turn whatever a model raises over its own texts into one line."""

    def said(reason: str) -> str:
        return f"{type(model).__name__} can't write texts ({reason}): name other data"

    with quiet_transformers(), refusing(CheckpointError, said):
        yield
