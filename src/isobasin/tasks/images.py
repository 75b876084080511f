"""Images as pixels: prepared once and kept as bytes where they fit in memory."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isobasin.choices import TaskKind
from isobasin.errors import DataError, needing
from isobasin.tasks import examples
from isobasin.tasks.examples import Examples, Indices, as_index, digest, facts_of, refacts
from isobasin.tasks.labels import chosen_rows
from isobasin.tasks.options import DataFacts, DataOptions
from isobasin.tasks.reading import reading, regular_file

if TYPE_CHECKING:
    from datasets import Dataset

    from isobasin.tasks.processors import Processor

_ROWS = 256
# Of the decoded images that are held at once, unless one alone has more.
_PIXELS = 2**25
_MEND = "correct preprocessor_config.json beside the model"


@dataclass(frozen=True, eq=False)
class Scaling:
    """`(x * factor - mean) / std` per channel, from stored pixels to what the model sees."""

    factor: float
    mean: Tensor
    std: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels `(n, c, h, w)` in float32."""
        return (pixels.float() * self.factor - self.mean[:, None, None]) / self.std[:, None, None]


@dataclass(frozen=True, eq=False)
class ImageExamples(Examples):
    """Images in memory: bytes that are scaled when they are fetched, or finished floats without `scaling`."""

    kind: TaskKind
    facts: DataFacts
    pixels: Tensor
    labels: Tensor
    scaling: Scaling | None

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Indices) -> dict[str, Tensor]:
        """Pixels `(n, c, h, w)` and labels `(n,)`."""
        rows = as_index(indices)
        pixels = self.pixels[rows]
        return {
            "pixel_values": self.scaling(pixels) if self.scaling else pixels.float(),
            "labels": self.labels[rows].long(),
        }

    def subset(self, indices: Indices) -> ImageExamples:
        """Some of the examples; their facts are made anew."""
        rows = as_index(indices)
        pixels, labels = self.pixels[rows], self.labels[rows]
        facts = refacts(self.facts, len(rows), _digest(pixels, labels, self.scaling))
        return replace(self, pixels=pixels, labels=labels, facts=facts)


@dataclass(frozen=True, eq=False)
class LazyImages(Examples):
    """Images that are decoded and processed when they are fetched."""

    kind: TaskKind
    facts: DataFacts
    dataset: Dataset
    labels: Tensor
    reader: Reader

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Indices) -> dict[str, Tensor]:
        """Pixels `(n, c, h, w)` and labels `(n,)`."""
        rows = as_index(indices)
        with reading(f"{self.facts.source}: images can't be prepared for the model"):
            pixels = torch.cat([self.reader.finished(part) for part in self.reader.groups(self.dataset, rows.tolist())])
        return {"pixel_values": pixels, "labels": self.labels[rows].long()}

    def subset(self, indices: Indices) -> LazyImages:
        """Some of the examples; their facts are made anew."""
        rows = as_index(indices)
        dataset, labels = self.dataset.select(rows.tolist()), self.labels[rows]
        facts = refacts(self.facts, len(rows), _stored_digest(dataset, labels, self.reader))
        return replace(self, dataset=dataset, labels=labels, facts=facts)


@dataclass(frozen=True, eq=False)
class Reader:
    """From rows of a data set to pixels.

    Attributes:
        processor: The image processor.
        channels: 1 or 3.
        source: For messages.
    """

    processor: Any
    channels: int
    source: str

    def groups(self, dataset: Dataset, rows: Sequence[int]) -> Iterator[list[Any]]:
        """Rows as PIL images, gray or in colours as the model wants them: in order, a few large or many small ones."""
        mode = "L" if self.channels == 1 else "RGB"
        waiting: list[Any] = []
        pixels = 0
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            for row, value in zip(part, _stored(dataset, part), strict=True):
                with reading(f"{self.source}: image {row + 1} of {len(dataset)} can't be read", "mend or remove it"):
                    waiting.append(_decoded(value).convert(mode))
                pixels += prod(waiting[-1].size)
                if len(waiting) == _ROWS or pixels > _PIXELS:
                    yield waiting
                    waiting, pixels = [], 0
        if waiting:
            yield waiting

    def finished(self, images: list[Any]) -> Tensor:
        """What the model sees, `(n, c, h, w)`, float32."""
        found = self._processed(images).float()
        if not found.isfinite().all():
            raise DataError(f"{self.source}: the image processor makes values that are not finite: {_MEND}")
        return found

    def resized(self, images: list[Any]) -> Tensor:
        """The same before values are scaled."""
        return self._processed(images, do_rescale=False, do_normalize=False)

    def _processed(self, images: list[Any], **options: Any) -> Tensor:
        with reading(f"{self.source}: the image processor fails", _MEND), np.errstate(all="ignore"):
            return torch.as_tensor(np.asarray(self.processor(images, return_tensors="np", **options)["pixel_values"]))

    def scaling(self, images: list[Any]) -> Scaling | None:
        """The scaling that turns bytes into what the model sees; None if the processor does anything else."""
        finished, resized = self.finished(images), self.resized(images)
        setting = self.processor
        mean, std = (
            torch.tensor(getattr(setting, name, None) or [default], dtype=torch.float32).expand(self.channels)
            if getattr(setting, "do_normalize", False)
            else torch.full((self.channels,), default)
            for name, default in (("image_mean", 0.0), ("image_std", 1.0))
        )
        factor = float(setting.rescale_factor) if getattr(setting, "do_rescale", False) else 1.0
        found = Scaling(factor, mean, std)
        whole = torch.equal(resized.float().round().clamp(0, 255), resized.float())
        return found if whole and torch.allclose(found(resized), finished, atol=1e-5) else None


def prepare_images(dataset: Dataset, processor: Processor, options: DataOptions, config: Any) -> Examples:
    """Processed images with labels, in memory if they fit."""
    if processor.images is None:
        raise DataError("images need an image processor: give a checkpoint whose configuration has an image_size")
    dataset, labels = chosen_rows(dataset, config, options)
    kind, ids = TaskKind.image_classification, labels.ids
    classes = {"num_labels": labels.count, "label_names": labels.names}
    facts = facts_of(dataset, processor, options, kind, labels.notes, **classes)
    reader = Reader(processor.images, processor.channels, options.source)
    first = next(reader.groups(dataset, range(min(4, len(dataset)))))
    scaling = reader.scaling(first)
    shape = reader.finished(first).shape[1:]
    _check_shape(shape, config)
    if len(ids) * prod(shape) * (1 if scaling else 4) > examples.IN_MEMORY:
        facts = refacts(facts, len(ids), _stored_digest(dataset, ids, reader))
        return LazyImages(kind, facts, dataset, ids, reader)
    pixels = _read_all(dataset, reader, shape, scaling)
    return ImageExamples(kind, refacts(facts, len(ids), _digest(pixels, ids, scaling)), pixels, ids, scaling)


def _read_all(dataset: Dataset, reader: Reader, shape: Sequence[int], scaling: Scaling | None) -> Tensor:
    pixels = torch.empty((len(dataset), *shape), dtype=torch.uint8 if scaling else torch.float32)
    kept = scaling is not None and _keeps(reader, next(reader.groups(dataset, range(min(4, len(dataset))))))
    done = 0
    for images in reader.groups(dataset, range(len(dataset))):
        here = slice(done, done + len(images))
        if kept and {image.size for image in images} == {(shape[2], shape[1])}:
            pixels[here] = _stacked(images)
        else:
            pixels[here] = reader.resized(images) if scaling else reader.finished(images)
        done = here.stop
    return pixels


def _keeps(reader: Reader, images: list[Any]) -> bool:
    """Whether the processor leaves images as they are that have its size already."""
    resized = reader.resized(images)
    size = (resized.shape[3], resized.shape[2])
    return {image.size for image in images} == {size} and torch.equal(resized.float(), _stacked(images).float())


def _stacked(images: list[Any]) -> Tensor:
    """Images of one size as bytes `(n, c, h, w)`."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)


def _stored(dataset: Dataset, rows: Sequence[int]) -> Sequence[Any]:
    """Images as they are stored: arrays of pixels as such, and files not decoded yet."""
    import datasets

    if isinstance(dataset.features["image"], (datasets.Array2D, datasets.Array3D)):
        arrays: Any = dataset.with_format("numpy")[list(rows)]
        return arrays["image"]
    table: Any = dataset.with_format("arrow")[list(rows)]
    return table["image"].to_pylist()


def _check_shape(shape: Sequence[int], config: Any) -> None:
    size = getattr(config, "image_size", None)
    if config is None or size is None:
        return
    wanted = (config.num_channels, *(size if isinstance(size, (list, tuple)) else (size, size)))
    if tuple(shape) != wanted:
        raise DataError(f"the image processor makes images of shape {tuple(shape)}, the model takes {wanted}: {_MEND}")


def _decoded(value: Any) -> Any:
    """One cell as a PIL image: encoded bytes, the path of a file, or an array of bytes."""
    with needing("images need the package pillow"):
        from PIL import Image, ImageOps, UnidentifiedImageError
    if isinstance(value, dict):
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, (bytes, str)):
        file = io.BytesIO(value) if isinstance(value, bytes) else regular_file(value)
        with warnings.catch_warnings():
            # Above a number of pixels Pillow warns, and only above twice that it refuses.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                with Image.open(file) as image:
                    return ImageOps.exif_transpose(image)
            except UnidentifiedImageError as error:
                raise ValueError("it has no known format") from error
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise ValueError("an array of pixels has to be whole numbers from 0 to 255")
    array = array.astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def _digest(pixels: Tensor, labels: Tensor, scaling: Scaling | None) -> str:
    said = (scaling.factor, scaling.mean.tolist(), scaling.std.tolist()) if scaling else ()
    return digest({"pixels": pixels, "labels": labels}, said)


def _stored_digest(dataset: Dataset, labels: Tensor, reader: Reader) -> str:
    """SHA-256 of images as they are stored, the processor's settings and the labels."""
    import hashlib

    found = hashlib.sha256()
    column = dataset.select_columns(["image"]).with_format("arrow")
    for start in range(0, len(column), _ROWS):
        part: Any = column[start : start + _ROWS]
        for value in part["image"].to_pylist():
            content = value["bytes"] if isinstance(value, dict) else value
            if isinstance(value, dict) and content is None:
                with open(value["path"], "rb") as file:
                    content = file.read()
            found.update(content if isinstance(content, bytes) else repr(content).encode())
    return digest({"labels": labels}, found.hexdigest(), reader.processor.to_json_string(), reader.channels)
