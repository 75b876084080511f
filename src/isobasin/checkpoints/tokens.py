"""Which token every number stands for, read from a checkpoint's tokenizer files.

The files are read as the JSON and the lists that they are: a tokenizer that is made from them would run whatever sizes
and patterns they hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobasin.checkpoints.files import WatchedFile, leads_outside, read_object
from isobasin.errors import CheckpointError, first_line

_FAST = "tokenizer.json"
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm")


@dataclass(frozen=True)
class Tokens:
    """What the tokenizer files of a folder say.

    Attributes:
        file: The file that has the tokens.
        ids: The number of every token; empty where only a digest can be had.
        merges: Digest of the rules by which words are cut, where they are beside the tokens; None otherwise.
    """

    file: str
    ids: Mapping[str, int]
    merges: str | None = None


def read_tokens(folder: Path) -> Tokens | None:
    """The tokens of a folder; None if it has no tokenizer files.

    Raises:
        CheckpointError: A tokenizer file is damaged.
    """
    if _there(folder, _FAST):
        return _fast(folder / _FAST)
    added = dict(_added(folder))
    if _there(folder, "vocab.json"):
        ids = _numbers(folder / "vocab.json", _json(folder / "vocab.json"))
        merges = _digest(_lines(folder / "merges.txt")) if _there(folder, "merges.txt") else None
        return Tokens("vocab.json", {**ids, **added}, merges)
    if _there(folder, "vocab.txt"):
        return Tokens("vocab.txt", {**{t: i for i, t in enumerate(_lines(folder / "vocab.txt"))}, **added})
    for name in filter(lambda name: _there(folder, name), _SENTENCEPIECE):
        return Tokens(name, {}, hashlib.sha256(_bytes(folder / name)).hexdigest())
    return None


def _there(folder: Path, name: str) -> bool:
    """Whether a folder has such a file of its own."""
    return (folder / name).is_file() and leads_outside(folder, folder / name) is None


def _fast(path: Path) -> Tokens:
    """The tokens of a tokenizer.json."""
    content = _json(path)
    model = content.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: has no model of tokens: restore it")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        pieces = [entry[0] if isinstance(entry, list) and entry else entry for entry in vocabulary]
        vocabulary = {piece: i for i, piece in enumerate(pieces) if isinstance(piece, str)}
    ids = _numbers(path, vocabulary if isinstance(vocabulary, dict) else {})
    extra = content.get("added_tokens")
    added = [one for one in extra if isinstance(one, dict)] if isinstance(extra, list) else []
    named = {one["content"]: one.get("id") for one in added if isinstance(one.get("content"), str)}
    merges = model.get("merges")
    rules = None
    if isinstance(merges, list):  # each is written as "a b" or as ["a", "b"]
        rules = _digest(" ".join(map(str, rule)) if isinstance(rule, list) else str(rule) for rule in merges)
    return Tokens(path.name, {**ids, **_numbers(path, named)}, rules)


def _added(folder: Path) -> Iterator[tuple[str, int]]:
    """Tokens that the files beside a vocabulary add to it."""
    path = folder / "added_tokens.json"
    if _there(folder, path.name):
        yield from _numbers(path, _json(path)).items()
    path = folder / "tokenizer_config.json"
    decoder = _json(path).get("added_tokens_decoder") if _there(folder, path.name) else None
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if (
            isinstance(token, dict)
            and isinstance(token.get("content"), str)
            and number.isdecimal()
            and len(number) < 10
        ):
            yield token["content"], int(number)


def _numbers(path: Path, vocabulary: Mapping[str, Any]) -> dict[str, int]:
    """A vocabulary, checked."""
    for token, number in vocabulary.items():
        if type(number) is not int or not 0 <= number < 2**31:
            raise CheckpointError(f"{path}: token {token[:80]!r} has no number of its own: restore it")
    return dict(vocabulary)


def _digest(rules: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(rules).encode("utf-8", "surrogatepass")).hexdigest()


def _lines(path: Path) -> list[str]:
    """The lines of a text file; those that begin with "#version" are no rules."""
    try:
        text = _bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: no text in UTF-8 ({first_line(error)}): restore it") from error
    return [line for line in text.removesuffix("\n").split("\n") if not line.startswith("#version")]


def _bytes(path: Path) -> bytes:
    """What a file holds."""
    file = WatchedFile.of(path)
    content = bytearray(file.size)
    with file.open() as opened:
        file.fill(opened, 0, memoryview(content))
    return bytes(content)


def _json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    return read_object(WatchedFile.of(path))
