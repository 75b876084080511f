"""The program: what it says of two models, whether they are one, where they come from, and what went wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_program import edit_tensors, parsed
from typer.testing import Result

import isobasin
from isobasin.testing.planted import PLANTS, plant

Cli = Callable[..., Result]


def test_verify_answers_with_its_exit_code(cli: Cli, models: dict[str, Path], scrambled: Path):
    equal, unequal = cli("verify", models["a"], scrambled, "--json"), cli("verify", models["a"], models["b"], "--json")
    assert (equal.exit_code, unequal.exit_code) == (0, 1)
    assert parsed(equal)["equal"] is True
    assert parsed(equal).keys() >= {"max_abs", "max_rel", "equal"}
    assert parsed(unequal)["equal"] is False
    assert parsed(unequal)["max_rel"] > 0.1
    assert cli("verify", models["a"], scrambled, "--tolerance", "1e-15", "--seed", "3").exit_code == 1


def test_verify_in_words(cli: Cli, models: dict[str, Path], scrambled: Path):
    assert cli("verify", models["a"], scrambled).stdout.startswith("Equal: outputs differ by")
    assert cli("verify", models["a"], models["b"]).stdout.startswith("Not equal: outputs differ by")


def test_equivalent_answers_with_its_exit_code(cli: Cli, models: dict[str, Path], scrambled: Path):
    yes, no = (cli("equivalent", models["a"], other, "--json") for other in (scrambled, models["b"]))
    assert (yes.exit_code, no.exit_code) == (0, 1)
    assert parsed(yes)["equivalent"] is True
    assert parsed(no)["equivalent"] is False
    assert parsed(no)["other_tensors"]
    assert [layer["layer"] for layer in parsed(yes)["layers"]] == [0, 1]


def test_equivalent_in_words(cli: Cli, models: dict[str, Path], scrambled: Path):
    assert (
        "Equivalent: a move of the attention weights carries B to A."
        in cli("equivalent", models["a"], scrambled).stdout
    )
    no = cli("equivalent", models["a"], models["b"]).stdout
    assert "Outside attention, tensors that differ: transformer.h.0.ln_1.bias" in no
    assert "Not equivalent: attention in layers 0, 1;" in no


def test_equivalent_says_where_the_theorem_fails(cli: Cli, models: dict[str, Path], copied: Callable[..., Path]):
    folder = copied("a")

    def duplicate(tensors: dict[str, Any]) -> None:
        fused = tensors["transformer.h.1.attn.c_attn.weight"]
        bias = tensors["transformer.h.1.attn.c_attn.bias"]
        for start in (0, 16):  # queries and keys of heads of width 4: head 2 becomes head 0
            fused[:, start + 8 : start + 12] = fused[:, start : start + 4]
            bias[start + 8 : start + 12] = bias[start : start + 4]
        tensors["transformer.h.0.attn.c_attn.weight"][:, 4:5] = 0  # a query feature of head 1

    edit_tensors(folder, duplicate)
    result = cli("equivalent", folder, models["a"])
    assert result.exit_code == 1
    assert "Layer 0: query is rank-deficient in head 1." in result.stdout
    assert "Layer 1: duplicate heads, with equal attention scores: 0 and 2." in result.stdout
    assert "The theorem's conditions fail" in result.stdout
    layers = parsed(cli("equivalent", folder, models["a"], "--json"))["layers"]
    assert layers[0]["rank_deficient"] == [["query", 1]]
    assert layers[1]["duplicate_heads"] == [[0, 2]]


def test_diagnose_names_a_defect_and_mends_it(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    a, b, out = models["llama"], tmp_path / "b", tmp_path / "out"
    assert plant(a, b, (PLANTS["half and interleaved"], PLANTS["epsilon"]), 0)
    no = cli("diagnose", a, b, "--json")
    found = parsed(no)
    assert no.exit_code == 1
    assert [one["defect"] for one in found["findings"]] == ["rotary order", "configuration"]
    assert (found["judgement"], found["sound"], found["output"]) == ("defects", False, None)
    told = cli("diagnose", a, b)
    assert told.exit_code == 1
    assert "features of query, key lie in interleaved order, not half" in " ".join(told.stdout.split())
    mended = parsed(cli("diagnose", a, b, "--fix", "-o", out, "--json"))
    assert mended["verified"]["equal"]
    assert mended["output"] == str(out)
    assert parsed(cli("diagnose", a, out, "--json"))["judgement"] == "exact"
    assert parsed(cli("diagnose", models["a"], scrambled, "--json"))["judgement"] == "equivalent"


def test_check_lists_conflicts_with_its_exit_code(cli: Cli, models: dict[str, Path], scrambled: Path):
    clear = cli("check", models["a"], scrambled, "--json")
    assert clear.exit_code == 0
    found = json.loads(clear.stdout)
    assert found["clear"]
    assert [one["scope"] for one in found["pairs"][0]["scopes"]] == ["attention", "block", "model"]
    told = cli("check", models["a"], models["b"]).stdout
    assert "Nothing is in the way." in told
    assert "Weights were not read" in told  # a merge of unrelated ones is refused
    other = cli("check", models["a"], models["two-heads"])
    assert other.exit_code == 1
    assert "configuration: n_head is" in other.stdout
    assert cli("check", models["a"], models["a"].parent / "nothing").exit_code == 2
    assert cli("check", models["a"]).exit_code == 2


def test_compare_names_a_scrambled_copy_and_a_stranger(cli: Cli, models: dict[str, Path], scrambled: Path):
    assert parsed(cli("compare", models["a"], scrambled, "--json"))["verdict"] == "same function"
    shown = cli("compare", models["a"], models["b"])
    assert "B, given A: unrelated." in shown.stdout
    assert "feed-forward 1" in shown.stdout


def test_compare_says_that_weights_have_no_arrow(cli: Cli, models: dict[str, Path], tmp_path: Path):
    """An origin is called "fine-tuned" as well, given its fine-tune."""
    isobasin.interpolate(models["a"], models["b"], 0.1, tmp_path / "tuned")
    for pair in ((models["a"], tmp_path / "tuned"), (tmp_path / "tuned", models["a"])):
        shown = " ".join(cli("compare", *pair).stdout.split())
        assert "B, given A: fine-tuned from it. Which of the two was first" in shown
    assert "was first" not in cli("compare", models["a"], models["b"]).stdout


def test_blocks_taken_from_a_are_named(cli: Cli, models: dict[str, Path], tmp_path: Path):
    shutil.copytree(models["b"], tmp_path / "mixed")
    first, second = (load_file(models[name] / "model.safetensors") for name in "ab")
    taken = {name: x for name, x in first.items() if ".h.1.attn" in name}
    save_file({**second, **taken}, tmp_path / "mixed" / "model.safetensors", {"format": "pt"})
    shown = " ".join(cli("compare", models["a"], tmp_path / "mixed").stdout.split())
    assert "Blocks of A's are in it: attention 1. B, given A: unrelated but for some blocks." in shown


def test_fingerprint_shows_and_writes_what_scrambled_copies_share(
    cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path
):
    one, other = (parsed(cli("fingerprint", folder, "--json")) for folder in (models["a"], scrambled))
    assert one["model_type"] == "gpt2"
    assert one["attention.1.value_output"][0] == pytest.approx(other["attention.1.value_output"][0], rel=1e-4)
    shown = cli("fingerprint", models["a"], "-o", tmp_path / "kept.json")
    assert "feedforward.0.units" in shown.stdout
    assert json.loads((tmp_path / "kept.json").read_text()) == one
    assert cli("fingerprint", models["a"], "-o", tmp_path / "kept.json").exit_code == 2


def test_scan_lists_relatives_nearest_first(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for name, ending in (("a", "json"), ("b", "safetensors")):
        assert cli("fingerprint", models[name], "-o", kept / f"{name}.{ending}").exit_code == 0
    found = parsed(cli("scan", scrambled, kept, "--json"))
    assert [(Path(kin["name"]).name, kin["related"]) for kin in found["kin"]] == [
        ("a.json", True),
        ("b.safetensors", False),
    ]
    assert found["kin"][0]["invariants"] < 1e-3
    far = kept / ("deep" * 30)
    far.mkdir()
    (kept / "b.safetensors").rename(far / "b.safetensors")
    shown = cli("scan", kept / "a.json", far)
    assert "unrelated" in shown.stdout
    assert "0 of 1 related." in shown.stdout


def test_figures_of_relatives_are_whole_whatever_is_said_of_them(
    cli: Cli, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a copy is and what a file is called take more than a line."""
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "a-model.safetensors"
    cli("fingerprint", models["a"], "-o", file)
    shown = cli("scan", models["a"], file).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert all(figures in shown for figures in ("1.000", "1.00–1.00", "invariants of"))
