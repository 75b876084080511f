"""Rows from the hub, files, folders and arrays, by split."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobasin.checkpoints.files import real
from isobasin.errors import DataError, first_line, needing
from isobasin.tasks.arrays import digits, npz_splits
from isobasin.tasks.reading import reading, regular_file

if TYPE_CHECKING:
    from collections.abc import Generator

    from datasets import Dataset

Read = Callable[[], "Dataset"]

_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".txt": "text",
    ".npz": "npz",
}
_PACKED = (".xz", ".gz")
_SYNONYMS = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "validation"}
# How `datasets` lists what there is to choose from.
_CONFIGURATIONS = re.compile(r"available configs: \[(.*?)\]")
_PART = re.compile(r"(?P<name>[^\[\]+]+)(?P<slice>\[[^\]]*\])?")


def read_source(source: str, name: str | None, split: str | None) -> tuple[Dataset, list[str]]:
    """One split of a source, columns as stored, and notes on how it was read.

    Args:
        source: "digits", a path, or a hub id, with `:CONFIGURATION` or `:CONFIGURATION:SPLIT` after it or without.
        name: The hub's configuration.
        split: In the notation of `datasets`, or a file of a folder; None: "test", else "validation", else the only one.

    Raises:
        DataError: It can't be found or read.
        DependencyError: A package is missing.
    """
    with needing("reading data needs the package datasets"):
        import datasets
    notes: list[str] = []
    path = Path(source).expanduser()
    with _quiet(datasets):
        if source == "digits":
            splits = digits()
        elif path.is_dir():
            splits = _folder(path, name, split, notes)
        elif os.path.lexists(path):
            splits = _file(path, notes)
        else:
            hub_id, name, split = _parts(source, name, split)
            splits = _hub(hub_id, name)
        return _select(splits, split, source), notes


@contextmanager
def _quiet(datasets: Any) -> Generator[None]:
    """No progress bars or messages of `datasets`: they would mix with ours."""
    shown, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def _select(splits: Mapping[str, Read], split: str | None, source: str) -> Dataset:
    """The rows that a split's notation names."""
    import datasets

    parts = [
        _PART.fullmatch(part.strip()) for part in (_default(splits, source) if split is None else split).split("+")
    ]
    chosen: list[Dataset] = []
    for part in parts:
        name = part["name"].strip() if part else ""
        known = name if name in splits else _SYNONYMS.get(name, name)
        if part is None or known not in splits:
            raise DataError(f"{source}: has no split {split!r}: it has {_listed(splits)}")
        rows = splits[known]()
        if part["slice"]:
            first, end = _bounds(part["slice"], len(rows), source)
            if first >= end:
                raise DataError(f"{source}: split {split!r} has no rows: it has {len(rows)} in all")
            rows = rows.select(range(first, end))
        chosen.append(rows)
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


def _default(splits: Iterable[str], source: str) -> str:
    names = list(splits)
    found = next((name for name in ("test", "validation") if name in names), None)
    if found is None and len(names) != 1:
        raise DataError(f"{source}: choose one of its splits with --split: {_listed(names)}")
    return found or names[0]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _bounds(part: str, length: int, source: str) -> tuple[int, int]:
    """First row and one past the last of a slice such as "[:90%]"."""
    import datasets

    try:
        (found,) = datasets.ReadInstruction.from_spec(f"rows{part}").to_absolute({"rows": length})
    except (ValueError, AssertionError) as error:
        raise DataError(f"{source}: the slice {part} is not one of {length} rows: write [100:200] or [:90%]") from error
    return found.from_, found.to


def _parts(source: str, name: str | None, split: str | None) -> tuple[str, str | None, str | None]:
    """Id, configuration and split of what `ID@REVISION:CONFIGURATION:SPLIT` names; the latter two may be options."""
    hub_id, *said = source.split(":", 2)
    found = [part or None for part in (*said, "", "")[:2]]
    for option, own, given in zip(("--name", "--split"), found, (name, split), strict=True):
        if own is not None and given not in (None, own):
            raise DataError(f"{source}: says {own!r}, and {option} {given!r}: give one of the two")
    return hub_id, found[0] or name, found[1] or split


def _hub(source: str, name: str | None) -> Mapping[str, Read]:
    """All splits of a data set on the hub."""
    import datasets

    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or Path(source).suffix in (*_FORMATS, *_PACKED):
        raise DataError(f"{source}: no such file or folder: check the path")
    hub_id, at, revision = source.partition("@")
    if at and not (hub_id and revision):
        raise DataError(f"{source}: name a data set, and a branch, a tag or a commit after the @")
    try:
        found = datasets.load_dataset(hub_id, name, revision=revision or None)
    except Exception as error:  # the hub's clients have no common base class
        choices = _CONFIGURATIONS.search(str(error))
        if choices:
            raise DataError(f"{source}: choose one of its configurations, {source}:NAME: {choices[1]}") from error
        line = first_line(error)
        offline = "OfflineMode" in line or isinstance(error, ConnectionError)
        why = "the hub can't be reached" if offline else f"the hub's data set can't be had ({line})"
        raise DataError(f"{source}: is no local file or folder, and {why}: check the name and the network") from error
    return {str(key): (lambda rows=rows: rows) for key, rows in found.items()}


def _format(path: Path) -> str | None:
    """The loader of a file, by its name without compression."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in _PACKED]
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def _stem(path: Path) -> str:
    return path.name.split(".", 1)[0]


def _split_of(path: Path) -> str | None:
    """The usual split that a file's name says: "train.csv", "test-00000-of-00002.parquet"."""
    first = re.split(r"[-_.]", path.name, maxsplit=1)[0].lower()
    whole = _stem(path).lower()
    shard = re.fullmatch(r"([a-z]+)-\d+(-of-\d+)?", whole)
    name = shard[1] if shard else whole
    name = _SYNONYMS.get(name, name)
    return name if name in ("train", "test", "validation") and first else None


def _file(path: Path, notes: list[str]) -> Mapping[str, Read]:
    """The splits of one file: itself, unless it holds arrays of several."""
    kind = _format(regular_file(path))
    if kind is None:
        raise DataError(f"{path}: unknown format: use one of {', '.join(_FORMATS)}, also with .xz or .gz")
    if kind == "npz":
        return npz_splits(path)
    return {_split_of(path) or "train": lambda: _load(kind, [path], notes)}


def _folder(path: Path, name: str | None, split: str | None, notes: list[str]) -> Mapping[str, Read]:
    """The splits of a folder: data files by name, one named file, or whatever `datasets` sees in it."""
    import datasets

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        with reading(f"{path}: can't be read as a data set that was saved to disk", "save it again"):
            stored = datasets.load_from_disk(os.fspath(path))
        parts = stored if isinstance(stored, dict) else {str(stored.split or "train"): stored}
        return {str(key): (lambda rows=rows: rows) for key, rows in parts.items()}
    named = _PART.fullmatch(split or "")
    if named and (path / named["name"]).is_file():
        (read,) = _file(path / named["name"], notes).values()
        return {named["name"]: read}
    files = sorted(file for file in path.iterdir() if file.is_file() and _format(file) not in (None, "npz"))
    if not files:
        return _guessed(path, name)
    groups: dict[str, list[Path]] = {}
    usual = any(_split_of(file) for file in files)
    for file in files:
        groups.setdefault((_split_of(file) or _stem(file)) if usual else "train", []).append(file)
    return {key: (lambda group=group: _load_group(group, notes)) for key, group in groups.items()}


def _load_group(files: list[Path], notes: list[str]) -> Dataset:
    kinds = {_format(file) for file in files}
    if len(kinds) > 1:
        raise DataError(f"{files[0].parent}: {files[0].name} and {files[-1].name} differ in format: name one --split")
    return _load(str(kinds.pop()), files, notes)


def _guessed(path: Path, name: str | None) -> Mapping[str, Read]:
    """A folder that `datasets` understands: images in a subfolder per class, or a copy of a hub repository."""
    import datasets

    with reading(f"{path}: no data files or class folders of images that can be read"):
        files: Any = datasets.load_dataset_builder(os.fspath(path), name).config.data_files or {}
        for file in itertools.chain.from_iterable(files.values()):
            # The folder's README.md may name any.
            if real(path) not in real(file).parents:
                raise DataError(f"{path}: names data outside the folder, {file}, which aren't read: name them yourself")
        found = datasets.load_dataset(os.fspath(path), name)
    return {str(key): (lambda rows=rows: rows) for key, rows in found.items()}


def _load(kind: str, files: list[Path], notes: list[str]) -> Dataset:
    """Rows of data files of one format."""
    import datasets

    from isobasin.tasks.tables import csv_arguments

    arguments: dict[str, Any] = {"keep_linebreaks": True} if kind == "text" else {}
    empty = next((file for file in files if not file.stat().st_size), None)
    if empty is not None:
        raise DataError(f"{empty}: is empty: check the file")
    advice = "check the file" if kind == "parquet" else "check the file; texts have to be UTF-8"
    with reading(f"{files[0]}: can't be read as {kind}", advice):
        if kind == "csv":
            arguments, said = csv_arguments(files[0])
            notes.extend(said)
        split = _split_of(files[0]) or "train"
        paths = [os.fspath(file) for file in files]
        return datasets.load_dataset(kind, data_files={split: paths}, split=split, **arguments)
