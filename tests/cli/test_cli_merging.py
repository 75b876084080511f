"""Commands that make new models of several: interpolate, merge, transport."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_program import parsed
from typer.testing import Result

from isobasin.alignment import Alignment

Cli = Callable[..., Result]


def test_interpolate_is_the_straight_line(cli: Cli, models: dict[str, Path], tmp_path: Path):
    out = tmp_path / "quarter"
    found = parsed(cli("interpolate", models["a"], models["b"], "-t", "0.25", "-o", out, "--json"))
    assert found == {"output": str(out), "verified": None, "t": 0.25}
    a, b, point = (load_file(folder / "model.safetensors") for folder in (models["a"], models["b"], out))
    assert all((point[name] - (0.75 * a[name] + 0.25 * b[name])).abs().max() < 1e-6 for name in a)
    human = cli("interpolate", models["a"], models["b"], "-o", tmp_path / "half")
    assert human.stdout == f"Written to {tmp_path / 'half'}\n"


def test_transport_carries_a_fine_tune(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    """From "a" to a scrambled copy of it; "b" stands for the fine-tune."""
    out, ends = tmp_path / "out", (models["a"], models["b"], scrambled)
    found = parsed(cli("transport", *ends, "--scope", "attention", "-o", out, "--json"))
    assert found.keys() == {
        *("output", "alignment", "verified", "scale", "losses", "change", "new", "checked"),
        *("verified_moves", "distance_to_target"),
    }
    assert found["distance_to_target"] < 1e-3 < found["change"]
    assert parsed(cli("verify", models["b"], out, "--json"))["equal"]
    human = cli("transport", *ends, "--alignment", scrambled, "--scale", "-0.5", "--no-verify", "-o", tmp_path / "back")
    assert human.exit_code == 0
    assert "Scale -0.5: a change of size" in human.stdout
    assert "The moves weren't verified." in human.stdout
    folders = (scrambled, out, tmp_path / "back")
    tensors = [load_file(folder / "model.safetensors")["transformer.wte.weight"] for folder in folders]
    assert torch.allclose(tensors[2] - tensors[0], -0.5 * (tensors[1] - tensors[0]), atol=1e-6)


def test_transport_by_data_says_what_helps(cli: Cli, models: dict[str, Path], tmp_path: Path):
    (tmp_path / "held-out.txt").write_text("abcd\n" * 60)
    (tmp_path / "characters.json").write_text(json.dumps(list("\nabcd")))
    data = ("--data", tmp_path / "held-out.txt", "--tokenizer", tmp_path / "characters.json", "--length", "16")
    same = cli("transport", models["llama"], models["llama"], models["llama"], *data, "-o", tmp_path / "same")
    assert same.exit_code == 0, same.stderr
    assert "No scale helps on these data: the result is TARGET as it is." in same.stdout
    weighed = ("--objective", "activations", "--scope", "block", *data, "--json")
    found = parsed(cli("transport", models["llama"], models["llama"], models["llama"], *weighed, "-o", tmp_path / "w"))
    assert list(found["losses"].values()) == [found["losses"]["0.0"]] * len(found["losses"])
    assert found["alignment"]["provenance"]["objective"] == "activations"


def test_transport_follows_both_moves_of_refine(cli: Cli, models: dict[str, Path], tmp_path: Path):
    """Where the target was moved as well, its move is taken back: the two as one bring the base to the target."""
    target, base = models["a"], models["b"]
    refined = tmp_path / "refined"
    assert cli("scramble", base, "-o", refined).exit_code == 0
    assert cli("scramble", target, "-o", refined / "reference", "--seed", "3").exit_code == 0
    out = tmp_path / "out"
    assert cli("transport", base, base, target, "--alignment", refined, "-o", out, "--no-verify").exit_code == 0
    expected = Alignment.load(refined / "reference").inverse().compose(Alignment.load(refined))
    found = parsed(cli("transport", base, base, target, "--alignment", refined, "-o", out, "--json", "--force"))
    assert [layer["head_permutation"] for layer in found["alignment"]["layers"]] == [
        [int(i) for i in move.element.head_permutation()] for move in expected.layers
    ]


def test_merge_of_a_scrambled_copy_is_the_model(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    before = load_file(models["a"] / "model.safetensors")
    for space in ("weights", "circuit"):
        out = tmp_path / space
        found = parsed(cli("merge", models["a"], scrambled, "-t", "0.3", "--space", space, "-o", out, "--json"))
        keys = {"output", "space", "weights", "alignments", "distances", "truncation", "checked", "relations", "losses"}
        assert found.keys() == {*keys, "verified"}
        assert [relation["related"] for relation in found["relations"]] == [True]
        assert (found["output"], found["space"], found["weights"]) == (str(out), space, [0.7, 0.3])
        assert [layer["status"] for layer in found["alignments"][0]["layers"]] == ["exact", "exact"]
        assert [layer["layer"] for layer in found["truncation"]] == ([0, 1] if space == "circuit" else [])
        assert all(layer["query_key"] + layer["value_output"] < 1e-5 for layer in found["truncation"])
        assert found["checked"].startswith("whole model (GPT2LMHeadModel) in float64")
        after = load_file(out / "model.safetensors")
        assert all((before[name] - after[name]).abs().max() < 1e-4 for name in before)
        assert all(tensor.dtype == before[name].dtype for name, tensor in after.items())


def test_merge_of_three_takes_a_weight_for_each(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    three = models["a"], scrambled, models["b"], "--force-unrelated"
    comma = parsed(cli("merge", *three, "-t", "2,1,1", "-o", tmp_path / "comma", "--scope", "block", "--json"))
    again = ("-t", "0.5", "-t", "0.25", "-t", "0.25")
    parsed(cli("merge", *three, *again, "-o", tmp_path / "repeated", "--scope", "block", "--json", "--no-verify"))
    assert comma["weights"] == [0.5, 0.25, 0.25]
    assert len(comma["alignments"]) == 2
    assert len(comma["distances"]) >= 2
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("comma", "repeated"))
    assert all((one[name] == other[name]).all() for name in one)
    wte = "transformer.wte.weight"
    a, b = (load_file(models[name] / "model.safetensors")[wte] for name in "ab")
    assert (one[wte] - 0.75 * a - 0.25 * b).abs().max() < 1e-6


def test_merge_in_words(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    out = tmp_path / "out"
    shown = cli("merge", models["a"], models["b"], "--space", "circuit", "--force-unrelated", "-o", out).stdout
    assert " ".join(shown.split()).startswith(f"{models['b']}: unrelated: neither attention circuits (scores ")
    assert "\nDistance of what was matched: " in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["layer", "Q-K", "V-O"] in rows
    assert all(any(row[:1] == [layer] and row[-1].endswith("%") for row in rows) for layer in "01")
    assert "It loads, and its outputs are finite" in shown
    assert "It computes something new: no more can be verified." in shown
    assert shown.endswith(f"Written to {out}\n")
    how = "--force", "--force-unrelated", "--no-verify"
    more = cli("merge", models["a"], scrambled, models["b"], "-o", out, *how).stdout
    start = f"{scrambled}: related: the circuits of all attention blocks correlate ("
    assert " ".join(more.split()).startswith(start)
    assert "\nDistance to the common centre: " in more
    assert "Not run.\n" in more
