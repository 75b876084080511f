"""What every command does and prints when all is well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_program import edit_tensors, parsed
from typer.testing import Result

from isobasin.alignment import Alignment
from isobasin.architectures.registry import families
from isobasin.beside import ALIGNMENT
from isobasin.execution.cluster import Cluster
from isobasin.execution.local import Here, Processes
from isobasin.verbs.settings import chosen_device

Cli = Callable[..., Result]
LAYER_KEYS = {
    "layer",
    "head_permutation",
    "distance_before",
    "distance_after",
    "condition",
    "iterations",
    "status",
    "rounding",
}


def test_a_tied_head_is_said_and_taken_apart(cli: Cli, models: dict[str, Path], tmp_path: Path):
    pair = models["a"], models["b"]
    tied = cli("align", *pair, "--scope", "model", "-o", tmp_path / "tied")
    assert "its head is the embedding, which leaves the residual stream S_16: --untie" in tied.stderr
    assert "tie_word_embeddings" not in tied.stdout
    apart = cli("align", *pair, "--scope", "model", "--untie", "-o", tmp_path / "apart")
    assert not apart.stderr
    for result in (apart, cli("apply", tmp_path / "apart", models["b"], "-o", tmp_path / "again")):
        assert result.exit_code == 0
        shown = " ".join(result.stdout.split())
        assert "Tied tensors are stored by themselves: config.json has tie_word_embeddings false now." in shown
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "apart" / "model.safetensors"
    ).read_bytes()


def test_align_brings_a_scrambled_model_back(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    out = tmp_path / "out"
    result = cli("align", models["a"], scrambled, "-o", out, "--json")
    assert result.exit_code == 0
    found = parsed(result)
    assert found.keys() == {"output", "verified", "distance", "layers", "provenance"}
    assert found["output"] == str(out)
    assert found["verified"]["max_rel"] < 1e-5
    assert found["distance"]["after"] < 1e-4 * found["distance"]["before"]
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    assert all(layer.keys() == LAYER_KEYS and layer["status"] == "exact" for layer in found["layers"])
    before, after = (load_file(folder / "model.safetensors") for folder in (models["a"], out))
    assert all((before[name] - after[name]).abs().max() < 1e-4 for name in before)
    assert (out / ALIGNMENT).is_file()


def test_align_without_verification_says_so(cli: Cli, models: dict[str, Path], tmp_path: Path):
    found = parsed(cli("align", models["a"], models["b"], "-o", tmp_path / "out", "--json", "--no-verify"))
    assert found["verified"] is None
    human = cli("align", models["a"], models["b"], "-o", tmp_path / "out2", "--no-verify")
    assert "Not verified." in human.stdout


def test_align_prints_a_table_and_what_was_capped_and_rounded(cli: Cli, models: dict[str, Path], tmp_path: Path):
    out = tmp_path / "with [red]brackets[/red]"
    options = ("--max-condition", "1.5", "--dtype", "bfloat16")
    result = cli("align", models["a"], models["b"], "-o", out, *options)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "condition capped at 1.5; raise with --max-condition" in result.stdout
    assert "Layers 0, 1:" in result.stdout
    assert "Predicted rounding" in result.stdout
    assert "Verified: outputs differ by" in result.stdout
    assert f"Written to {out}\n" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert any(row[:1] == ["all"] and row[-1].endswith("%") for row in rows)
    assert load_file(out / "model.safetensors")["transformer.h.0.attn.c_attn.weight"].dtype.itemsize == 2


@pytest.mark.parametrize("options", [("--method", "paper"), ("--head-cost", "frobenius"), ("--head-cost", "centred")])
def test_align_takes_every_choice(cli: Cli, models: dict[str, Path], tmp_path: Path, options: tuple[str, str]):
    result = cli("align", models["a"], models["b"], "-o", tmp_path / "out", "--no-verify", "--json", *options)
    assert result.exit_code == 0, result.stderr
    assert parsed(result)["distance"]["after"] > 0


def test_apply_makes_the_same_move_on_a_sibling(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    out = tmp_path / "applied"
    found = parsed(cli("apply", scrambled / ALIGNMENT, models["a"], "-o", out, "--json"))
    assert found.keys() == {"output", "verified"}
    assert found["verified"]["equal"] is True
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, scrambled))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    human = cli("apply", scrambled, models["b"], "-o", tmp_path / "sibling", "--no-verify")
    assert human.stdout == f"Not verified.\nWritten to {tmp_path / 'sibling'}\n"


def test_scramble_depends_on_the_seed_alone(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    weights: list[Any] = []
    for name, seed in (("same", 4), ("other", 5)):
        found = parsed(cli("scramble", models["a"], "-o", tmp_path / name, "--seed", seed, "--json", "--no-verify"))
        assert found == {"output": str(tmp_path / name), "verified": None}
        weights.append(load_file(tmp_path / name / "model.safetensors")["transformer.h.0.attn.c_attn.weight"])
    first = load_file(scrambled / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
    assert (weights[0] == first).all()
    assert not (weights[1] == first).all()


def test_json_says_on_which_device(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    pair = models["a"], scrambled
    aligned = parsed(cli("align", *pair, "-o", tmp_path / "out", "--json"))
    found = [aligned["provenance"]["device"], aligned["verified"]["device"]]
    found += [parsed(cli(verb, *pair, "--json"))["device"] for verb in ("verify", "equivalent", "compare")]
    assert found == [chosen_device("auto")] * 5
    assert Alignment.load(tmp_path / "out").provenance["device"] == found[0]


def test_symmetry_counts(cli: Cli, models: dict[str, Path]):
    found = parsed(cli("symmetry", models["llama"], "--json"))
    assert found.keys() == {"layers", "dimension", "parameters", "feedforward"}
    # Two key/value heads of four features: (C*)^2 on queries and keys, GL(4) on values and outputs.
    expected = {"layer": 0, "group": "(QK (C*)^2 × VO GL(4))^2 ⋊ S_2 wr S_2", "dimension": 40, "parameters": 768}
    assert found["layers"][0] == expected
    assert found["dimension"] == 80
    human = cli("symmetry", models["llama"]).stdout
    assert f"Layers 0, 1: {expected['group']}" in human
    rows = [line.split() for line in human.splitlines()]
    assert ["all", "attention", "80", "1,536", "5.21%"] in rows
    # Three projections of 24 units of width 16; up and down trade one number for each unit.
    units = {"layer": 1, "group": "(R*)^24 ⋊ S_24", "dimension": 24, "parameters": 1152}
    assert found["feedforward"] == {"layers": [{**units, "layer": 0}, units], "dimension": 48}
    assert "Layers 0, 1, feed-forward: (R*)^24 ⋊ S_24" in human
    assert ["all", "feed-forward", "48", "2,304", "2.08%"] in rows
    assert any(row[:3] == ["whole", "model", "128"] for row in rows)


def test_symmetry_of_all_families(cli: Cli):
    found = {one["model_type"]: one for one in parsed(cli("symmetry", "--families", "--json"))["families"]}
    assert found.keys() == {family.model_type for family in families()}
    assert found["qwen3"] == {
        "model_type": "qwen3",
        "attention": ["(QK {±1}^(d_h/2) × VO GL(d_h))^g ⋊ S_(h/g) wr S_g × (R_{>0})^(d_h/2) × {±1}^(2d_h) (gains)"],
        "feedforward": ["(R*)^f ⋊ S_f"],
        "residual": "O(d); tied: {±1}^d ⋊ S_d",
        "not_moved": [],
    }
    assert found["mpt"]["not_moved"] == ["order of heads"]
    assert found["bart"]["not_moved"] == ["residual stream"]
    assert len(found["smollm3"]["attention"]) == 2
    rows = [line.split() for line in cli("symmetry", "--families").stdout.splitlines()]
    assert ["bloom", "(QK", "GL(d_h)"] in [row[:3] for row in rows]
    for arguments in ((), ("somewhere", "--families")):
        result = cli("symmetry", *arguments)
        assert result.exit_code == 2
        assert "give either MODEL or --families" in result.stderr


def test_feedforward_blocks_are_scrambled_aligned_and_recognised(cli: Cli, models: dict[str, Path], tmp_path: Path):
    original, scrambled, out = models["llama"], tmp_path / "scrambled", tmp_path / "out"
    moved = parsed(cli("scramble", original, "-o", scrambled, "--scope", "block", "--seed", "2", "--json"))
    assert moved["verified"]["equal"] is True
    before, between = (load_file(folder / "model.safetensors") for folder in (original, scrambled))
    name = "model.layers.1.mlp.up_proj.weight"
    assert (before[name] - between[name]).abs().max() > 0.1

    equivalent = cli("equivalent", original, scrambled, "--json")
    assert equivalent.exit_code == 0
    assert parsed(equivalent)["moved_feedforward"] == [0, 1]
    words = cli("equivalent", original, scrambled).stdout
    assert "Feed-forward blocks of layers 0, 1 are equal after a move of their units." in words
    assert "Equivalent: a move of the attention and feed-forward weights carries B to A." in words

    found = parsed(cli("align", original, scrambled, "-o", out, "--scope", "block", "--json"))
    assert found["feedforward"]["distance"]["after"] < 1e-5 * found["feedforward"]["distance"]["before"]
    assert [layer["status"] for layer in found["feedforward"]["layers"]] == ["exact", "exact"]
    assert all(layer["units"] == 24 >= layer["moved_units"] > 12 for layer in found["feedforward"]["layers"])
    after = load_file(out / "model.safetensors")
    assert all((before[name] - after[name]).abs().max() < 1e-4 for name in before)
    again = parsed(cli("apply", out, scrambled, "-o", tmp_path / "again", "--json"))
    assert again["verified"]["equal"] is True
    assert (load_file(tmp_path / "again" / "model.safetensors")[name] == after[name]).all()


def test_without_the_option_feedforward_blocks_stay(cli: Cli, models: dict[str, Path], tmp_path: Path):
    found = parsed(cli("align", models["a"], models["b"], "-o", tmp_path / "out", "--no-verify", "--json"))
    assert "feedforward" not in found
    before, after = (load_file(folder / "model.safetensors") for folder in (models["b"], tmp_path / "out"))
    assert all((before[name] == after[name]).all() for name in before if ".mlp." in name)


def test_align_prints_a_table_of_feedforward_blocks(cli: Cli, models: dict[str, Path], tmp_path: Path):
    shown = cli("align", models["a"], models["b"], "-o", tmp_path / "out", "--scope", "block", "--no-verify").stdout
    assert "Feed-forward weights: distance to the reference" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert sum(row[1:2] == ["64"] and row[-1:] == ["optimal"] for row in rows) == 2


def test_version(cli: Cli):
    from isobasin import __version__

    assert cli("--version").stdout == f"isobasin {__version__}\n"


def test_demo_passes_its_options_on(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[Path, bool, bool]] = []

    def run_demo(output: Path, *, quick: bool, force: bool, watching: Any) -> dict[str, Any]:
        calls.append((output, quick, force))
        undone = dict.fromkeys(("function_difference", "distance_before", "distance_after", "condition"), 0.5)
        scramble = {**undone, "heads": 1, "heads_restored": 1}
        none = {"recipe": {}, "models": [], "pairs": [], "plots": []}
        return {"output": str(output), **none, "scramble": scramble, "seconds": 1.5}

    monkeypatch.setattr("isobasin.demo.run_demo", run_demo)
    assert parsed(cli("demo", "-o", tmp_path, "--quick", "--json"))["output"] == str(tmp_path)
    assert parsed(cli("demo", "--force", "--json"))["seconds"] == 1.5
    assert calls == [(tmp_path, True, False), (Path("demo-output"), False, True)]


def test_canonicalize_gives_scrambled_copies_the_same_weights(
    cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path
):
    for name, source in (("one", models["a"]), ("other", scrambled)):
        found = parsed(cli("canonicalize", source, "-o", tmp_path / name, "--json"))
        assert found["output"] == str(tmp_path / name)
        assert found["verified"]["equal"]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert all((one[name] - other[name]).abs().max() < 1e-3 for name in one)


def test_canonicalize_says_what_rounding_decides(cli: Cli, copied: Callable[..., Path], tmp_path: Path):
    dead = copied("a")
    edit_tensors(dead, lambda tensors: tensors["transformer.h.1.attn.c_attn.weight"].zero_())
    result = cli("canonicalize", dead, "-o", tmp_path / "out", "--no-verify")
    assert "Rounding decides a part of the gauge" in result.stdout
    assert "Layer 1: attention is not unique: head order, rank" in result.stdout
    assert "in c_attn.weight, c_attn.bias, c_proj.weight." in " ".join(result.stdout.split())
    blocks = parsed(cli("canonicalize", dead, "-o", tmp_path / "again", "--no-verify", "--json"))["blocks"]
    assert blocks["attention.0"] == "canonical"
    assert blocks["attention.1"].startswith("not unique: head order")


def test_align_by_other_processes_gives_the_same_files(
    cli: Cli, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[object] = []

    def run(engine: object, *work: Any) -> None:
        asked.append(engine)
        Here().run(*work)

    for engine in (Processes, Cluster):
        monkeypatch.setattr(engine, "run", run)
    pair = (models["a"], models["b"], "--no-verify", "--threads", "1")
    here, there, far = (tmp_path / name for name in ("here", "there", "far"))
    cli("align", *pair, "-o", here)
    assert asked == []
    for out, options in ((there, ("--workers", "2")), (far, ("--engine", "ray", "--ray-address", "x:1"))):
        result = cli("align", *pair, "-o", out, *options)
        assert result.exit_code == 0, result.stderr
        for file in here.iterdir():
            assert (out / file.name).read_bytes() == file.read_bytes()
    gpus = int(chosen_device("auto") == "cuda")
    assert asked == [Processes(2, 1), Cluster(None, "x:1", threads=1, gpus=gpus)]


@pytest.mark.parametrize("command", ["align", "merge", "transport", "gauge"])
def test_how_data_are_read_without_data_is_refused(cli: Cli, models: dict[str, Path], tmp_path: Path, command: str):
    rounding = ("--for", "rtn4")
    several = {"gauge": (models["a"], *rounding), "transport": (models["a"], models["b"], models["a"])}
    given = several.get(command, (models["a"], models["b"]))
    for options in (("--split", "test"), ("--tokenizer", "x.json"), ("--length", 3), ("--skip-unknown",)):
        result = cli(command, *given, "-o", tmp_path / "out", *options)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {options[0]} says how data are read: give --data as well")
    assert not (tmp_path / "out").exists()


def test_engines_that_align_refuses(cli: Cli, models: dict[str, Path], tmp_path: Path):
    pair = (models["a"], models["b"], "-o", tmp_path / "out")
    for options, problem in (
        (("--scope", "model", "--engine", "ray"), "--scope model matches every block by what the others became"),
        (("--ray-address", "x:1"), "--ray-address goes with --engine ray"),
        (("--workers", "0"), "--workers"),
        (("--threads", "100000"), "threads"),
    ):
        result = cli("align", *pair, *options)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert problem in result.stderr
    assert not (tmp_path / "out").exists()
