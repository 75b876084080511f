"""Every kind of source is read to the same rows; what can't be read is said in one line."""

from __future__ import annotations

import io
import json
import re

import datasets
import numpy as np
import pytest

from isobasin.errors import DataError, DependencyError, IsobasinError
from isobasin.tasks.data import DataOptions, read_dataset

TEXTS = ["a fine film", 'he said "no", twice', "bäd\tand long", "the end"]
LABELS = [1, 0, 0, 1]


def rows(source, kind="text-classification", **options):
    return read_dataset(DataOptions(str(source), **options), kind)


def expect(dataset, texts=TEXTS, labels=LABELS):
    assert dataset["text"][:] == list(texts)
    assert dataset["label"][:] == list(labels)


def table(name, texts=TEXTS, labels=LABELS):
    import pandas as pd

    frame = pd.DataFrame({"id": range(len(texts)), "text": texts, "label": labels})
    buffer = io.StringIO()
    if "json" in name:
        frame.to_json(buffer, orient="records", lines=True)
    else:
        frame.to_csv(buffer, index=False, sep="\t" if "tsv" in name else ",")
    return buffer.getvalue()


@pytest.mark.parametrize("packed", ["", ".gz", ".xz"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.json"])
def test_tables(name, packed, written):
    expect(rows(written(name + packed, table(name))))


def test_a_tsv_file_without_quotes(written):
    """As GLUE's are: all lines have the same number of tabs, and a quotation mark is a character like others."""
    lines = ["sentence\tlabel", 'a "fine" film\t1', '"no\t0', 'never"\t0']
    expect(rows(written("rows.tsv", "\n".join(lines))), ['a "fine" film', '"no', 'never"'], [1, 0, 0])


def test_a_tsv_file_with_quoted_tabs(written):
    expect(rows(written("rows.tsv", table("rows.tsv"))))


def test_a_json_list(written):
    content = [{"text": t, "label": n} for t, n in zip(TEXTS, LABELS, strict=True)]
    expect(rows(written("rows.json", json.dumps(content))))


def test_parquet(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"sentence": TEXTS, "labels": LABELS}).to_parquet(tmp_path / "rows.parquet")
    expect(rows(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("packed", ["", ".gz", ".xz"])
def test_text_keeps_its_line_ends(packed, written):
    text = "one\n\n  two é\nthree"
    found = rows(written(f"book.txt{packed}", text), "causal-lm")
    assert "".join(found["text"]) == text


def test_a_saved_data_set(tmp_path):
    import datasets

    parts = {"train": TEXTS[:1], "test": TEXTS}
    made = {name: datasets.Dataset.from_dict({"text": t, "label": LABELS[: len(t)]}) for name, t in parts.items()}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    expect(rows(tmp_path / "saved"))
    made["test"].save_to_disk(tmp_path / "single")
    expect(rows(tmp_path / "single"))


@pytest.fixture
def folder(written):
    written("set/train.jsonl.xz", table("x.json", TEXTS[:3], LABELS[:3]))
    written("set/valid.jsonl.xz", table("x.json", TEXTS[:2], LABELS[:2]))
    written("set/train_clean.csv", table("x.csv", TEXTS[:1], LABELS[:1]))
    written("set/notes.txt", "not of the set\n")
    return written("set/test.jsonl.xz", table("x.json")).parent


@pytest.mark.parametrize(
    ("split", "count"),
    [
        (None, 4),
        ("test", 4),
        ("train", 3),
        ("validation", 2),
        ("valid", 2),
        ("dev", 2),
        ("train[:2]", 2),
        ("train[1:]", 2),
        ("test[:50%]", 2),
        ("train+validation", 5),
        ("train_clean", 1),
        ("train_clean.csv", 1),
        ("train_clean.csv[:100%]", 1),
    ],
)
def test_splits_of_a_folder(split, count, folder):
    found = rows(folder, split=split)
    start = 1 if split == "train[1:]" else 0
    texts = (TEXTS[:3] + TEXTS[:2]) if split == "train+validation" else TEXTS[start : start + count]
    assert found["text"][:] == texts


def test_shards_are_one_split(written):
    for index in range(2):
        part = slice(2 * index, 2 * index + 2)
        path = written(f"set/train-0000{index}-of-00002.jsonl", table("x.json", TEXTS[part], LABELS[part]))
    expect(rows(path.parent))


def test_files_without_split_names_are_one_split(written):
    for index in range(2):
        part = slice(2 * index, 2 * index + 2)
        path = written(f"set/part{index}.csv", table("x.csv", TEXTS[part], LABELS[part]))
    expect(rows(path.parent))


def test_the_default_split(written, tmp_path):
    written("set/train.csv", table("x.csv"))
    written("set/dev.csv", table("x.csv", TEXTS[:2], LABELS[:2]))
    expect(rows(tmp_path / "set"), TEXTS[:2], LABELS[:2])
    written("other/train.csv", table("x.csv"))
    expect(rows(tmp_path / "other"))
    written("third/train.csv", table("x.csv"))
    written("third/more.csv", table("x.csv"))
    with pytest.raises(IsobasinError, match="choose one of its splits with --split: 'more', 'train'"):
        rows(tmp_path / "third")


def test_one_file_is_its_split(written):
    path = written("rows.csv", table("x.csv"))
    expect(rows(path, split="train[:3]"), TEXTS[:3], LABELS[:3])
    expect(rows(written("test.csv", table("x.csv"))))
    with pytest.raises(IsobasinError, match=r"has no split 'test': it has 'train'"):
        rows(path, split="test")


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
CLASSES = np.array([0, 1, 2, 1, 0], np.uint8)


def images(source, **options):
    return rows(source, "image-classification", **options)


def pixels(dataset):
    return np.stack([np.asarray(image) for image in dataset["image"]])


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 4, 4, 4)])
def test_npz_arrays(shape, tmp_path):
    x = PIXELS.reshape(shape)
    np.savez(tmp_path / "set.npz", x_train=x[:2], y_train=CLASSES[:2], x_test=x, y_test=CLASSES)
    assert (pixels(images(tmp_path / "set.npz")) == x).all()
    assert images(tmp_path / "set.npz", split="train")["label"][:] == [0, 1]
    assert images(tmp_path / "set.npz", split="test[1:3]")["label"][:] == [1, 2]


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("images", "labels")])
def test_npz_without_splits(x, y, tmp_path):
    np.savez(tmp_path / "set.npz", **{x: PIXELS, y: CLASSES}, classes=np.array(["a", "b", "c"]))
    found = images(tmp_path / "set.npz")
    assert (pixels(found) == PIXELS).all()
    assert found.features["label"].names == ["a", "b", "c"]


def encoded(array):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_npz_of_encoded_images(tmp_path):
    files = [encoded(image) for image in PIXELS]
    offsets = np.cumsum([0, *map(len, files)])
    flat = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "set.npz", jpeg_test=flat, offsets_test=offsets, y_test=CLASSES)
    found = images(tmp_path / "set.npz")
    assert (pixels(found) == PIXELS).all()
    assert found["label"][:] == CLASSES.tolist()


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_folders_of_images(splits, tmp_path):
    for split in splits:
        for index, (image, label) in enumerate(zip(PIXELS, CLASSES, strict=True)):
            path = tmp_path / "set" / split / "cab"[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image))
    found = images(tmp_path / "set")
    assert str(found.split) == ("test" if len(splits) > 1 else "train")
    names = [found.features["label"].int2str(n) for n in found["label"][:]]
    assert sorted(zip(names, map(encoded, pixels(found)), strict=True)) == sorted(
        zip(["cab"[n] for n in CLASSES], map(encoded, PIXELS), strict=True)
    )


def test_digits():
    from sklearn.datasets import load_digits

    train, test = (images("digits", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1257, 540)
    assert images("digits")["label"][:] == test["label"][:]
    assert np.bincount(test["label"][:]).tolist() == pytest.approx(np.bincount(load_digits().target) * 0.3, abs=1)
    every = np.concatenate([pixels(train), pixels(test)])
    whole = np.rint(load_digits().images * 255 / 16)
    assert sorted(map(bytes, every.astype(np.uint8))) == sorted(map(bytes, whole.astype(np.uint8)))


BAD = [
    ("nowhere/of/this.csv", "no such file or folder: check the path"),
    ("./nowhere", "no such file or folder: check the path"),
    ("nowhere.csv", "no such file or folder: check the path"),
    ("someone/something", "the hub can't be reached: check the name and the network"),
]


@pytest.mark.parametrize(("source", "said"), BAD)
def test_what_is_not_there(source, said):
    with pytest.raises(IsobasinError, match=said) as caught:
        rows(source)
    assert str(caught.value).startswith(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.xlsx", "x", "unknown format: use one of .parquet, .csv"),
        ("rows", "x", "unknown format"),
        ("rows.jsonl", '{"text": "a", "label": 1}\n{"te', "can't be read as json"),
        ("rows.parquet", "not parquet", "can't be read as parquet"),
        ("rows.csv", "", "is empty: check the file"),
        ("rows.csv", "text,label\n", "corresponds to no data"),
        ("rows.npz", "not npz", "can't be read as npz"),
    ],
)
def test_files_that_cannot_be_read(name, text, said, written):
    path = written(name, text)
    with pytest.raises(IsobasinError, match=said) as caught:
        rows(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"text,label\nb\xe4d,1\n")
    with pytest.raises(IsobasinError, match=r"rows\.csv: can't be read as csv \('utf-8' codec"):
        rows(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", ["rows.csv.xz", "rows.jsonl.gz"])
def test_a_damaged_archive(name, tmp_path):
    (tmp_path / name).write_bytes(b"\xfd7zXZ\x00 no archive")
    with pytest.raises(IsobasinError, match="can't be read as"):
        rows(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": PIXELS}, "has arrays z: needs x and y"),
        ({"x": PIXELS.astype(np.float32), "y": CLASSES}, r"is float32 of shape \(5, 8, 8\): images are uint8"),
        ({"x": PIXELS, "y": CLASSES[:3]}, r"5 images in 'x', but 'y' has shape \(3,\)"),
        ({"x": PIXELS, "y": np.array([object()] * 5)}, "can't be read"),
        ({"jpeg": PIXELS.reshape(-1), "y": CLASSES}, "can't be read"),
    ],
)
def test_npz_files_that_cannot_be_used(arrays, said, tmp_path):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(IsobasinError, match=said) as caught:
        images(tmp_path / "set.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("train", "has no split 'train'"),
        ("test[1", r"has no split 'test\[1'"),
        ("test[a:b]", r"the slice \[a:b\]"),
        ("test[4:4]", "has no rows"),
        ("", "has no split"),
    ],
)
def test_splits_that_are_not_there(split, said, written):
    with pytest.raises(IsobasinError, match=said):
        rows(written("test.csv", table("x.csv")), split=split)


def test_an_empty_folder(tmp_path):
    with pytest.raises(IsobasinError, match="no data files or class folders"):
        rows(tmp_path)


def test_formats_that_differ(written):
    written("set/a.csv", table("x.csv"))
    path = written("set/b.jsonl", table("x.json"))
    with pytest.raises(IsobasinError, match=re.escape("a.csv and b.jsonl differ in format")):
        rows(path.parent)


def test_without_the_package(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DependencyError, match=r'needs the package datasets: pip install "isobasin\['):
        rows("digits")


def test_configuration_and_split_may_follow_the_hubs_id(monkeypatch: pytest.MonkeyPatch):
    splits = {"train": datasets.Dataset.from_dict({"text": ["a"]}), "test": datasets.Dataset.from_dict({"text": ["b"]})}
    asked: list[tuple[str | None, ...]] = []

    def load(source: str, name: str | None, revision: str | None) -> dict[str, datasets.Dataset]:
        asked.append((source, name, revision))
        if name is None:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['raw', 'plain']")
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load)
    for source, options in (
        ("owner/set:raw:train", {}),
        ("owner/set:raw", {"split": "train"}),
        ("owner/set", {"name": "raw", "split": "train"}),
        ("owner/set::train", {"name": "raw"}),
        ("owner/set:raw:train", {"name": "raw", "split": "train"}),
    ):
        assert rows(source, "causal-lm", **options)["text"][:] == ["a"]
    assert asked == [("owner/set", "raw", None)] * 5
    assert rows("owner/set@v1.2:raw:train", "causal-lm")["text"][:] == ["a"]
    assert asked.pop() == ("owner/set", "raw", "v1.2")
    for wrong in ("owner/set@:raw", "@v1.2"):
        with pytest.raises(
            DataError, match=f"^{wrong.split(':')[0]}: name a data set, and a branch, a tag or a commit"
        ):
            rows(wrong, "causal-lm")
    assert rows("owner/set:raw", "causal-lm")["text"][:] == ["b"]
    with pytest.raises(
        DataError, match=r"owner/set: choose one of its configurations, owner/set:NAME: 'raw', 'plain'$"
    ):
        rows("owner/set", "causal-lm")
    with pytest.raises(DataError, match=r"owner/set:raw: says 'raw', and --name 'plain': give one of the two"):
        rows("owner/set:raw", "causal-lm", name="plain")
    with pytest.raises(DataError, match=r"has no split 'none': it has 'train', 'test'"):
        rows("owner/set:raw:none", "causal-lm")
