"""Tokenizers and image processors: a checkpoint's, or made from data."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobasin.architectures.configuration import described_by
from isobasin.checkpoints import Checkpoint
from isobasin.choices import TaskKind, Vocabulary
from isobasin.errors import CheckpointError, DataError, IsobasinError, about
from isobasin.loading import auto, configuration, quiet_transformers
from isobasin.tasks.options import LONGEST_SIDE
from isobasin.tasks.reading import reading, regular_file

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

    @cached_property
    def characters(self) -> frozenset[str] | None:
        """All that the tokenizer can write, if its tokens are characters and none of them stands for all others."""
        import tokenizers

        made = getattr(self.tokenizer, "backend_tokenizer", None)
        if made is None or not isinstance(made.model, tokenizers.models.WordLevel):
            return None
        vocabulary = made.get_vocab(with_added_tokens=False)
        alone = made.model.unk_token not in vocabulary and all(len(token) == 1 for token in vocabulary)
        return frozenset(vocabulary) if alone else None


def load_processor(
    folder: str | os.PathLike[str], kind: TaskKind | str, tokenizer: str | os.PathLike[str] | None = None
) -> Processor:
    """The tokenizer or image processor of a checkpoint; code that lies in the folder is never run.

    Args:
        folder: The checkpoint's folder, or a hub id.
        kind: The task.
        tokenizer: Another folder or hub id, or a JSON file that maps single characters to ids (`{"a": 0, …}`), or lists
            them (`["a", …]`, `{"chars": ["a", …]}`).

    Returns:
        For images without a processor of their own: one that scales to [-1, 1] at the configuration's size.

    Raises:
        CheckpointError: The configuration can't be read.
        DataError: There is no tokenizer, or no image size.
    """
    kind = TaskKind(kind)
    if kind == TaskKind.image_classification:
        return _image_processor(os.fspath(folder))
    if tokenizer is not None and os.fspath(tokenizer).endswith(".json"):
        return Processor(tokenizer=_character_tokenizer(Path(tokenizer)))
    return Processor(tokenizer=_tokenizer(os.fspath(folder if tokenizer is None else tokenizer), tokenizer is None))


def config_of(name: str, checkpoint: Checkpoint) -> Any:
    """The configuration of a checkpoint: facts about the model only, with sizes that its tensors leave room for.

    Raises:
        ArchitectureError: transformers has no such model type, or refuses it; or a size is out of all proportion.
    """
    with about(name):
        return described_by(checkpoint.config, checkpoint.shapes)


def load_config(folder: str | os.PathLike[str], **entries: Any) -> Any:
    """The configuration in a folder as transformers reads it, with some entries replaced.

    Raises:
        CheckpointError: It can't be read.
    """
    name = os.fspath(folder)
    try:
        with reading(f"{name}: its configuration can't be read", "check config.json"):
            return _pretrained("AutoConfig", name, **entries) if entries else configuration(name)
    except IsobasinError as error:
        said = str(error) if name in str(error) else f"{name}: its configuration can't be read ({error})"
        raise CheckpointError(said) from error


def _pretrained(loader: str, name: str, **options: Any) -> Any:
    """What one of transformers' Auto classes loads; a folder's own code is refused without asking.

    Raises:
        DataError: A folder has something that reading would wait for forever, or needs its own code.
    """
    folder = Path(name)
    for entry in folder.iterdir() if folder.is_dir() else ():
        # Of several files transformers chooses what it reads; none may be a pipe.
        if not entry.is_dir() and entry.exists():
            regular_file(entry)
    try:
        return auto(loader, name, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise DataError(
            f"{name}: needs Python code of its own (auto_map), which isn't run: "
            "use a checkpoint of a model type that transformers has"
        ) from error


def _image_processor(name: str) -> Processor:
    config = load_config(name)
    fitting = "correct preprocessor_config.json, or image_size and num_channels in config.json"
    with reading(f"{name}: its image processor can't be loaded", fitting):
        size, channels = getattr(config, "image_size", None), int(getattr(config, "num_channels", 3))
        notes: tuple[str, ...] = ()
        if Path(name).is_dir() and not any((Path(name) / f).is_file() for f in _PROCESSOR_FILES):
            if size is None:
                raise DataError(f"{name}: has no image processor, and its configuration no image_size")
            notes = ("the model has no image processor: pixels are scaled to [-1, 1] at its image size",)
            images = build_image_processor(size, channels)
        else:
            images = _pretrained("AutoImageProcessor", name)
        _check_sizes(images, name)
    return Processor(images=images, channels=channels, notes=notes)


_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def _check_sizes(images: Any, name: str) -> None:
    """Refuse a processor that makes, on the way or in the end, images of absurd sizes."""
    for entry in ("size", "crop_size", "pad_size"):
        sides: Any = getattr(images, entry, None) or {}
        for side, value in dict(sides).items():
            if value is not None and not 0 < int(value) <= LONGEST_SIDE:
                raise DataError(f"{name}: its image processor's {entry} has {side} {value}: at most {LONGEST_SIDE}")


def _tokenizer(name: str, own: bool) -> Any:
    """A folder's tokenizer, if it has one: transformers would make up an empty one from the model's type."""
    folder = Path(name)
    whose = f"{name}: has no tokenizer" if own else f"--tokenizer {name}"
    advice = "name one with --tokenizer: a folder, a hub id, or a .json file with its characters"
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise DataError(f"{name}: has no tokenizer: {advice}")
    with reading(f"{whose} that can be loaded", advice):
        return _pretrained("AutoTokenizer", name)


_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


def _character_tokenizer(path: Path) -> Any:
    """A tokenizer of single characters from a JSON file."""
    name = f"--tokenizer {path}"
    with reading(f"{name}: can't be read", "give JSON that maps single characters to ids, or lists them"):
        text = regular_file(path, _LARGEST_TABLE).read_text(encoding="utf-8-sig")
        content: Any = json.loads(text, object_pairs_hook=_unique)
        if isinstance(content, dict) and len(content) == 1 and isinstance(next(iter(content.values())), (list, dict)):
            content = next(iter(content.values()))
        pairs = [(c, i) for i, c in enumerate(content)] if isinstance(content, list) else list(dict(content).items())
        _check_characters(pairs, name)
        return _characters(dict(pairs), {})


_LARGEST_TABLE = 2**26


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused where a key is there twice, of which json would take the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:number]))
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _check_characters(pairs: list[tuple[Any, Any]], name: str) -> None:
    """Refuse a table that is not one-to-one from characters to small ids."""
    most, seen = sys.maxunicode, set[Any]()
    if not pairs:
        raise DataError(f"{name}: has no characters: it has to map single characters to ids, or to list them")
    for character, number in pairs:
        if not isinstance(character, str) or len(character) != 1 or type(number) is not int:
            raise DataError(f"{name}: has {character!r}: it has to map single characters to ids, or to list them")
        if not 0 <= number <= most:
            raise DataError(f"{name}: {character!r} has id {number}: ids are from 0 to {most}")
        if character in seen or number in seen:
            raise DataError(f"{name}: {character!r} or its id {number} is there twice: each character has its own id")
        seen |= {character, number}


def _characters(vocabulary: dict[str, int], special: dict[str, str]) -> Any:
    """One token for each character."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=special.get("unk_token", "")))
    made.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **special)


def build_tokenizer(
    texts: Iterable[str], kind: Vocabulary | str, size: int, *, classification: bool
) -> PreTrainedTokenizerFast:
    """A tokenizer made from texts, which `save_pretrained` stores and `AutoTokenizer` loads again.

    Args:
        texts: What it is made from.
        kind: Which tokens it has; of characters the most frequent ones.
        size: Most tokens, special ones included.
        classification: Whether texts stand between [CLS] and [SEP], as encoders want them, with a [MASK]; otherwise
            there is an end-of-text token.
    """
    special = _SPECIAL | _MASK if classification else dict(_END)
    if Vocabulary(kind) is Vocabulary.characters:
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
