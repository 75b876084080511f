"""Images as models see them, from every kind of column, in memory and not."""

from __future__ import annotations

import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from isobasin.errors import IsobasinError
from isobasin.tasks import examples as module
from isobasin.tasks.data import DataOptions, prepare
from isobasin.tasks.images import ImageExamples, LazyImages
from isobasin.tasks.processors import Processor, build_image_processor

KIND = "image-classification"
OPTIONS = DataOptions("set")
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 8, 8), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2, 0]


def dataset(pixels=PIXELS, labels=LABELS, kind="array"):
    files = [Image.fromarray(x) for x in pixels]
    if kind == "array":
        feature = (datasets.Array2D if pixels.ndim == 3 else datasets.Array3D)(pixels.shape[1:], "uint8")
        features = datasets.Features({"image": feature, "label": datasets.Value("int64")})
        return datasets.Dataset.from_dict({"image": pixels, "label": labels}, features=features)
    if kind == "file":
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        return datasets.Dataset.from_dict({"image": files, "label": labels}, features=features)
    values = {"list": pixels.tolist(), "bytes": [png(file) for file in files]}[kind]
    return datasets.Dataset.from_dict({"image": values, "label": labels})


def png(image):
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def gray():
    return Processor(images=build_image_processor(8, 1), channels=1)


def seen(pixels=PIXELS):
    return torch.from_numpy(pixels.astype(np.float32)).unsqueeze(1) / 127.5 - 1


def same(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("memory", [10**9, 0], ids=["in memory", "lazy"])
@pytest.mark.parametrize("kind", ["array", "file", "list", "bytes"])
def test_columns(kind, memory, monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY", memory)
    found = prepare(dataset(kind=kind), KIND, gray(), OPTIONS)
    assert type(found) is (ImageExamples if memory else LazyImages)
    assert (len(found), found.facts.examples, found.facts.num_labels) == (7, 7, 3)
    batches = list(found.batches(3))
    assert [len(batch["labels"]) for batch in batches] == [3, 3, 1]
    same(torch.cat([batch["pixel_values"] for batch in batches]), seen())
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == LABELS
    few = found.fetch(torch.tensor([5, 1]))
    same(few["pixel_values"], seen()[[5, 1]])
    assert few["labels"].tolist() == [2, 1]
    part = found.subset([6, 2])
    same(part.fetch(range(2))["pixel_values"], seen()[[6, 2]])
    assert (len(part), part.facts.examples, part[1]["labels"].item()) == (2, 2, 2)
    assert part.facts.sha256 != found.facts.sha256


def test_bytes_are_kept_where_they_are_enough():
    found = prepare(dataset(), KIND, gray(), OPTIONS)
    assert found.pixels.dtype == torch.uint8
    assert torch.equal(found.pixels[:, 0], torch.from_numpy(PIXELS))


def test_floats_are_kept_where_the_processor_does_more():
    class Inverted:
        do_rescale = do_normalize = False

        def __call__(self, images, **options):
            return {"pixel_values": [1 - np.asarray(image, np.float32)[None] / 255 for image in images]}

    found = prepare(dataset(), KIND, Processor(images=Inverted(), channels=1), OPTIONS)
    assert found.scaling is None
    same(found.fetch(range(7))["pixel_values"], 1 - (seen() + 1) / 2)


@pytest.mark.parametrize("size", [(6, 4), (8, 10)], ids=["resized", "of its size"])
@pytest.mark.parametrize("options", [{"do_normalize": False}, {"do_rescale": False}, {"do_resize": False}, {}])
def test_as_the_processor_makes_them(options, size):
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": size[0], "width": size[1]}, **options)
    colours = np.random.default_rng(1).integers(0, 256, (4, 8, 10, 3), dtype=np.uint8)
    found = prepare(dataset(colours, LABELS[:4], "file"), KIND, Processor(images=processor, channels=3), OPTIONS)
    wanted = processor([Image.fromarray(x) for x in colours], return_tensors="pt")["pixel_values"].float()
    torch.testing.assert_close(found.fetch(range(4))["pixel_values"], wanted, atol=1e-5, rtol=1e-6)
    assert found.scaling is not None


def test_gray_images_for_a_model_of_colours():
    found = prepare(dataset(), KIND, Processor(images=build_image_processor(8, 3), channels=3), OPTIONS)
    same(found.fetch(range(7))["pixel_values"], seen().expand(-1, 3, -1, -1))


def test_some_examples():
    options = DataOptions("set", max_examples=4, seed=1)
    found = prepare(dataset(), KIND, gray(), options)
    same_seed, other = (prepare(dataset(), KIND, gray(), DataOptions("set", max_examples=4, seed=s)) for s in (1, 2))
    assert found.facts == same_seed.facts
    assert other.facts.sha256 != found.facts.sha256
    rows = [int((seen() - x).abs().sum((1, 2, 3)).argmin()) for x in found.fetch(range(4))["pixel_values"]]
    assert rows == sorted(set(rows))
    assert found.fetch(range(4))["labels"].tolist() == [LABELS[row] for row in rows]


def test_the_hash_is_of_what_the_model_sees():
    def sha(pixels=PIXELS, labels=LABELS, kind="array", processor=None):
        return prepare(dataset(pixels, labels, kind), KIND, processor or gray(), OPTIONS).facts.sha256

    changed = PIXELS.copy()
    changed[3, 2, 1] ^= 1
    from transformers import ViTImageProcessor

    other = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.4], image_std=[0.5])
    assert sha() == sha(kind="file")
    different = [
        sha(),
        sha(changed),
        sha(labels=[1, *LABELS[1:]]),
        sha(PIXELS[::-1].copy(), LABELS),
        sha(processor=Processor(images=other, channels=1)),
    ]
    assert len(set(different)) == len(different)


def test_the_hash_of_lazy_images(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    shas = set()
    for index, pixels in enumerate([PIXELS, PIXELS, PIXELS[::-1]]):
        paths = [tmp_path / f"{index}-{i}.png" for i in range(7)]
        for path, image in zip(paths, pixels, strict=True):
            Image.fromarray(image).save(path)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        rows = datasets.Dataset.from_dict({"image": list(map(str, paths)), "label": [0] * 7}, features=features)
        shas.add(prepare(rows, KIND, gray(), OPTIONS).facts.sha256)
    assert len(shas) == 2


def test_facts(vit):
    rows = dataset()
    rows.info.description = "a note"
    processor = Processor(images=build_image_processor(8, 1), channels=1, notes=("another",))
    facts = prepare(rows, KIND, processor, DataOptions("set", split="test[:7]"), config=vit().config).facts
    assert (facts.source, facts.split, facts.task, facts.notes) == ("set", "test[:7]", KIND, ("a note", "another"))
    assert (facts.characters, len(facts.sha256)) == (None, 64)


def test_in_a_data_loader():
    found = prepare(dataset(), KIND, gray(), OPTIONS)
    batches = list(torch.utils.data.DataLoader(found, batch_size=4))
    same(torch.cat([batch["pixel_values"] for batch in batches]), seen())
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == LABELS
    with pytest.raises(IndexError):
        found[7]


def failing(said, *arguments, **options):
    with pytest.raises(IsobasinError, match=re.escape(said)) as caught:
        prepare(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit(vit):
    said = "the image processor makes images of shape (1, 8, 8), the model takes (1, 12, 12)"
    failing(said, dataset(), KIND, gray(), OPTIONS, config=vit(size=12).config)
    said = "set: label 2 is outside the model's 2 labels"
    failing(said, dataset(), KIND, gray(), OPTIONS, config=vit(labels=2).config)
    failing("images need an image processor", dataset(), KIND, Processor(), OPTIONS)


UNREADABLE = "set: image 1 of 2 can't be read ("


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([b"no image", b"either"], UNREADABLE + "it has no known format): mend or remove it"),
        ([png(Image.fromarray(PIXELS[0]))[:60]] * 2, UNREADABLE),
        (["nowhere.png"] * 2, "nowhere.png: the file is missing: check the path"),
        (["/dev/zero"] * 2, "/dev/zero: is a pipe or a device, not a file"),
        ([[[0.5, 1], [2, 3]]] * 2, UNREADABLE),
        ([[[0, 300], [2, 3]]] * 2, UNREADABLE),
        ([[]] * 2, UNREADABLE),
    ],
)
def test_images_that_cannot_be_read(values, said):
    rows = datasets.Dataset.from_dict({"image": values, "label": [0, 1]})
    failing(said, rows, KIND, gray(), OPTIONS)


def test_a_small_file_of_a_huge_image(monkeypatch):
    """Pillow only warns of what is above its limit by less than twice; the limit is lowered here."""
    rows = dataset(kind="file")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    failing("set: image 1 of 7 can't be read (Image size (64 pixels) exceeds limit", rows, KIND, gray(), OPTIONS)


def test_large_images_are_read_a_few_at_a_time(monkeypatch):
    from isobasin.tasks import images

    whole = prepare(dataset(kind="file"), KIND, gray(), OPTIONS)
    monkeypatch.setattr(images, "_PIXELS", 100)
    held = [len(group) for group in images.Reader(gray().images, 1, "set").groups(dataset(kind="file"), range(7))]
    assert held == [2, 2, 2, 1]
    few = prepare(dataset(kind="file"), KIND, gray(), OPTIONS)
    assert torch.equal(few.fetch(range(7))["pixel_values"], whole.fetch(range(7))["pixel_values"])
    assert few.facts == whole.facts


@pytest.mark.parametrize("values", [{"image_mean": [0.5] * 3}, {"image_std": [0.0]}], ids=str)
def test_an_image_processor_that_does_not_fit(values):
    made = build_image_processor(8, 1)
    for name, value in values.items():
        setattr(made, name, value)
    failing("set: the image processor ", dataset(), KIND, Processor(images=made, channels=1), OPTIONS)


def test_images_that_a_lazy_reader_meets_later(monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    values = [png(Image.fromarray(x)) for x in PIXELS[:5]] + [b"no image"]
    rows = datasets.Dataset.from_dict({"image": values, "label": LABELS[:6]})
    found = prepare(rows, KIND, gray(), OPTIONS)
    with pytest.raises(IsobasinError, match=r"set: image 6 of 6 can't be read"):
        found.fetch(range(4, 6))
