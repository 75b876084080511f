"""`isobasin barrier`: real commands on tiny models."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_program import Forked, at_call, forked, launched
from typer.testing import CliRunner, Result

from isobasin.cli.program import app
from isobasin.records import sealing

Cli = Callable[..., Result]
_LETTERS = "abcdefghijklmnopqr \n"
_METHODS = ["none", "heads", "paper", "gauss-newton"]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a text and its characters."""
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    (folder / "test.txt").write_text("".join(draw.choices(_LETTERS, k=1500)))
    (folder / "characters.json").write_text(json.dumps({letter: i for i, letter in enumerate(_LETTERS)}))
    return ["--data", str(folder / "test.txt"), "--tokenizer", str(folder / "characters.json"), "--length", "16"]


def records(folder: Path) -> list[dict[str, Any]]:
    """All lines without what time they took, which their checksums cover too."""
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    times = ("seconds", "interpolation_seconds", "overhead", "checksum")
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


def test_all_pairs_are_measured_and_shown(
    cli: Cli, models: dict[str, Path], scrambled: Path, text: list[str], tmp_path: Path
):
    out = tmp_path / "out"
    chosen = [models["a"], scrambled, models["b"]]
    result = cli("barrier", *chosen, *text, "-o", out, "--points", 3)
    assert result.exit_code == 0, result.stderr
    assert all(
        part in result.stdout for part in ("naive", "heads", "published", "Gauss-Newton", "causal-lm", "report.html")
    )
    names = ("records.jsonl", "points.csv", "curves.csv", "barriers.png", "barriers.svg", "report.html")
    assert all((out / name).stat().st_size > 500 for name in names)
    with (out / "points.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * 4 * 3
    page = (out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page.replace("https://www.w3.org", "")
    again = cli("barrier", *chosen, *text, "-o", out, "--points", 3, "--json")
    found = json.loads(again.stdout)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert {(tuple(c["pair"]), c["method"]) for c in found["curves"]} == {(p, m) for p in pairs for m in _METHODS}
    ours = next(c for c in found["curves"] if (c["pair"], c["method"]) == ([0, 1], "gauss-newton"))
    assert ours["barrier"] == pytest.approx(0, abs=1e-4)


def test_what_was_moved_before_is_in_the_same_report(
    cli: Cli, models: dict[str, Path], scrambled: Path, text: list[str], tmp_path: Path
):
    given, out = tmp_path / "moved back", tmp_path / "out"
    assert cli("align", models["a"], scrambled, "-o", given).exit_code == 0
    start = "barrier", models["a"], scrambled, *text, "--points", 3, "--method", "none", "--aligned", given, "-o", out
    found = json.loads(cli(*start, "--json").stdout)
    assert [(one["method"], one["how"]) for one in found["run"]["aligned"]] == [("moved back", "gauss-newton")]
    barriers = {curve["method"]: curve["barrier"] for curve in found["curves"]}
    assert barriers["moved back"] == pytest.approx(0, abs=1e-4)
    again = cli(*start)
    assert "moved back" in again.stdout
    assert "Gauss-Newton: moved back" in (out / "report.html").read_text()
    wrong = cli("barrier", models["a"], models["b"], *start[3:-1], tmp_path / "wrong")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "moved back: doesn't compute what" in wrong.stderr
    assert not (tmp_path / "wrong").exists()


def test_tied_and_untied_results_are_in_one_report(cli: Cli, models: dict[str, Path], text: list[str], tmp_path: Path):
    pair, given = (models["a"], models["b"]), [tmp_path / "tied", tmp_path / "untied"]
    for out, more in zip(given, ([], ["--untie"]), strict=True):
        assert cli("align", *pair, "--scope", "model", "--no-verify", "-o", out, *more).exit_code == 0
    start = "barrier", *pair, *text, "--points", 2, "--method", "none", "--aligned", given[0], "--aligned", given[1]
    runs = {"alone": start[:-2], "both": start, "asked": (*start, "--untie")}
    found: dict[str, dict[str, Any]] = {}
    for name, arguments in runs.items():
        result = cli(*arguments, "-o", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        found[name] = {x["method"]: x for x in records(tmp_path / name) if x["kind"] == "alignment"}
    assert found["alone"]["tied"] == found["both"]["tied"] == found["asked"]["tied"]
    assert found["both"]["untied"] == found["asked"]["untied"]
    assert found["both"]["tied"]["stream"] != found["both"]["untied"]["stream"]


@pytest.mark.parametrize("start", [forked, pytest.param(launched, marks=pytest.mark.long)])
def test_two_processes_measure_what_one_does(
    start: Callable[[list[str]], str], cli: Cli, models: dict[str, Path], text: list[str], tmp_path: Path
):
    sizes = ["--points", 3, "--batch-size", 9, "--method", "none", "--method", "heads"]
    arguments = ["barrier", *map(str, [models["a"], models["b"], *text, *sizes, "-o"])]
    one = cli(*arguments, tmp_path / "one")
    assert one.exit_code == 0, one.stderr
    assert start([*arguments, str(tmp_path / "two")]).count("Report:") == 1
    assert records(tmp_path / "two") == records(tmp_path / "one")


@pytest.mark.parametrize("start", [forked, pytest.param(launched, marks=pytest.mark.long)])
def test_two_processes_learn_what_one_does(
    start: Callable[[list[str]], str], cli: Cli, models: dict[str, Path], text: list[str], tmp_path: Path
):
    """Batches and held-out ones of odd sizes, so that the shares aren't alike."""
    sizes = ["--steps", 4, "--batch-size", 5, "--minutes", 0]
    arguments = ["refine", *map(str, [models["a"], models["b"], *text, *sizes, "-o"])]
    one = cli(*arguments, tmp_path / "one")
    assert one.exit_code == 0, one.stderr
    assert start([*arguments, str(tmp_path / "two")]).count("Model written to") == 1
    assert not list(tmp_path.glob(".*unfinished"))
    for part in (".", "reference"):
        expected, found = (load_file(tmp_path / name / part / "model.safetensors") for name in ("one", "two"))
        stays = load_file(models["a" if part == "reference" else "b"] / "model.safetensors")
        for name, tensor in expected.items():
            # Muon's steps are in bfloat16.
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-3)
        assert max(float((found[name] - stays[name]).abs().max()) for name in found) > 0.02


def test_an_interrupted_run_is_gone_on_with(cli: Cli, models: dict[str, Path], text: list[str], tmp_path: Path):
    out = tmp_path / "out"
    arguments = ["barrier", models["a"], models["b"], *text, "--points", 12, "--method", "none", "-o", out]
    # While the sixth record is written.
    program = Forked(*arguments, first=lambda: at_call(sealing, "_sum", signal.SIGINT, 6))
    code, said, errors = program.end()
    assert (code, said, errors.splitlines()[-1]) == (130, "", "error: interrupted")
    before = (out / "records.jsonl").read_bytes()
    assert before.count(b"\n") == 5
    done = cli(*arguments)
    assert done.exit_code == 0, done.stderr
    assert (out / "records.jsonl").read_bytes().startswith(before)
    points = [line["t"] for line in records(out) if line["kind"] == "point"]
    assert len(points) == len(set(points)) == 12


def test_a_second_process_is_refused(cli: Cli, models: dict[str, Path], text: list[str], tmp_path: Path):
    out = tmp_path / "out"
    arguments = ["barrier", models["a"], models["b"], *text, "--points", 6, "--method", "none", "-o", out]
    program = Forked(*arguments, first=lambda: at_call(sealing, "_sum", signal.SIGSTOP, 3))
    program.wait_until_stopped()
    second = cli(*arguments)
    os.kill(program.pid, signal.SIGKILL)
    assert program.end()[0] == -signal.SIGKILL
    assert (second.exit_code, second.stdout) == (2, "")
    problem = "another process is writing into it: wait for it, or name another folder"
    assert second.stderr == f"error: {out}: {problem}\n"
    done = cli(*arguments)
    assert done.exit_code == 0, done.stderr
    assert not (out / ".lock").exists()


@pytest.mark.parametrize(
    ("more", "naming"),
    [
        (["--points", "1"], ["points is 1"]),
        (["--batch-size", "0"], ["batch size is 0"]),
        (["--columns", "text"], ["ROLE=COLUMN"]),
        (["--columns", "text=nothing"], ["nothing"]),
        (["--split", "validation"], ["validation"]),
        (["--method", "magic"], ["magic"]),
        (["--length", "41"], ["41", "40"]),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(
    cli: Cli, models: dict[str, Path], text: list[str], tmp_path: Path, more: list[str], naming: list[str]
):
    result = cli("barrier", models["a"], models["b"], *text, *more, "-o", tmp_path / "out")
    assert result.exit_code == 2, result.stdout
    assert result.stderr.count("\n") == 1
    assert all(name in result.stderr for name in naming), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_wrong_inputs_are_named_and_nothing_is_written(
    cli: Cli, models: dict[str, Path], text: list[str], tmp_path: Path
):
    a, out = models["a"], tmp_path / "out"
    for arguments, naming in (
        ([a, *text], "at least two"),
        ([a, models["wide"], *text], "has shape"),
        ([a, models["two-heads"], *text, "--method", "none"], "n_head"),
        ([a, tmp_path / "nowhere", *text], "nowhere"),
        ([a, models["b"], "--data", tmp_path / "nothing.txt", *text[2:]], "nothing.txt"),
        ([a, models["b"], *text[:2]], "--tokenizer"),
    ):
        result = cli("barrier", *arguments, "-o", out)
        assert result.exit_code == 2, result.stdout
        assert result.stderr.count("\n") == 1
        assert naming in result.stderr
        assert list(tmp_path.iterdir()) == []
    inside = cli("barrier", a, models["b"], *text, "-o", a / "out")
    assert inside.exit_code == 2
    assert not (a / "out").exists()


def test_another_runs_records_are_kept(cli: Cli, models: dict[str, Path], text: list[str], tmp_path: Path):
    start = "barrier", models["a"], models["b"], *text, "-o", tmp_path, "--method", "none", "--points"
    assert cli(*start, 2).exit_code == 0
    before = (tmp_path / "records.jsonl").read_bytes()
    refused = cli(*start, 3)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert cli(*start, 3, "--force").exit_code == 0
    assert (tmp_path / "records.jsonl").read_bytes() != before


def test_merge_says_the_losses_of_models_and_result(cli: Cli, models: dict[str, Path], text: list[str], tmp_path: Path):
    merge = "merge", models["a"], models["b"], *text, "--force-unrelated", "--no-verify"
    found = json.loads(cli(*merge, "-o", tmp_path / "json", "--json").stdout)
    assert len(found["losses"]) == 3
    shown = " ".join(cli(*merge, "-o", tmp_path / "out").stdout.split())
    one, other, result = (f"{loss:.4f}" for loss in found["losses"])
    assert f"Loss on the data: {one} ({models['a']}), {other} ({models['b']}); of the result {result}" in shown


CODE = "open({marker!r}, 'w').write('ran')\nfrom transformers import GPT2Config as Own, GPT2LMHeadModel as OwnModel\n"


@pytest.mark.parametrize("known", [True, False], ids=["known type", "unknown type"])
@pytest.mark.parametrize("verb", ["barrier", "refine", "align"])
def test_code_of_a_checkpoint_is_not_run_even_for_a_yes(
    verb: str, known: bool, models: dict[str, Path], text: list[str], tmp_path: Path
):
    folders = [shutil.copytree(models[name], tmp_path / name) for name in "ab"]
    for folder in folders:
        content = json.loads((folder / "config.json").read_text())
        content["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
        content |= {} if known else {"model_type": "its_own"}
        (folder / "config.json").write_text(json.dumps(content))
        (folder / "own.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    more = {
        "barrier": ["--method", "none", "--points", "2"],
        "refine": ["--steps", "1", "--no-verify", "--max-examples", "8"],
        "align": ["--scope", "model", "--no-verify"],
    }
    arguments = [verb, *map(str, folders), *text, *more[verb], "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, input="y\n" * 9)
    assert not (tmp_path / "ran").exists()
    assert result.exit_code == (0 if known else 2), result.stderr
    assert "y/N" not in result.output
    if not known:
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_an_entry_that_tells_loaders_what_to_do_is_nothing(
    cli: Cli, models: dict[str, Path], text: list[str], tmp_path: Path
):
    folder = tmp_path / "a"
    shutil.copytree(models["a"], folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": None, "tokenizer_class": [1]}))
    result = cli("barrier", folder, models["b"], *text, "--method", "none", "--points", 2, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("entry", [{"num_labels": 10**8}, {"n_layer": 10**7}, {"n_embd": 10**9}], ids=str)
def test_absurd_sizes_are_refused_before_anything_is_built(
    cli: Cli,
    models: dict[str, Path],
    text: list[str],
    copied: Callable[..., Path],
    tmp_path: Path,
    entry: dict[str, int],
):
    folder = copied("a")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    result = cli("barrier", folder, models["b"], *text, "--method", "none", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"config.json has {next(iter(entry))}" in result.stderr
    assert str(folder) in result.stderr


@pytest.mark.parametrize("verb", [("refine",), ("align",), ("align", "--objective", "activations")], ids=str)
def test_a_task_that_the_models_are_not_for_names_the_models(
    cli: Cli, models: dict[str, Path], tmp_path: Path, verb: tuple[str, ...]
):
    """A copy that is loaded instead is named as what it stands for."""
    (tmp_path / "rows.csv").write_text("text,label\n" + "abc,0\ncab,1\n" * 8)
    (tmp_path / "characters.json").write_text(json.dumps({letter: i for i, letter in enumerate(_LETTERS)}))
    folder = tmp_path / "a"
    shutil.copytree(models["a"], folder)
    config = json.loads((folder / "config.json").read_text()) | {"pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    data = ["--data", tmp_path / "rows.csv", "--tokenizer", tmp_path / "characters.json"]
    more = [*data, "--task", "text-classification", "--scope", "model", "-o", tmp_path / "out"]
    result = cli(*verb, folder, folder, *more)
    assert result.exit_code == 2
    assert f"{folder}: lacks 1 weights that text-classification needs" in result.stderr
