"""What stands between two models and their average: everything in which equal places of tensors mean other things.

Found before anything is averaged or put on a line, whatever the verb; each conflict says which option resolves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from isobasin.architectures.configuration import known
from isobasin.architectures.entries import shown
from isobasin.architectures.meaning import differences
from isobasin.architectures.registry import kind
from isobasin.canonical import Canonical
from isobasin.checkpoints import unlike_modules
from isobasin.errors import ArchitectureError, TensorError
from isobasin.loading import misfit
from isobasin.plain import Plain
from isobasin.verbs.rows import Tables, labels_of, tables_of


class Option(StrEnum):
    """What a user may ask for where ends disagree."""

    config = "--take-config"
    by_name = "--by-name"
    rows = "--common-rows"
    head = "--head"
    untie = "--untie"


_DOES = {
    Option.config: "takes A's as they are",
    Option.by_name: "reorders B's rows by name",
    Option.rows: "averages the rows that both have and keeps A's further ones",
    Option.head: "reference or own merges the bodies alone",
    Option.untie: "takes tied tensors apart, which changes no function",
}

_WHOLE = "config.json"
"""What a conflict is about that is no entry's."""


@dataclass(frozen=True)
class Taking:
    """What is done where ends disagree; by default they are refused.

    Attributes:
        config: Take A's configuration, labels and tokenizer for both.
        by_name: Reorder B's rows where names of tokens or labels say how.
        rows: Average the leading rows that tables have in common; A's further rows stay A's.
        head: Take A's head where the other model has another one.
        untie: Take tied tensors apart, which is done as models are opened.
    """

    config: bool = False
    by_name: bool = False
    rows: bool = False
    head: bool = False
    untie: bool = False

    @property
    def options(self) -> set[Option]:
        """What was asked for."""
        return {option for option in Option if getattr(self, option.name)}


@dataclass(frozen=True)
class Conflict(Plain):
    """One thing in which equal places mean something else.

    Attributes:
        what: "quantised", "architecture", "configuration", "tokenizer", "labels", "rows", "head" or "tensors".
        entry: The entry, file or tensor.
        message: What it is in each, in words.
        options: Which options resolve it, any of them.
    """

    what: str
    entry: str
    message: str
    options: tuple[Option, ...] = ()

    def advice(self, offered: Sequence[Option]) -> str:
        """What to do, with what a verb offers."""
        if self.what == "quantised":
            return "load it with transformers, call dequantize() on the model, and save it"
        found = [f"{option} {_DOES[option]}" for option in self.options if option in offered]
        otherwise = "mend that" if self.entry == _WHOLE else "give two that agree"
        return ", or ".join(found) if found else otherwise


def refuse_conflicts(a: Canonical, b: Canonical, taking: Taking, offered: Sequence[Option]) -> None:
    """Refuse two ends that disagree in anything that no option was given for.

    Raises:
        ArchitectureError: Their configurations, labels or tokenizers disagree.
        TensorError: Their tensors do.
    """
    left = [one for one in conflicts(a, b) if not taking.options.intersection(one.options)]
    if left:
        # Of all, one that no option resolves.
        found = next((one for one in left if not one.options), left[0])
        error = TensorError if found.what in ("quantised", "rows", "head", "tensors") else ArchitectureError
        ends = f"{a.checkpoint.folder} and {b.checkpoint.folder}"
        raise error(f"{ends}: {found.message}: {found.advice(offered)}")


def conflicts(a: Canonical, b: Canonical) -> list[Conflict]:
    """Everything in which two ends disagree, the gravest first."""
    quantised = [*_quantised("A", a), *_quantised("B", b)]
    if quantised:
        return quantised
    types = [one.checkpoint.config.get("model_type") for one in (a, b)]
    if kind(str(types[0])) != kind(str(types[1])):
        return [Conflict("architecture", "model_type", f"A is a {types[0]} model, B a {types[1]} model")]
    tables = tables_of(a), tables_of(b)
    found = [*_configurations(a, b), *_tokenizers(a, b), *_labels(a, b, tables), *_tensors(a, b, tables)]
    found += [*_nowhere("A", a, "B", b), *_nowhere("B", b, "A", a), *_modules(a, b)]
    return [*found, *_misfits("A", a), *_misfits("B", b, Option.config)]


def _quantised(name: str, end: Canonical) -> Iterator[Conflict]:
    """That weights are codes, whose averages mean nothing."""
    config = end.checkpoint.config.get("quantization_config")
    if config:
        method = config.get("quant_method") if isinstance(config, Mapping) else None
        how = f" ({method})" if isinstance(method, str) else ""
        yield Conflict("quantised", "quantization_config", f"{name} is quantised{how}, and codes have no average")
        return
    for tensor, stored in end.view.tensors.items():
        dtype = end.checkpoint.tensors[stored].dtype
        if dtype.itemsize == 1 and str(dtype) != "torch.bool":
            found = str(dtype).removeprefix("torch.")
            yield Conflict("quantised", tensor, f"tensor {stored!r} of {name} is {found}, and codes have no average")
            return


def _misfits(name: str, end: Canonical, *options: Option) -> Iterator[Conflict]:
    """A tensor of a shape that nobody can load by the file's own configuration."""
    config = end.configuration
    if config is not None and (said := misfit(end.checkpoint, config)) is not None:
        yield Conflict("configuration", _WHOLE, f"{name} doesn't fit its own config.json ({said})", options)


def _nowhere(tied: str, a: Canonical, other: str, b: Canonical) -> Iterator[Conflict]:
    """Tensors that are tied in one, and in the other, whose configuration ties none, are not stored either."""
    if not known(b.description.model_type) or getattr(b.description.config, "tie_word_embeddings", False):
        return
    for name in a.view.ties:
        if b.view.find(name) is None:
            message = f"tensor {name!r} is tied to {a.view.find(name)!r} in {tied}, and {other} has none"
            yield Conflict("head", name, message)


def _modules(a: Canonical, b: Canonical) -> Iterator[Conflict]:
    """What sentence-transformers puts behind both, which isn't averaged."""
    for path in unlike_modules(a.checkpoint.folder, b.checkpoint.folder):
        message = f"{path}, a module of sentence-transformers, is another one in B, and modules are not averaged"
        yield Conflict("tensors", path, message, (Option.config,))


def _configurations(a: Canonical, b: Canonical) -> Iterator[Conflict]:
    for found in differences(a.description, b.description):
        message = f"{found.entry} is {shown(found.a)} in A and {shown(found.b)} in B, so they compute different things"
        yield Conflict("configuration", found.entry, message, (Option.config,))


def _tokenizers(a: Canonical, b: Canonical) -> Iterator[Conflict]:
    """Whether one token has two numbers, or one number two tokens; a model without a tokenizer agrees with any."""
    ours, theirs = a.tokens, b.tokens
    if ours is None or theirs is None:
        return
    both = f"{ours.file} of A and {theirs.file} of B"
    if not ours.ids or not theirs.ids:
        if ours.file == theirs.file and ours.merges != theirs.merges:
            yield Conflict("tokenizer", ours.file, f"{both} are two tokenizers", (Option.config,))
        return
    moved = next((token for token, n in ours.ids.items() if theirs.ids.get(token, n) != n), None)
    if moved is not None:
        number, other = ours.ids[moved], theirs.ids[moved]
        message = f"token {shown(moved)} is {number} in {ours.file} of A and {other} in {theirs.file} of B"
        yield Conflict("tokenizer", moved, message, (Option.by_name, Option.config))
        return
    names = {n: token for token, n in theirs.ids.items()}
    renamed = next((t for t, n in ours.ids.items() if t not in theirs.ids and n in names), None)
    if renamed is not None:
        number = ours.ids[renamed]
        message = (
            f"token {number} is {shown(renamed)} in {ours.file} of A and {shown(names[number])} in {theirs.file} of B"
        )
        yield Conflict("tokenizer", renamed, message, (Option.by_name, Option.config))
    elif ours.merges and theirs.merges and ours.merges != theirs.merges:
        yield Conflict("tokenizer", "merges", f"{both} cut words by other merges", (Option.config,))


def _labels(a: Canonical, b: Canonical, tables: tuple[Tables, Tables]) -> Iterator[Conflict]:
    """Whether one row of a classifier stands for two labels."""
    ours, theirs = labels_of(a), labels_of(b)
    if not (tables[0].labels and tables[1].labels and ours and theirs) or len(ours) != len(theirs):
        return
    pairs = [(i, x, y) for i, (x, y) in enumerate(zip(ours, theirs, strict=True)) if x.casefold() != y.casefold()]
    if pairs:
        i, x, y = pairs[0]
        same = sorted(map(str.casefold, ours)) == sorted(map(str.casefold, theirs))
        options = (Option.by_name, Option.config) if same else (Option.config,)
        yield Conflict("labels", f"id2label.{i}", f"label {i} is {shown(x)} in A and {shown(y)} in B", options)


def _tensors(a: Canonical, b: Canonical, tables: tuple[Tables, Tables]) -> Iterator[Conflict]:
    """Tensors that only one has, or that have another shape."""
    shapes = a.shapes, b.shapes
    for name in dict.fromkeys([*shapes[0], *shapes[1]]):
        ours, theirs = (found.get(name) for found in shapes)
        if ours == theirs:
            continue
        head = (Option.head,) if name in tables[0].head or name in tables[1].head else ()
        stored = repr((b if ours is None else a).view.stored(name))
        if ours is None or theirs is None:
            here, there = ("A", "B") if theirs is None else ("B", "A")
            end = b if theirs is None else a
            tied = f", where {end.view.find(name)!r} stands for it" if end.view.find(name) else ""
            message, rows = f"tensor {stored} is in {here} but not in {there}{tied}", ()
            head = (Option.untie, *head) if tied else head
        else:
            message, rows = f"tensor {stored} has shape {list(ours)} in A and {list(theirs)} in B", ()
            if name in tables[0].tokens and name in tables[1].tokens:
                rows = (Option.rows, Option.by_name) if a.tokens and b.tokens else (Option.rows,)
            elif name in tables[0].positions and name in tables[1].positions:
                rows = (Option.rows,)
        yield Conflict("rows" if rows else "head" if head else "tensors", name, message, rows or head)
