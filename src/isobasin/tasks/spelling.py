"""Texts in the characters that a tokenizer of single characters knows, where nothing stands for all others."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from isobasin.errors import DataError

if TYPE_CHECKING:
    from isobasin.tasks.options import DataOptions
    from isobasin.tasks.processors import Processor

_NAMED = 5


class Spelling:
    """What becomes of characters that the tokenizer doesn't know: they are refused, or left out and counted."""

    def __init__(self, processor: Processor, options: DataOptions) -> None:
        self._known, self._source, self._skip = processor.characters, options.source, options.skip_unknown
        self._left_out: Counter[str] = Counter()

    def __call__(self, texts: list[str]) -> list[str]:
        """The texts as they can be written.

        Raises:
            DataError: They have other characters, and those aren't to be left out; names the first of them.
        """
        unknown = set() if self._known is None else set().union(*texts) - self._known
        if not unknown:
            return texts
        if not self._skip:
            named = _named(sorted(unknown, key="".join(texts).find))
            advice = "add them to it, or leave them out with --skip-unknown"
            raise DataError(f"{self._source}: has characters that the tokenizer doesn't know, {named}: {advice}")
        self._left_out.update({c: sum(text.count(c) for text in texts) for c in sorted(unknown)})
        return [text.translate(dict.fromkeys(map(ord, unknown))) for text in texts]

    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of what was left out."""
        if not self._left_out:
            return ()
        named = _named([character for character, _ in self._left_out.most_common()])
        return (f"{self._left_out.total():,} characters that the tokenizer doesn't know are left out: {named}",)


def _named(characters: list[str]) -> str:
    more = len(characters) - _NAMED
    return ", ".join(map(repr, characters[:_NAMED])) + (f" and {more} more" if more > 0 else "")
