"""Tokenizers and image processors: a checkpoint's, or made from data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isobasin.errors import CheckpointError, DataError
from isobasin.model import quiet_transformers
from isobasin.tasks.kind import TaskKind, register_own_models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_MASK = {"mask_token": "[MASK]"}
_END = {"pad_token": "<|pad|>", "unk_token": "<|unk|>", "eos_token": "<|endoftext|>"}


@dataclass(frozen=True, eq=False)
class Processor:
    """What turns texts or images into a model's inputs.

    Attributes:
        tokenizer: Of transformers, for texts.
        images: An image processor of transformers, for images.
        channels: Colours of an image: 1 or 3.
        notes: What a reader has to know of them.
    """

    tokenizer: Any = None
    images: Any = None
    channels: int = 3
    notes: tuple[str, ...] = ()


def load_processor(
    folder: str | os.PathLike[str], kind: TaskKind | str, tokenizer: str | os.PathLike[str] | None = None
) -> Processor:
    """The tokenizer or image processor of a checkpoint.

    Args:
        folder: The checkpoint's folder, or a hub id.
        kind: The task.
        tokenizer: Another folder or hub id, or a JSON file that maps single characters to ids (`{"a": 0, …}`), or lists
            them (`["a", …]`, `{"chars": ["a", …]}`).

    Returns:
        For images without a processor of their own: one that scales to [-1, 1] at the configuration's size.

    Raises:
        DataError: There is no tokenizer, or no image size.
    """
    kind = TaskKind(kind)
    register_own_models()
    if kind == TaskKind.image_classification:
        return _image_processor(folder)
    if tokenizer is not None and os.fspath(tokenizer).endswith(".json"):
        return Processor(tokenizer=_character_tokenizer(Path(tokenizer)))
    return Processor(tokenizer=_tokenizer(os.fspath(folder if tokenizer is None else tokenizer), tokenizer is None))


def _image_processor(folder: str | os.PathLike[str]) -> Processor:
    import transformers

    name = os.fspath(folder)
    with quiet_transformers():
        config: Any = _config(name)
        size, channels = getattr(config, "image_size", None), int(getattr(config, "num_channels", 3))
        if Path(name).is_dir() and not any((Path(name) / f).is_file() for f in _PROCESSOR_FILES):
            if size is None:
                raise DataError(f"{name}: has no image processor, and its configuration no image_size")
            note = "the model has no image processor: pixels are scaled to [-1, 1] at its image size"
            return Processor(images=build_image_processor(size, channels), channels=channels, notes=(note,))
        try:
            images = transformers.AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise DataError(f"{name}: its image processor can't be loaded ({_line(error)})") from error
    return Processor(images=images, channels=channels)


_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def _config(name: str) -> Any:
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name}: its configuration can't be read ({_line(error)})") from error


def _tokenizer(name: str, own: bool) -> Any:
    """A folder's tokenizer, if it has one: transformers would make up an empty one from the model's type."""
    import transformers

    folder = Path(name)
    whose = f"{name}: has no tokenizer" if own else f"--tokenizer {name}"
    advice = "name one with --tokenizer: a folder, a hub id, or a .json file with its characters"
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise DataError(f"{name}: has no tokenizer: {advice}")
    with quiet_transformers():
        try:
            return transformers.AutoTokenizer.from_pretrained(name)
        except Exception as error:  # tokenizers raises plain exceptions
            raise DataError(f"{whose} that can be loaded ({_line(error)}): {advice}") from error


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _character_tokenizer(path: Path) -> Any:
    """A tokenizer of single characters from a JSON file."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--tokenizer {path}: can't be read ({_line(error)})") from error
    if isinstance(content, Mapping) and len(content) == 1 and isinstance(next(iter(content.values())), (list, Mapping)):
        content = next(iter(content.values()))
    table = {c: i for i, c in enumerate(content)} if isinstance(content, list) else content
    fine = (
        isinstance(table, Mapping) and table and all(isinstance(i, int) and len(str(c)) == 1 for c, i in table.items())
    )
    if not fine:
        raise DataError(f"--tokenizer {path}: has to map single characters to ids, or to list them")
    return _characters({str(c): int(i) for c, i in table.items()}, {})


def _characters(vocabulary: dict[str, int], special: dict[str, str]) -> Any:
    """One token for each character."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    unknown = special.get("unk_token")
    model = models.WordLevel(vocabulary, unk_token=unknown) if unknown else models.WordLevel(vocabulary, unk_token="")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **special)


def build_tokenizer(
    texts: Iterable[str], kind: Literal["characters", "bpe"], size: int, *, classification: bool
) -> PreTrainedTokenizerFast:
    """A tokenizer made from texts, which `save_pretrained` stores and `AutoTokenizer` loads again.

    Args:
        texts: What it is made from.
        kind: "characters", one token each, the most frequent ones; or "bpe", byte-level pair encoding.
        size: Most tokens, special ones included.
        classification: Whether texts stand between [CLS] and [SEP], as encoders want them, with a [MASK]; otherwise
            there is an end-of-text token.
    """
    special = _SPECIAL | _MASK if classification else dict(_END)
    if kind == "characters":
        made = _characters(_most_frequent(texts, list(special.values()), size), special)
    else:
        made = _trained_bpe(texts, size, special)
    if classification:
        _frame(made.backend_tokenizer, special)
    return made


def _most_frequent(texts: Iterable[str], special: list[str], size: int) -> dict[str, int]:
    from collections import Counter

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    room = max(size - len(special), 0)
    kept = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:room])
    return {token: index for index, token in enumerate([*special, *kept])}


def _trained_bpe(texts: Iterable[str], size: int, special: dict[str, str]) -> Any:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **special)


def _frame(backend: Any, special: dict[str, str]) -> None:
    """Put [CLS] before and [SEP] after every text."""
    from tokenizers import processors

    first, last = special["cls_token"], special["sep_token"]
    ids = [(token, backend.token_to_id(token)) for token in (first, last)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ids
    )


def build_image_processor(size: int | tuple[int, int], channels: int) -> Any:
    """An image processor that resizes and scales pixels to [-1, 1]; `AutoImageProcessor` loads what it saves.

    Args:
        size: Side of the images, or height and width.
        channels: 1 or 3.
    """
    import transformers

    height, width = (size, size) if isinstance(size, int) else size
    with quiet_transformers():
        return transformers.ViTImageProcessor(
            size={"height": height, "width": width}, image_mean=[0.5] * channels, image_std=[0.5] * channels
        )
