"""Images that lie in arrays: npz files and scikit-learn's digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from isobasin.errors import EXPERIMENT_EXTRA, DataError, needing
from isobasin.tasks.reading import reading

if TYPE_CHECKING:
    from datasets import Dataset

# Of free memory, how much one array may take.
_SHARE = 0.6
_PLAIN = "give plain arrays; pickled objects are refused"
_PAIRS = (("x", "y"), ("images", "labels"), ("image", "label"), ("data", "target"))


def npz_splits(path: Path) -> Mapping[str, Callable[[], Dataset]]:
    """The splits of an npz file, read when they are asked for.

    Arrays are named `x_train` and `y_train` (or images/labels) with any split's name, or without one. `x` is uint8,
    `(n, h, w)` or `(n, h, w, c)`; or `jpeg_train` is all encoded images one after the other, of which image i is
    `offsets_train[i]` to `offsets_train[i + 1]`. Names of the classes may lie under `classes`.

    Raises:
        DataError: It can't be read, or has no such arrays.
    """
    with reading(f"{path}: can't be read as npz", _PLAIN), np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.files)
    found: dict[str, Callable[[], Dataset]] = {}
    for images, labels in (*_PAIRS, ("jpeg", "y"), ("png", "y")):
        for name in names:
            stem, _, split = name.partition("_")
            other = f"{labels}_{split}" if split else labels
            if stem == images and other in names:
                found.setdefault(split or "train", _reader(path, name, other, split))
    if not found:
        raise DataError(f"{path}: has arrays {', '.join(names)}: needs x and y, or x_test and y_test, and so on")
    return found


def _reader(path: Path, images: str, labels: str, split: str) -> Callable[[], Dataset]:
    def read() -> Dataset:
        with reading(f"{path}: array {images!r} can't be read", _PLAIN), np.load(path, allow_pickle=False) as arrays:
            x, y = (_array(arrays, name) for name in (images, labels))
            names = [str(name) for name in _array(arrays, "classes").ravel()] if "classes" in arrays.files else None
            cuts = _array(arrays, "_".join(filter(None, ("offsets", split)))) if x.ndim == 1 else None
        what = f"{path}: array {images!r}"
        found: Any = x if cuts is None else _encoded(x, cuts, what)
        count = len(found) if x.ndim else 0
        if y.ndim != 1 or len(y) != count:
            raise DataError(f"{path}: {count} images in {images!r}, but {labels!r} has shape {y.shape}")
        return rows(found, y, names, split or "train", what)

    return read


def _array(arrays: Any, name: str) -> Any:
    """One array, refused before it is unpacked where it wouldn't fit in memory: a small file may hold a large one."""
    member = name if name in arrays.zip.NameToInfo else f"{name}.npy"
    size = arrays.zip.getinfo(member).file_size
    free = psutil.virtual_memory().available
    if size > _SHARE * free:
        raise MemoryError(f"it takes {size / 1e9:.1f} GB unpacked, {free / 1e9:.1f} GB are free")
    return arrays[name]


def _encoded(data: Any, cuts: Any, what: str) -> list[bytes]:
    """Files that lie one after the other, by where each begins and the last one ends."""
    if data.dtype != np.uint8:
        raise DataError(f"{what} is {data.dtype} of shape {data.shape}: encoded images are uint8, (bytes,)")
    whole = cuts.ndim == 1 and cuts.dtype.kind in "iu" and len(cuts)
    if not whole or cuts[0] < 0 or cuts[-1] > len(data) or (np.diff(cuts.astype(np.int64)) < 0).any():
        raise DataError(f"{what}: its offsets have to be whole numbers that rise from 0 to {len(data)}")
    return [data[a:b].tobytes() for a, b in itertools.pairwise(cuts)]


def rows(images: Any, labels: Any, names: list[str] | None, split: str, what: str) -> Dataset:
    """A data set of images, as an array or as encoded files, and labels.

    Raises:
        DataError: The array is not uint8, or not images.
    """
    import datasets

    if isinstance(images, list):
        feature: Any = datasets.Image()
        column: Any = [{"bytes": data, "path": None} for data in images]
    else:
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise DataError(f"{what} is {images.dtype} of shape {images.shape}: images are uint8, (n, h, w[, c])")
        kind = datasets.Array2D if images.ndim == 3 else datasets.Array3D
        feature, column = kind(images.shape[1:], "uint8"), images
    label: Any = datasets.Value("int64")
    if labels.dtype.kind not in "iubUS":
        # Numbers with a fraction would be cut silently.
        whole = labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.floor(labels)).all()
        if not whole:
            raise DataError(f"{what}: its labels are {labels.dtype}: they have to be whole numbers or names")
    if names is not None and np.issubdtype(labels.dtype, np.integer):
        label = datasets.ClassLabel(names=names)
    elif labels.dtype.kind in "US":
        label = datasets.Value("string")
    features = datasets.Features({"image": feature, "label": label})
    return datasets.Dataset.from_dict(
        {"image": column, "label": labels.tolist()}, features=features, split=datasets.NamedSplit(split)
    )


def digits() -> Mapping[str, Callable[[], Dataset]]:
    """scikit-learn's 1797 digits, 8 x 8: 70 % "train" and 30 % "test", every digit in the same proportion.

    Raises:
        DependencyError: scikit-learn is missing.
    """
    with needing("the data set digits needs scikit-learn", EXPERIMENT_EXTRA):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    data: Any = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    split: Any = train_test_split(np.arange(len(data.target)), test_size=0.3, random_state=0, stratify=data.target)
    names = [str(digit) for digit in range(10)]

    def part(name: str, chosen: Any) -> Callable[[], Dataset]:
        return lambda: rows(pixels[chosen], data.target[chosen], names, name, "digits")

    return {name: part(name, np.sort(chosen)) for name, chosen in zip(("train", "test"), split, strict=True)}
