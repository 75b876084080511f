"""Tokens are read from whichever files a folder has; damaged ones are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isobasin.checkpoints.tokens import read_tokens
from isobasin.errors import CheckpointError

IDS = {"a": 0, "b": 1, "ab": 2, "<pad>": 3}
_MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
_ADDED = [{"id": 3, "content": "<pad>", "special": True}]


def written(folder: Path, **files: Any) -> Path:
    """A folder with these files: text as it is, other things as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("_json", ".json").replace("_txt", ".txt")
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def test_the_same_tokens_in_all_forms(tmp_path):
    folders = [
        written(tmp_path / "fast", tokenizer_json={"model": _MODEL, "added_tokens": _ADDED}),
        written(
            tmp_path / "pairs", tokenizer_json={"model": {**_MODEL, "merges": [["a", "b"]]}, "added_tokens": _ADDED}
        ),
        written(
            tmp_path / "slow",
            vocab_json=_MODEL["vocab"],
            merges_txt="#version: 0.2\na b\n",
            added_tokens_json={"<pad>": 3},
        ),
        written(
            tmp_path / "decoder",
            vocab_json=_MODEL["vocab"],
            merges_txt="a b\n",
            tokenizer_config_json={"added_tokens_decoder": {"3": {"content": "<pad>"}}},
        ),
    ]
    found = [read_tokens(folder) for folder in folders]
    assert all(one is not None and one.ids == IDS for one in found)
    assert len({one.merges for one in found if one is not None}) == 1
    unigram = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0], ["ab", -3.0]]}, "added_tokens": _ADDED}
    lines = written(tmp_path / "lines", vocab_txt="a\nb\nab\n<pad>\n")
    for folder in (written(tmp_path / "unigram", tokenizer_json=unigram), lines):
        one = read_tokens(folder)
        assert one is not None
        assert one.ids == IDS
        assert one.merges is None


def test_no_tokenizer_and_one_that_only_its_library_reads(tmp_path):
    assert read_tokens(written(tmp_path / "none")) is None
    one, other = (read_tokens(written(tmp_path / x, **{"tokenizer.model": x})) for x in "ab")
    assert one is not None
    assert other is not None
    assert not one.ids
    assert one.merges != other.merges


def test_a_link_out_of_the_folder_is_not_read(tmp_path):
    written(tmp_path / "elsewhere", tokenizer_json={"model": _MODEL})
    folder = written(tmp_path / "model")
    (folder / "tokenizer.json").symlink_to(tmp_path / "elsewhere" / "tokenizer.json")
    assert read_tokens(folder) is None


@pytest.mark.parametrize(
    "content",
    [
        "{",
        [],
        {},
        {"model": 3},
        {"model": {"vocab": {"a": "x"}}},
        {"model": {"vocab": {"a": -1}}},
        {"model": {"vocab": {"a": 4_000_000_000}}},
        {"model": {"vocab": {"a": 1.5}}},
        {"model": _MODEL, "added_tokens": [{"content": "x", "id": None}]},
    ],
)
def test_damaged_files_are_named(content, tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: .*"):
        read_tokens(written(tmp_path / "model", tokenizer_json=content))


@pytest.mark.parametrize("extra", [3, [3, []], [{"content": ["x"], "id": 1}], None])
def test_what_is_no_token_adds_none(extra, tmp_path):
    found = read_tokens(written(tmp_path / "model", tokenizer_json={"model": _MODEL, "added_tokens": extra}))
    assert found is not None
    assert found.ids == _MODEL["vocab"]
