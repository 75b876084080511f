"""Files that are damaged, empty, or something else than their name says: one line that names them, nothing else."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zipfile

import numpy as np
import pytest

from isobasin.errors import IsobasinError
from isobasin.tasks.data import DataOptions, prepare, read_dataset
from isobasin.tasks.processors import Processor, build_image_processor, build_tokenizer
from isobasin.tasks.reading import reading

TABLE = "text,label\na fine film,1\nbad,0\n"
PIXELS, LABELS = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 3
NOISE = np.random.default_rng(0).bytes(3000)


def prepared(path, kind="text-classification", **options):
    classifies = kind != "causal-lm"
    if kind == "image-classification":
        processor = Processor(images=build_image_processor(8, 1), channels=1)
    else:
        processor = Processor(tokenizer=build_tokenizer(["the cat sat"], "bpe", 300, classification=classifies))
    said = DataOptions(str(path), **options)
    found = prepare(read_dataset(said, kind), kind, processor, said)
    return found.fetch(range(len(found)))


def refused(said, path, kind="text-classification", **options):
    with pytest.raises(IsobasinError) as caught:
        prepared(path, kind, **options)
    message = str(caught.value)
    assert message.startswith((str(path), "--", "max examples", "length"))
    assert said in message
    assert "\n" not in message


def arrays(path, **named):
    np.savez(path, **named)
    return path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("latin.csv", "text,label\nfilm é,1\n".encode("latin-1"), "texts have to be UTF-8"),
        ("latin.jsonl", '{"text":"é","label":1}\n'.encode("latin-1"), "'utf-8' codec can't decode"),
        ("noise.csv", NOISE, "can't be read as csv"),
        ("noise.jsonl", NOISE, "can't be read as json"),
        ("noise.parquet", NOISE, "can't be read as parquet"),
        ("noise.npz", NOISE, "can't be read as npz"),
        *((f"empty.{kind}", b"", "is empty") for kind in ("csv", "tsv", "jsonl", "json", "txt", "parquet")),
        ("empty.npz", b"", "can't be read as npz"),
        ("header.csv", b"text,label\n", "no data"),
        ("ragged.csv", b"text,label\na,1\nb,0,3\n", "Expected 2 fields in line 3, saw 3"),
        ("mixed.jsonl", b'{"text":"a","label":1}\n{"text":3,"label":0}\n', "the text column has 3, not a text"),
        ("lists.jsonl", b'{"text":"a","label":1}\n[1,2]\n', "can't be read as json"),
        ("deep.json", b"[" * 200_000, "can't be read as json"),
        ("surrogate.jsonl", b'{"text":"a \\ud800","label":1}\n', "can't be read as json"),
        ("large.jsonl", b'{"text":"a","label":100000000000000000000000}\n', "row 1 has label 1e+23, which is neither"),
        ("object.jsonl", b'{"text":"a","label":{"x":1}}\n', "row 1 has label {'x': 1}, which is neither"),
        ("short.csv.gz", gzip.compress(TABLE.encode())[:-9], "can't be read as csv"),
        ("packed.csv.xz", b"abc", "can't be read as csv"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_tables(name, content, said, tmp_path, capfd):
    (tmp_path / name).write_bytes(content)
    refused(said, tmp_path / name)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_name(name, tmp_path):
    content = TABLE if name == "rows.csv" else '{"text":"a fine film","label":1}\n{"text":"bad","label":0}\n'
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert prepared(tmp_path / name)["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("options", [{"max_examples": 0}, {"max_examples": -3}, {"length": 0}, {"length": -1}], ids=str)
def test_numbers_below_one(options, tmp_path):
    refused("give at least 1", tmp_path / "rows.csv", **options)


def test_one_column_in_two_roles(written):
    refused("has two roles", written("rows.csv", TABLE), columns={"text": "label", "label": "label"})


def test_texts_without_tokens(written):
    """A tokenizer without special tokens makes nothing of an empty text, and a model can't be given nothing."""
    path = written("rows.jsonl", '{"text":"a","label":1}\n{"text":"","label":0}\n{"text":null,"label":0}\n')
    said = DataOptions(str(path))
    rows = read_dataset(said, "text-classification")
    bare = Processor(tokenizer=build_tokenizer(["the cat"], "bpe", 300, classification=False))
    with pytest.raises(IsobasinError, match=r"2 texts, first number 2 of 3, have no tokens"):
        prepare(rows, "text-classification", bare, said)
    assert prepared(path)["input_ids"].shape[0] == 3
    refused("0 tokens of text", written("empty.jsonl", '{"text":""}\n' * 3), "causal-lm")


def test_a_text_of_which_no_token_is_to_be_predicted(written):
    """A loss of nothing is no loss of 0."""
    path = written("short.txt", "the cat")
    processor = Processor(tokenizer=build_tokenizer(["the cat sat"], "bpe", 300, classification=True))

    def outcome(seed):
        said = DataOptions(str(path), seed=seed)
        try:
            found = prepare(read_dataset(said, "masked-lm"), "masked-lm", processor, said)
        except IsobasinError as error:
            return re.sub(r"\d+", "N", str(error).removeprefix(f"{path}: "))
        return bool((found.fetch([0])["labels"] != -100).any())

    assert {outcome(seed) for seed in range(8)} == {True, "too short a text: of its N tokens none is masked"}


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    (tmp_path / "dangling.csv").symlink_to("nowhere")
    refused("is a pipe or a device", tmp_path / "pipe.csv")
    refused("is a pipe or a device", tmp_path / "device.csv")
    refused("the file is missing", tmp_path / "dangling.csv")
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "folder.csv" / "train.csv")
    refused("no data files", tmp_path / "folder.csv")


OBJECTS = np.array([None, 1, 2, 3], object)
STREAM = np.zeros(10, np.uint8)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"x": OBJECTS, "y": LABELS}, "pickled objects are refused"),
        ({"x": PIXELS, "y": OBJECTS}, "pickled objects are refused"),
        ({"x": PIXELS, "y": LABELS, "classes": OBJECTS}, "pickled objects are refused"),
        ({"a": PIXELS}, "has arrays a: needs x and y"),
        ({"x": PIXELS[:0], "y": LABELS[:0]}, "has no rows"),
        ({"x": np.uint8(3), "y": LABELS}, "0 images in 'x'"),
        ({"x": PIXELS.reshape(4, 64), "y": LABELS}, "of shape (4, 64): images are uint8"),
        ({"x": PIXELS[None], "y": LABELS[:1], "z": 0}, "image 1 of 1 can't be read"),
        ({"x": PIXELS[:, :0], "y": LABELS}, "image 1 of 4 can't be read"),
        ({"x": np.full((4, 8, 8), np.nan), "y": LABELS}, "is float64 of shape (4, 8, 8)"),
        ({"x": PIXELS, "y": LABELS[:3]}, "4 images in 'x', but 'y' has shape (3,)"),
        ({"x": PIXELS, "y": LABELS + 0.5}, "they have to be whole numbers or names"),
        ({"x": PIXELS, "y": LABELS * np.nan}, "they have to be whole numbers or names"),
        ({"x": PIXELS, "y": LABELS + 1j}, "they have to be whole numbers or names"),
        ({"x": PIXELS, "y": np.full(4, 2**64 - 1, np.uint64)}, "too large"),
        ({"x": PIXELS, "y": LABELS - 5}, "label -5 is negative"),
        ({"x": PIXELS, "y": LABELS, "classes": np.array(["a", "b"])}, "Class label 2 greater"),
        ({"jpeg": STREAM, "y": LABELS[:2]}, "no item named 'offsets.npy'"),
        ({"jpeg": STREAM, "offsets": np.array([0, 50, -10]), "y": LABELS[:2]}, "offsets have to be whole numbers"),
        ({"jpeg": STREAM, "offsets": np.array([0.0, 5, 10]), "y": LABELS[:2]}, "offsets have to be whole numbers"),
        ({"jpeg": STREAM, "offsets": np.array(3), "y": LABELS[:2]}, "offsets have to be whole numbers"),
        ({"jpeg": STREAM / 2, "offsets": np.array([0, 5, 10]), "y": LABELS[:2]}, "encoded images are uint8"),
        ({"jpeg": STREAM[:0], "offsets": np.array([0, 0, 0]), "y": LABELS[:2]}, "it has no known format"),
    ],
)
def test_arrays(named, said, tmp_path):
    refused(said, arrays(tmp_path / "rows.npz", **named), "image-classification")


def test_whole_numbers_as_floats_are_labels(tmp_path):
    path = arrays(tmp_path / "rows.npz", x=PIXELS, y=LABELS.astype(np.float32))
    assert prepared(path, "image-classification")["labels"].tolist() == LABELS.tolist()


def test_an_array_that_is_larger_than_memory(tmp_path, monkeypatch):
    """Its header says so, or the file's directory does: nothing is unpacked."""
    header, labels = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**14, 8, 8)})
    np.save(labels, LABELS)
    with zipfile.ZipFile(tmp_path / "header.npz", "w") as file:
        file.writestr("x.npy", header.getvalue())
        file.writestr("y.npy", labels.getvalue())
    refused("Unable to allocate", tmp_path / "header.npz", "image-classification")
    path = tmp_path / "packed.npz"
    np.savez_compressed(path, x=np.zeros((2**14, 8, 8), np.uint8), y=np.zeros(2**14, int))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10**6}))
    refused("0.0 GB unpacked", path, "image-classification")


@pytest.fixture
def saved(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["a fine film", "bad"], "label": [1, 0]}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", "{"),
        ("state.json", "{}"),
        ("state.json", "[]"),
        ("dataset_info.json", '{"features": {"text": {"_type": "Other"}}}'),
        ("data-00000-of-00001.arrow", "abc"),
    ],
)
def test_a_saved_data_set(file, content, saved):
    assert prepared(saved)["labels"].tolist() == [1, 0]
    (saved / file).write_text(content)
    refused("can't be read as a data set that was saved to disk", saved)


def test_a_folder_that_names_data_elsewhere(tmp_path):
    """A README.md may name files of its data set; those of others are not among them."""
    inside, outside = tmp_path / "set" / "data", tmp_path / "private"
    for place in (inside, outside):
        place.mkdir(parents=True)
        (place / "rows.csv").write_text(TABLE)
    readme = tmp_path / "set" / "README.md"
    readme.write_text("---\nconfigs:\n- config_name: default\n  data_files: data/rows.csv\n---\n")
    assert prepared(tmp_path / "set")["labels"].tolist() == [1, 0]
    readme.write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {outside}/rows.csv\n---\n")
    refused(f"names data outside the folder, {outside}/rows.csv", tmp_path / "set")


def test_a_script_beside_the_data_is_not_run(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused("no data files", tmp_path / "set")
    assert not (tmp_path / "ran").exists()


def test_a_panic_of_a_library_is_an_error_and_ctrl_c_is_none():
    panic = type("PanicException", (BaseException,), {})
    with (
        pytest.raises(IsobasinError, match=r"rows: can't be read \(capacity overflow here\): check the data"),
        reading("rows: can't be read"),
    ):
        raise panic("capacity overflow here\nmore")
    with pytest.raises(KeyboardInterrupt), reading("rows: can't be read"):
        raise KeyboardInterrupt
    with pytest.raises(IsobasinError, match=r"\(KeyError: 'x'\)"), reading("rows: can't be read"):
        json.loads("{}")["x"]
