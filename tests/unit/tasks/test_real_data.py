"""The real data sets that are there, as users would name them, and trained models on text they haven't seen."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from isobasin.tasks.data import DataOptions, prepare, read_dataset
from isobasin.tasks.kind import kind_of, load_model
from isobasin.tasks.losses import evaluate
from isobasin.tasks.processors import Processor, build_image_processor, build_tokenizer, load_processor

pytestmark = pytest.mark.long


@pytest.fixture
def unseen(real_data, tmp_path):
    """The last tenth of the characters."""
    text = (real_data / "tinyshakespeare" / "input.txt").read_text()
    path = tmp_path / "unseen.txt"
    path.write_text(text[int(0.9 * len(text)) :])
    return path


@pytest.mark.parametrize("name", ["gpt2-seed0", "gpt2-seed1", "llama-seed0", "llama-seed1"])
def test_trained_language_models(name, unseen, real_checkpoints):
    folder = real_checkpoints / "scratch" / name
    model = load_model(folder, "causal-lm")
    kind = kind_of(model.config)
    processor = load_processor(folder, kind, folder / "char_vocab.json")
    options = DataOptions(str(unseen), max_examples=300)
    examples = prepare(read_dataset(options, kind), kind, processor, options, config=model.config)
    assert len(examples) == 300
    assert examples.facts.characters == 1
    found = evaluate(model, examples, batch_size=50)
    logged = json.loads((folder / "train_log.json").read_text())["val"]
    assert found.loss == pytest.approx(logged, abs=0.03)
    assert found.metrics["bits_per_character"] == pytest.approx(found.loss / np.log(2))
    assert 0 <= found.loss - found.calibrated_loss < 0.02
    assert 0.8 < found.temperature < 1.3


def test_mnist(real_data):
    path = real_data / "mnist" / "mnist.npz"
    options = DataOptions(str(path), max_examples=50)
    processor = Processor(images=build_image_processor(28, 1), channels=1)
    dataset = read_dataset(options, "image-classification")
    assert len(dataset) == 10_000
    examples = prepare(dataset, "image-classification", processor, options)
    with np.load(path) as arrays:
        x, y = arrays["x_test"], arrays["y_test"]
    wanted = torch.from_numpy(x[:, None] / np.float32(127.5) - 1)
    batch = examples.fetch(range(50))
    for image, label in zip(batch["pixel_values"], batch["labels"], strict=True):
        row = int((wanted - image).abs().sum((1, 2, 3)).argmin())
        torch.testing.assert_close(image, wanted[row], atol=1e-6, rtol=0)
        assert label == y[row]


def test_cifar10(real_data):
    path = real_data / "cifar10" / "cifar10_jpeg_25k_10k.npz"
    options = DataOptions(str(path), split="test[5000:5040]")
    processor = Processor(images=build_image_processor(32, 3), channels=3)
    examples = prepare(read_dataset(options, "image-classification"), "image-classification", processor, options)
    with np.load(path) as arrays:
        cuts, flat, y = (arrays[f"{name}_test"] for name in ("offsets", "jpeg", "y"))
        names = arrays["classes"]
    files = [flat[cuts[i] : cuts[i + 1]].tobytes() for i in range(5000, 5040)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    batch = examples.fetch(range(40))
    wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(batch["pixel_values"], wanted, atol=1e-6, rtol=0)
    assert batch["labels"].tolist() == y[5000:5040].tolist()
    assert examples.facts.label_names == tuple(names)


def test_imdb(real_data):
    options = DataOptions(str(real_data / "imdb"), split="test[:40]", length=32)
    dataset = read_dataset(options, "text-classification")
    tokenizer = build_tokenizer(dataset["text"], "bpe", 600, classification=True)
    examples = prepare(dataset, "text-classification", Processor(tokenizer=tokenizer), options)
    assert (len(examples), examples.facts.num_labels) == (40, 2)
    for row in (0, 39):
        kept = tokenizer.decode(examples[row]["input_ids"], skip_special_tokens=True)
        assert len(kept) > 20
        assert dataset["text"][row].startswith(kept)
        assert examples[row]["labels"] == dataset["label"][row]


def test_ag_news(real_data):
    columns = {"label": "0", "text": "1", "text_pair": "2"}
    options = DataOptions(str(real_data / "ag_news"), columns=columns, split="test")
    dataset = read_dataset(options, "text-classification")
    assert len(dataset) == 7600
    assert dataset[0]["text"] == "Fears for T N pension after talks"
    train = read_dataset(DataOptions(str(real_data / "ag_news"), split="train_clean.csv"), "text-classification")
    assert len(train) == 13_295
    assert set(train["label"][:]) == {0, 1, 2, 3}


@pytest.mark.parametrize(("name", "count"), [("dev", 872), ("test", 1821), ("train", 6920)])
def test_sst2(name, count, real_data):
    found = read_dataset(DataOptions(str(real_data / "sst2"), split=name), "text-classification")
    lines = (real_data / "sst2" / f"{name}.tsv").read_text().splitlines()
    assert [f"{text}\t{label}" for text, label in zip(found["text"], found["label"], strict=True)] == lines
    assert len(found) == count


def test_dbpedia(real_data):
    (path,) = (real_data / "dbpedia14").glob("*.csv")
    found = read_dataset(DataOptions(str(path)), "text-classification")
    assert len(found) == 14_000
    assert np.bincount(found["label"][:]).max() == 1000


def test_classic_books(real_data):
    import lzma

    options = DataOptions(str(real_data / "classic_books"), split="valid")
    found = read_dataset(options, "causal-lm")
    stored = (real_data / "classic_books" / "valid.txt.xz").read_bytes()
    assert "".join(found["text"]) == lzma.decompress(stored).decode()
