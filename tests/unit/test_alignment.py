"""The alignment as a file and as an object; its group laws on models are in the contracts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from isobasin.alignment import Alignment, Move, Statistics
from isobasin.beside import ALIGNMENT
from isobasin.checkpoints import write_tensors
from isobasin.errors import AlignmentError, OutputError
from isobasin.symmetries.feedforward import FeedForwardGroup, Scale
from isobasin.testing.strategies import make_group

GROUPS = [
    make_group(3, 2, 4, {"key": True, "value": True, "output": True}, ((0, 1),)),
    make_group(4, 1, 2, {}),
]


def alignment(seed: int = 0, groups=GROUPS) -> Alignment:
    generator = torch.Generator().manual_seed(seed)
    statistics = Statistics(3.0, 1.0, 10.0, 5, "converged")
    moves = tuple(Move(f"attention.{i}", group, group.sample(generator), statistics) for i, group in enumerate(groups))
    return Alignment("made-up", moves, {"operation": "test", "model": "ü"})


UNITS = [FeedForwardGroup(5, Scale.signed, Scale.positive, 2), FeedForwardGroup(3)]


def with_feedforward(seed: int = 0, units=UNITS) -> Alignment:
    generator = torch.Generator().manual_seed(seed)
    statistics = Statistics(4.0, 2.0, status="optimal")
    moved = tuple(Move(f"feedforward.{i}", group, group.sample(generator), statistics) for i, group in enumerate(units))
    return replace(alignment(seed), moves=(*alignment(seed).moves, *moved))


def test_load_reads_what_save_wrote_to_the_bit(tmp_path):
    made = alignment()
    made.save(tmp_path / "a.safetensors")
    found = Alignment.load(tmp_path / "a.safetensors")
    assert (found.model_type, dict(found.provenance)) == ("made-up", {"operation": "test", "model": "ü"})
    for one, other in zip(made.layers, found.layers, strict=True):
        assert (one.layer, one.group) == (other.layer, other.group)
        assert one.to_json() == other.to_json()
        for name, part in one.element.tensors().items():
            assert torch.equal(part, other.element.tensors()[name]), name
            assert part.dtype == other.element.tensors()[name].dtype


def test_a_folder_stands_for_its_alignment_under_the_name_of_any_version(tmp_path):
    alignment().save(tmp_path / "alignment.safetensors")
    assert torch.equal(Alignment.load(tmp_path).layers[0].element.outer, alignment().layers[0].element.outer)
    with_feedforward().save(tmp_path / ALIGNMENT)
    assert len(Alignment.load(tmp_path).feedforward) == len(UNITS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AlignmentError, match=rf"empty/{ALIGNMENT}: no such alignment: give the {ALIGNMENT}"):
        Alignment.load(tmp_path / "empty")


def test_feedforward_is_kept_to_the_bit(tmp_path):
    made = with_feedforward()
    made.save(tmp_path / "a.safetensors")
    found = Alignment.load(tmp_path / "a.safetensors")
    assert [layer.to_json() for layer in found.layers] == [layer.to_json() for layer in made.layers]
    for one, other in zip(made.feedforward, found.feedforward, strict=True):
        assert (one.layer, one.group, one.statistics) == (other.layer, other.group, other.statistics)
        for name, part in one.element.tensors().items():
            assert torch.equal(part, other.element.tensors()[name]), name


def test_a_file_says_of_every_block_its_group_and_its_statistics(tmp_path):
    alignment().save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = json.loads(file.metadata()["isobasin"])
        assert file.metadata()["format"] == "2"
        assert all(name.startswith("attention.") for name in file.keys())  # noqa: SIM118, not a dictionary
    assert header.keys() == {"model_type", "provenance", "moves"}
    assert [move.keys() for move in header["moves"]] == [{"block", "group", "statistics"}] * 2
    assert Alignment.load(tmp_path / "a.safetensors").feedforward == ()


def test_a_lazily_conjugated_element_is_saved_as_its_values(tmp_path):
    made = alignment()
    first = made.layers[0]
    name = "query_key.planes"
    lazy = first.element.parts[name].conj()
    moves = (replace(first, element=first.element.having({name: lazy})), made.layers[1])
    replace(made, moves=moves).save(tmp_path / "a.safetensors")
    assert torch.equal(Alignment.load(tmp_path / "a.safetensors").layers[0].element.parts[name], lazy)


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path = tmp_path / "a.safetensors"
    alignment().save(path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        alignment(1).save(path)
    assert path.read_bytes() == before
    alignment(1).save(path, force=True)
    assert path.read_bytes() != before


def test_a_file_of_a_newer_format_is_not_called_damaged(tmp_path: Path):
    path = tmp_path / "newer.safetensors"
    save_file({}, path, {"format": "3", "isobasin": "{}"})
    with pytest.raises(AlignmentError, match=r"newer\.safetensors: it has format 3, .* up to 2: update it$"):
        Alignment.load(path)


# What the header may be changed to: where, and to what.
_ATTENTION, _UNITS = ("moves", 0), ("moves", 2)
_GROUP = (*_ATTENTION, "group")
_STREAM = {"block": "stream", "group": {"width": 4, "basis": "linear", "norms": 1}, "statistics": {}}
HEADERS = [
    ((*_GROUP, "value_output", "features"), 10**30),
    ((*_GROUP, "value_output", "features"), 1e30),
    ((*_GROUP, "value_output", "features"), 10**9),
    ((*_GROUP, "value_output", "features"), "4"),
    ((*_GROUP, "value_output", "new"), 1),
    ((*_GROUP, "query_key", "features"), -1),
    ((*_GROUP, "query_key", "planes"), [[0, 0]]),
    ((*_GROUP, "kv_heads"), 10**12),
    ((*_GROUP, "kv_heads"), 0),
    ((*_GROUP, "table"), [10**15]),
    ((*_GROUP, "norm"), "other"),
    ((*_GROUP, "new"), 1),
    ((*_ATTENTION, "block"), "attention.7"),
    ((*_ATTENTION, "block"), "attention.1"),
    ((*_ATTENTION, "block"), "attention"),
    ((*_ATTENTION, "block"), "attention.-0"),
    ((*_ATTENTION, "block"), "other.0"),
    ((*_ATTENTION, "new"), 1),
    ((*_ATTENTION, "statistics", "status"), 3),
    ((*_ATTENTION, "statistics", "condition"), "high"),
    ((*_ATTENTION, "statistics", "iterations"), 0.5),
    ((*_ATTENTION, "statistics", "new"), 0.5),
    ((*_ATTENTION, "statistics", "sweeps"), 1),
    ((*_UNITS, "group", "units"), 10**18),
    ((*_UNITS, "group", "experts"), 10**18),
    ((*_UNITS, "statistics"), None),
    (_UNITS, _STREAM),
    (_UNITS, {**_STREAM, "group": {"width": 10**9, "basis": "linear", "norms": 10**9}}),
    (("provenance",), {"method": 3}),
    (("moves",), {}),
]


def edit(metadata: dict[str, str], path: tuple, value: object) -> None:
    """Change one entry of the header."""
    header = entry = json.loads(metadata["isobasin"])
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    metadata["isobasin"] = json.dumps(header)


def damaged(kind: str, path) -> None:
    if kind == "missing":
        return
    if kind == "no safetensors":
        path.write_bytes(b"hello")
        return
    if kind == "pipe":
        os.mkfifo(path)
        return
    if kind == "folder":
        (path / ALIGNMENT).mkdir(parents=True)
        return
    with_feedforward().save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
        return
    changes = {
        "tensor gone": lambda: tensors.pop("attention.0.inner"),
        "no permutation": lambda: tensors["attention.0.outer"].copy_(torch.tensor([0, 0, 1])),
        "not finite": lambda: tensors["attention.1.query_key.matrix"].fill_(float("nan")),
        "another shape": lambda: tensors.update({"attention.0.key_shift": torch.zeros(3, 3, dtype=torch.float64)}),
        "another type": lambda: tensors.update({"attention.0.key_shift": torch.zeros(3, 2)}),
        "unit gone": lambda: tensors.pop("feedforward.1.permutation"),
        "no unit permutation": lambda: tensors["feedforward.1.permutation"].fill_(0),
        "a scale that the group lacks": lambda: tensors["feedforward.0.gate"].neg_(),
        "scaled though none is free": lambda: tensors["feedforward.1.up"].mul_(2),
        "scale of nothing": lambda: tensors["feedforward.0.up"].zero_(),
        "no header": lambda: metadata.pop("isobasin"),
        "newer": lambda: metadata.update({"format": "3"}),
        "other header": lambda: metadata.update({"isobasin": json.dumps({"moves": 3})}),
        "deep header": lambda: metadata.update({"isobasin": "[" * 100_000}),
        "no inverse": lambda: tensors["attention.0.value_output.matrix"].zero_(),
        "barely an inverse": lambda: tensors["attention.0.value_output.matrix"][0, 0].mul_(0),
    }
    changes |= {
        str(path) + str(value)[:40]: lambda path=path, value=value: edit(metadata, path, value)
        for path, value in HEADERS
    }
    changes[kind]()
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "no safetensors",
        "truncated",
        "tensor gone",
        "no permutation",
        "not finite",
        "another shape",
        "another type",
        "unit gone",
        "no unit permutation",
        "a scale that the group lacks",
        "scaled though none is free",
        "scale of nothing",
        "no header",
        "newer",
        "other header",
        "deep header",
        "no inverse",
        "barely an inverse",
        "pipe",
        "folder",
        *(str(path) + str(value)[:40] for path, value in HEADERS),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(kind, tmp_path):
    path = tmp_path / "a.safetensors"
    damaged(kind, path)
    with pytest.raises(AlignmentError) as caught:
        Alignment.load(path)
    assert str(path) in str(caught.value)
    assert not re.search(r"\n|validation error|pydantic", str(caught.value))


def test_the_bytes_of_a_file_depend_on_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    alignment().save(path)
    header = path.read_bytes()[8:200]
    assert header.startswith(b'{"__metadata__":{"format":"2","isobasin":')
    write_tensors(tmp_path / "b", {"x": torch.ones(3)}, {"b": "1", "a": "2"})
    write_tensors(tmp_path / "c", {"x": torch.ones(3)}, {"a": "2", "b": "1"})
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_composition_refuses_another_architecture():
    made = alignment()
    for other, reason in (
        (replace(made, model_type="other"), "other"),
        (alignment(groups=GROUPS[:1]), "1"),
        (alignment(groups=GROUPS[::-1]), "layer 0"),
    ):
        with pytest.raises(AlignmentError, match=reason):
            made.compose(other)


def test_composition_compares_feedforward_where_both_have_it():
    made = with_feedforward()
    for units in (UNITS[:1], UNITS[::-1]):
        with pytest.raises(AlignmentError, match="layer"):
            made.compose(with_feedforward(units=units))
    for composed in (made.compose(alignment(1)), alignment(1).compose(made)):
        assert [layer.element for layer in composed.feedforward] == [layer.element for layer in made.feedforward]


def test_feedforward_is_told_beside_attention():
    made = with_feedforward()
    assert made.distance() == alignment().distance()
    plain = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert plain["feedforward"]["distance"] == {"before": pytest.approx(4 * 2**0.5), "after": pytest.approx(8**0.5)}
    assert plain["feedforward"]["layers"][0] == {
        "layer": 0,
        "units": 5,
        "moved_units": int((made.feedforward[0].element.permutation != torch.arange(5)).sum()),
        "distance_before": 4.0,
        "distance_after": 2.0,
        "status": "optimal",
    }
    assert "feedforward" not in alignment().to_json()
    assert "feed-forward 5.657 -> 2.828" in repr(made)
    assert repr(made.inverse()) == "Alignment(made-up, 2 layers, with feed-forward)"
    assert made._repr_html_().count("<tr>") == 6
    assert json.dumps(made.inverse().to_json(), allow_nan=False)


def test_json_and_notebook_show_every_layer():
    made = alignment()
    plain = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert [layer["layer"] for layer in plain["layers"]] == [0, 1]
    assert sorted(plain["layers"][0]["head_permutation"]) == list(range(6))
    assert plain["distance"] == {"before": pytest.approx(3 * 2**0.5), "after": pytest.approx(2**0.5)}
    assert "2 layers" in repr(made)
    assert made._repr_html_().count("<tr>") == 3
    assert json.dumps(made.inverse().to_json(), allow_nan=False)


# What format 1 called otherwise.
CALLED_NOW = {"groups": "kv_heads", "queries": "queries_per_kv"}


def assert_says(now: Any, then: Any) -> None:
    """All that a file said is still said; facts that it didn't know have come to it."""
    if not isinstance(then, dict):
        assert now == then
        return
    for name, fact in then.items():
        assert_says(now[CALLED_NOW.get(name, name)], fact)


# Written by the versions that had format 1, of small random models: by kinds of attention, units, experts and stream.
FORMAT_1 = sorted((Path(__file__).parent / "format_1").iterdir())


@pytest.mark.parametrize("path", FORMAT_1, ids=lambda path: path.stem)
def test_files_of_format_1_say_what_they_always_said(path, tmp_path):
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["isobasin"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
    assert "format" not in header
    found = Alignment.load(path)
    assert (found.model_type, found.provenance) == (header["model_type"], header["provenance"])
    old = [("residual", None, header["residual"])] if "residual" in header else []
    old += [("layers", entry["layer"], entry) for entry in header["layers"]]
    old += [("feedforward", entry["layer"], entry) for entry in header.get("feedforward", ())]
    assert len(old) == len(found.moves)
    read: set[str] = set()
    for move, (kind, layer, entry) in zip(found.moves, old, strict=True):
        assert layer is None or move.layer == layer
        facts, now = entry.get("group", entry), json.loads(json.dumps(asdict(move.group)))
        assert_says(now, {name: facts[name] for name in facts if name != "statistics"})
        assert move.figures() == entry["statistics"]
        beginning = kind if layer is None else f"{kind}.{move.block.partition('.')[2]}"
        for name, part in move.element.tensors().items():
            stored = tensors.get(f"{beginning}.{name}")
            assert part.numel() == 0 if stored is None else torch.equal(as_stored(part), stored), name
            read.add(f"{beginning}.{name}")
    assert all(name in read or not tensor.numel() for name, tensor in tensors.items())
    found.save(tmp_path / "now.safetensors")
    again = Alignment.load(tmp_path / "now.safetensors")
    for one, other in zip(found.moves, again.moves, strict=True):
        assert (one.block, one.group, one.figures()) == (other.block, other.group, other.figures())
        for name, part in one.element.tensors().items():
            assert torch.equal(part, other.element.tensors()[name]), name


def as_stored(part: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(part) if part.is_complex() else part


def test_an_alignment_can_be_applied_wherever_it_comes_from_and_brings_no_model_classes():
    """The verb lies above alignments and adds itself to them: also where nothing but the class was asked for.

    Importing our own model classes would take seconds: whoever needs them registers them.
    """
    asked = "import sys, isobasin; method = isobasin.Alignment.apply; assert method is isobasin.apply"
    without = "import isobasin.verbs.align; assert 'isobasin.models' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{asked}; {without}"], check=True)
