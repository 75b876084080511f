"""Texts as tokens: one row for each text to classify, or blocks of joined documents for language models."""

from __future__ import annotations

import random
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from isobasin.architectures.meaning import first_position
from isobasin.choices import TaskKind
from isobasin.errors import DataError
from isobasin.tasks.examples import IGNORED, TensorExamples, chosen, facts_of
from isobasin.tasks.labels import chosen_rows
from isobasin.tasks.options import DataOptions
from isobasin.tasks.reading import reading
from isobasin.tasks.spelling import Spelling

if TYPE_CHECKING:
    from datasets import Dataset

    from isobasin.tasks.processors import Processor

_ROWS = 1000
_CHARACTERS = 2**13
_BLOCK = 1024
_TOGETHER = 1000
# Characters that are tokenised at least where only some blocks are wanted: those are then drawn from far apart.
_SAMPLED = 2**22
_MASKED_SHARE = 0.15


def prepare_classification(dataset: Dataset, processor: Processor, options: DataOptions, config: Any) -> TensorExamples:
    """Tokens, mask and label of every text, padded to the longest of them."""
    tokenizer = _tokenizer(processor)
    if config is not None and getattr(config, "pad_token_id", 0) is None:
        raise DataError("the model's configuration has no pad_token_id, which batches of texts need: set it there")
    dataset, labels = chosen_rows(dataset, config, options)
    length = _longest(tokenizer, options, config)
    encoded: dict[str, list[list[int]]] = {}
    spelled = Spelling(processor, options)
    for start in range(0, len(dataset), _ROWS):
        part: Any = dataset[start : start + _ROWS]
        texts = [spelled(_checked(part[role], options.source)) for role in ("text", "text_pair") if role in part]
        for name, values in _tokens(tokenizer, options.source, texts, truncation=True, max_length=length).items():
            encoded.setdefault(name, []).extend(values)
    empty = [number for number, row in enumerate(encoded["input_ids"]) if not row]
    if empty:
        many = f"{len(empty)} texts, first number {empty[0] + 1} of {len(dataset)}, have no tokens"
        raise DataError(f"{options.source}: {many}: remove them")
    tensors = _padded(encoded, tokenizer, config)
    _check_vocabulary(tensors["input_ids"], config)
    tensors["labels"] = labels.ids.to(torch.int32)
    cut = int((tensors["attention_mask"].sum(1) >= length).sum())
    notes = (
        *labels.notes,
        *spelled.notes(),
        *([f"{cut} texts fill all of {length} tokens, and may be cut"] if cut else []),
    )
    kind, classes = TaskKind.text_classification, {"num_labels": labels.count, "label_names": labels.names}
    return TensorExamples.of(tensors, facts_of(dataset, processor, options, kind, notes, **classes))


def prepare_blocks(
    dataset: Dataset, kind: TaskKind, processor: Processor, options: DataOptions, config: Any
) -> TensorExamples:
    """Blocks of tokens for a causal or masked language model; a last one that is not full is left out."""
    tokenizer = _tokenizer(processor)
    masked = kind == TaskKind.masked_lm
    if masked:
        check_masks(tokenizer)
    length = min(_longest(tokenizer, options, config), options.length or _BLOCK)
    frame = tokenizer.num_special_tokens_to_add() if masked else 0
    if length - frame < 2:
        raise DataError(f"--length {length} leaves no tokens to predict: take more")
    lines = _is_running_text(dataset)
    end = None if lines else tokenizer.sep_token_id if masked else tokenizer.eos_token_id
    pieces = _pieces(dataset, options.source, lines)
    if options.max_examples is not None:
        pieces = _sampled(pieces, max(8 * options.max_examples * length, _SAMPLED), options.seed)
    spelled = Spelling(processor, options)
    tokens, characters = _joined(pieces, spelled, tokenizer, options.source, end)
    inner = min(length - frame, len(tokens))
    if inner < 2:
        raise DataError(f"{options.source}: {len(tokens)} tokens of text, too few for a language model")
    blocks = torch.from_numpy(tokens[: len(tokens) // inner * inner].reshape(-1, inner))
    rows = chosen(len(blocks), options.max_examples, options.seed)
    blocks = blocks if rows is None else blocks[rows]
    if masked:
        tensors = with_masks(framed(blocks, tokenizer), tokenizer, options)
    else:
        tensors = {"input_ids": blocks, "labels": blocks}
    _check_vocabulary(tensors["input_ids"], config)
    joint = "lines of the text are joined" if lines else "documents are joined"
    notes = (f"{joint} and cut into blocks of {inner} tokens",) if len(dataset) > 1 else ()
    notes += spelled.notes()
    density = characters / len(tokens)
    return TensorExamples.of(tensors, facts_of(dataset, processor, options, kind, notes, characters=density))


def _tokenizer(processor: Processor) -> Any:
    if processor.tokenizer is None:
        raise DataError("texts need a tokenizer: name one with --tokenizer")
    return processor.tokenizer


def _longest(tokenizer: Any, options: DataOptions, config: Any) -> int:
    """Tokens of the longest input: what the user says, within what the model and the tokenizer allow."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if config is not None and positions:
        positions -= first_position(config)
    limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < 1e9]
    limit = int(min(limits, default=_BLOCK))
    if options.length is not None and options.length > limit:
        raise DataError(f"--length {options.length}: the model takes at most {limit} tokens")
    return options.length or limit


def _checked(texts: list[Any], source: str) -> list[str]:
    """Texts without missing ones: an empty cell of a table is an empty text."""
    if any(not isinstance(text, str) for text in texts if text is not None):
        wrong = next(text for text in texts if text is not None and not isinstance(text, str))
        raise DataError(f"{source}: the text column has {wrong!r}, not a text: choose another with --columns text=…")
    return [text or "" for text in texts]


def _padded(encoded: dict[str, list[list[int]]], tokenizer: Any, config: Any) -> dict[str, Tensor]:
    """Rows of tokens as tensors, padded on the tokenizer's side."""
    pad = tokenizer.pad_token_id
    pad = getattr(config, "pad_token_id", None) if pad is None else pad
    fill = {"input_ids": pad or 0, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0), "attention_mask": 0}
    tables = {name: [torch.tensor(row, dtype=torch.int32) for row in rows] for name, rows in encoded.items()}
    return {n: pad_sequence(rows, True, fill.get(n, 0), tokenizer.padding_side) for n, rows in tables.items()}


def _is_running_text(dataset: Dataset) -> bool:
    """Whether rows are lines of one text, with their line ends, rather than documents."""
    sample: Any = dataset[: min(len(dataset), _ROWS)]["text"]
    return all(isinstance(text, str) and (not text or text.endswith("\n")) for text in sample[:-1])


def _pieces(dataset: Dataset, source: str, lines: bool) -> list[str]:
    """What is tokenised at once: a document each, or some thousand characters of the lines of a running text."""
    texts = _checked(dataset["text"][:], source)
    if not lines:
        return texts
    pieces: list[str] = []
    waiting: list[str] = []
    size = 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= _CHARACTERS:
            pieces.append("".join(waiting))
            waiting, size = [], 0
    return [*pieces, "".join(waiting)]


def _sampled(pieces: list[str], characters: int, seed: int) -> list[str]:
    """Pieces drawn at random, in their order, until they have so many characters."""
    order = list(range(len(pieces)))
    random.Random(seed).shuffle(order)
    sizes = accumulate(len(pieces[index]) for index in order)
    count = next((number for number, size in enumerate(sizes, 1) if size >= characters), len(pieces))
    return [pieces[index] for index in sorted(order[:count])]


def _joined(pieces: list[str], spelled: Spelling, tokenizer: Any, source: str, end: int | None) -> tuple[Any, int]:
    """Tokens of the pieces one after the other, and how many characters they are."""
    found: list[Any] = []
    characters = 0
    tail = [] if end is None else [end]
    for start in range(0, len(pieces), _TOGETHER):
        texts = spelled(pieces[start : start + _TOGETHER])
        characters += sum(map(len, texts))
        rows = _tokens(tokenizer, source, [texts], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        found.append(np.fromiter(chain.from_iterable(row + tail for row in rows if row), np.int32))
    return np.concatenate(found), characters


def _tokens(tokenizer: Any, source: str, texts: list[list[str]], **options: Any) -> Any:
    """What the tokenizer makes of texts, or of pairs of them."""
    with reading(f"{source}: a text can't be tokenised", "name another with --tokenizer"):
        return tokenizer(*texts, verbose=False, **options)


def check_masks(tokenizer: Any) -> None:
    """Whether a tokenizer is one for masked language modelling.

    Raises:
        DataError: It isn't.
    """
    if tokenizer.mask_token_id is None:
        raise DataError("the tokenizer has no mask token, which masked language modelling needs: name another")


def framed(blocks: Tensor, tokenizer: Any) -> Tensor:
    """Blocks between the tokenizer's special tokens, such as [CLS] and [SEP]."""
    frame = tokenizer("", add_special_tokens=True)["input_ids"]
    first, last = frame[:1], frame[1:]
    sides = [torch.tensor(part, dtype=blocks.dtype).expand(len(blocks), -1) for part in (first, last)]
    return torch.cat([sides[0], blocks, sides[1]], 1) if frame else blocks


def with_masks(blocks: Tensor, tokenizer: Any, options: DataOptions) -> dict[str, Tensor]:
    """15 % of the tokens to predict: 80 % of them masked, 10 % replaced, 10 % kept (BERT, arXiv 1810.04805).

    Raises:
        DataError: None is.
    """
    from transformers import DataCollatorForLanguageModeling

    collator = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=_MASKED_SHARE, seed=options.seed)
    special = torch.tensor(tokenizer.all_special_ids)
    parts: list[dict[str, Tensor]] = []
    for part in blocks.long().split(256):
        rows = [{"input_ids": r, "special_tokens_mask": torch.isin(r, special).long()} for r in part]
        made: Any = collator(rows)
        parts.append({name: made[name].to(torch.int32) for name in ("input_ids", "labels")})
    found = {name: torch.cat([part[name] for part in parts]) for name in ("input_ids", "labels")}
    if not (found["labels"] != IGNORED).any():
        count = int((~torch.isin(blocks, special)).sum())
        raise DataError(f"{options.source}: too short a text: of its {count} tokens none is masked")
    return found


def _check_vocabulary(ids: Tensor, config: Any) -> None:
    size: int | None = getattr(config, "vocab_size", None)
    if size is not None and int(ids.max()) >= size:
        raise DataError(
            f"the tokenizer gives token {int(ids.max())}, the model knows {size}: name its own with --tokenizer"
        )
