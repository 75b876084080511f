"""Tokenizers and image processors, loaded and made."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from isobasin.errors import CheckpointError, IsobasinError
from isobasin.tasks.processors import build_image_processor, build_tokenizer, load_config, load_processor

TEXTS = ["the cat sat on the mat", "a cat\n\nand  a dog", 'Äpfel und "Birnen" 🙂']


def ids(tokenizer, text, **options):
    return tokenizer(text, **options)["input_ids"]


@pytest.mark.parametrize("model", ["gpt2", "bert", None])
@pytest.mark.parametrize("classification", [False, True])
@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_made_tokenizer_comes_back(kind, classification, model, gpt2, bert, tmp_path):
    made = build_tokenizer(TEXTS, kind, 400, classification=classification)
    if model:
        {"gpt2": gpt2, "bert": bert}[model](vocabulary=len(made)).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        for text in [*TEXTS, "xyz cat"]:
            assert ids(loaded, text) == ids(made, text)
            plain = ids(loaded, text, add_special_tokens=False)
            assert kind == "characters" or loaded.decode(plain) == text
        assert loaded.all_special_ids == made.all_special_ids
        for name in ("pad", "unk", "cls", "sep", "eos", "mask"):
            assert getattr(loaded, f"{name}_token_id") == getattr(made, f"{name}_token_id")


def load_tokenizer(folder):
    return load_processor(folder, "causal-lm" if (folder / "config.json").exists() else "masked-lm").tokenizer


def test_characters():
    made = build_tokenizer(["abca\n", "bb  é"], "characters", 100, classification=False)
    text = "é b\n\na"
    assert [made.convert_ids_to_tokens(i) for i in ids(made, text)] == list(text)
    assert made.decode(ids(made, text)) == text
    assert len(made) == 3 + len(set("abca\nbb  é"))
    assert ids(made, "aZa") == [ids(made, "a")[0], made.unk_token_id, ids(made, "a")[0]]
    assert made.eos_token_id is not None
    assert made.cls_token_id is None


def test_the_most_frequent_characters_are_kept():
    made = build_tokenizer(["aaabbc"], "characters", 5, classification=False)
    assert len(made) == 5
    assert [made.unk_token_id == i for i in ids(made, "abc")] == [False, False, True]


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_texts_to_classify_are_framed(kind):
    made = build_tokenizer(TEXTS, kind, 300, classification=True)
    plain, other = (ids(made, text, add_special_tokens=False) for text in ("cat", "dog"))
    assert ids(made, "cat") == [made.cls_token_id, *plain, made.sep_token_id]
    pair = [made.cls_token_id, *plain, made.sep_token_id, *other, made.sep_token_id]
    assert made("cat", "dog")["input_ids"] == pair
    assert len({made.pad_token_id, made.unk_token_id, made.cls_token_id, made.sep_token_id, made.mask_token_id}) == 5


def test_bpe_joins_what_is_frequent():
    made = build_tokenizer(["the cat the cat the cat"] * 20, "bpe", 300, classification=False)
    assert len(made) <= 300
    assert len(ids(made, "the cat the cat")) == 4
    assert made.decode(ids(made, "🙂 never seen\n")) == "🙂 never seen\n"


@pytest.mark.parametrize(
    "content",
    [{"a": 2, "b": 0, "\n": 1}, ["b", "\n", "a"], {"chars": ["b", "\n", "a"]}, {"vocab": {"a": 2, "b": 0, "\n": 1}}],
    ids=["table", "list", "named list", "named table"],
)
def test_a_file_of_characters(content, tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(content))
    found = load_processor("nowhere", "causal-lm", str(path)).tokenizer
    assert ids(found, "ab\nba") == [2, 0, 1, 0, 2]
    assert found.decode([2, 0, 1]) == "ab\n"
    assert found.eos_token_id is None


ODD = [
    *('{"ab": 0}', '{"a": "b"}', "[]", "{}", "3", "{", '["a", 30]', '"ab"', "", "[" * 10**5),
    *('{"a": 4000000000}', '{"a": -1}', '{"a": 1.0}', '{"a": true}', '{"a": 0, "b": 0}', '{"a": 0, "a": 1}'),
    *('["a", "b", "a"]', '["a", 1]', '["\\ud800"]', '{"a": 1' + "0" * 5000 + "}", "\0\1"),
]


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_a_file_of_anything_else(content, tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(IsobasinError, match=re.escape(f"--tokenizer {path}: ")) as caught:
        load_processor("nowhere", "causal-lm", path)
    assert "\n" not in str(caught.value)


def test_another_tokenizer(tmp_path):
    made = build_tokenizer(TEXTS, "bpe", 300, classification=False)
    made.save_pretrained(tmp_path / "tokenizer")
    found = load_processor(tmp_path / "nowhere", "causal-lm", tmp_path / "tokenizer").tokenizer
    assert ids(found, TEXTS[0]) == ids(made, TEXTS[0])


@pytest.mark.parametrize("kind", ["causal-lm", "text-classification", "masked-lm"])
def test_no_tokenizer(kind, gpt2, tmp_path):
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(IsobasinError, match=r"has no tokenizer: name one with --tokenizer") as caught:
        load_processor(tmp_path, kind)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_broken_tokenizer(gpt2, tmp_path):
    gpt2().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(IsobasinError, match=r"has no tokenizer that can be loaded \(.*name one with") as caught:
        load_processor(tmp_path, "causal-lm")
    assert "\n" not in str(caught.value)
    with pytest.raises(IsobasinError, match=r"^--tokenizer some/where that can be loaded"):
        load_processor(tmp_path, "causal-lm", "some/where")


def gray(size):
    values = np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)
    return Image.fromarray(values), torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_made_image_processor_comes_back(channels, tmp_path):
    made = build_image_processor(8, channels)
    made.save_pretrained(tmp_path)
    image, values = gray(8)
    image = image.convert("L" if channels == 1 else "RGB")
    for processor in (made, AutoImageProcessor.from_pretrained(tmp_path)):
        found = processor([image], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found, (values / 127.5 - 1).expand(1, channels, 8, 8), atol=1e-6, rtol=0)


def test_height_and_width():
    made = build_image_processor((4, 6), 1)
    assert made([gray(8)[0]], return_tensors="pt")["pixel_values"].shape == (1, 1, 4, 6)


def test_a_model_with_an_image_processor(vit, tmp_path):
    from transformers import ViTImageProcessor

    vit(channels=3).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.1] * 3, image_std=[0.2] * 3).save_pretrained(
        tmp_path
    )
    found = load_processor(tmp_path, "image-classification")
    assert (found.notes, found.channels) == ((), 3)
    image, values = gray(8)
    seen = found.images([image.convert("RGB")], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen, ((values / 255 - 0.1) / 0.2).expand(1, 3, 8, 8), atol=1e-5, rtol=0)


def test_a_model_without_one(vit, tmp_path):
    vit(channels=1, size=12).save_pretrained(tmp_path)
    found = load_processor(tmp_path, "image-classification")
    assert found.channels == 1
    assert "scaled to [-1, 1]" in found.notes[0]
    assert found.images([gray(8)[0]], return_tensors="pt")["pixel_values"].shape == (1, 1, 12, 12)


def test_images_for_a_model_of_texts(gpt2, tmp_path):
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(IsobasinError, match="has no image processor, and its configuration no image_size"):
        load_processor(tmp_path, "image-classification")
    with pytest.raises(CheckpointError, match="no such folder"):
        load_processor(tmp_path / "nowhere", "image-classification")


EVIL = "raise SystemExit(open({marker!r}, 'w').write('ran'))"
MAPS = {
    "config.json": {"AutoConfig": "code.Thing", "AutoModelForCausalLM": "code.Thing"},
    "tokenizer_config.json": {"AutoTokenizer": ["code.Thing", None]},
    "preprocessor_config.json": {"AutoImageProcessor": "code.Thing"},
}


@pytest.mark.parametrize("known", [True, False], ids=["known type", "unknown type"])
@pytest.mark.parametrize("kind", ["causal-lm", "image-classification"])
def test_code_of_a_folder_is_never_run(kind, known, vit, gpt2, tmp_path, monkeypatch):
    """Not even for someone who would say yes: nothing asks."""
    folder, marker = tmp_path / "model", tmp_path / "ran"
    (gpt2() if kind == "causal-lm" else vit()).save_pretrained(folder)
    build_tokenizer(TEXTS, "bpe", 300, classification=False).save_pretrained(folder)
    build_image_processor(8, 1).save_pretrained(folder)
    for file, entries in MAPS.items():
        content = json.loads((folder / file).read_text()) | {"auto_map": entries}
        if not known:
            content |= {"model_type": "its_own", "tokenizer_class": "Own", "image_processor_type": "Own"}
        (folder / file).write_text(json.dumps(content))
    (folder / "code.py").write_text(EVIL.format(marker=str(marker)))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    if known:
        load_processor(folder, kind)
        load_config(folder)
    else:
        own = r"needs Python code of its own \(auto_map\), which isn't run"
        unknown = "model type 'its_own' is unknown to transformers"
        with pytest.raises(IsobasinError, match=own if kind == "causal-lm" else unknown):
            load_processor(folder, kind)
        with pytest.raises(CheckpointError, match=unknown):
            load_config(folder)
        with pytest.raises(CheckpointError, match=own):
            load_config(folder, num_labels=2)
    assert not asked
    assert not marker.exists()


@pytest.mark.parametrize("file", ["merges.txt", "special_tokens_map.json"])
def test_a_pipe_among_the_files(file, gpt2, tmp_path):
    gpt2().save_pretrained(tmp_path)
    build_tokenizer(TEXTS, "bpe", 300, classification=False).save_pretrained(tmp_path)
    os.mkfifo(tmp_path / file)
    with pytest.raises(IsobasinError, match=rf"{file}: is a pipe or a device"):
        load_processor(tmp_path, "causal-lm")


def test_a_device_for_a_file_of_characters(tmp_path):
    (tmp_path / "characters.json").symlink_to("/dev/zero")
    with pytest.raises(IsobasinError, match="is a pipe or a device"):
        load_processor("nowhere", "causal-lm", tmp_path / "characters.json")


@pytest.mark.parametrize(
    "entries",
    [{"size": {"height": 10**6, "width": 8}}, {"crop_size": {"height": 8, "width": 10**6}}, {"size": "x"}, {"size": 0}],
    ids=str,
)
def test_an_image_processor_of_absurd_sizes(entries, vit, tmp_path):
    vit(channels=3).save_pretrained(tmp_path)
    build_image_processor(8, 3).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(IsobasinError, match="image processor") as caught:
        load_processor(tmp_path, "image-classification")
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize("entry", [{"image_size": 10**9}, {"image_size": "x"}, {"num_channels": [3]}], ids=str)
def test_an_image_size_that_is_none(entry, vit, tmp_path):
    vit().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    with pytest.raises(IsobasinError) as caught:
        load_processor(tmp_path, "image-classification")
    assert str(caught.value).startswith(str(tmp_path))
