"""Bad input and faults: one line on stderr that names the thing, exit code 2, and nothing left behind."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_program import edit_config, edit_tensors
from torch import Tensor
from typer.testing import Result

from isobasin.checkpoints import Checkpoint
from isobasin.cli import failures
from isobasin.text import printable

Cli = Callable[..., Result]
QKV = "transformer.h.1.attn.c_attn.weight"
MLP = "transformer.h.1.mlp.c_fc.weight"


def check_failed(result: Result, *naming: object, code: int = 2) -> None:
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    if result.stdout:  # with --json: the same line for machines
        error = json.loads(result.stdout)["error"]
        assert (f"error: {printable(error['message'])}\n", error["exit_code"]) == (result.stderr, code)
    assert "Traceback" not in result.stderr
    for name in naming:
        assert str(name) in result.stderr


@pytest.fixture
def refused(cli: Cli, models: dict[str, Path], tmp_path: Path) -> Callable[..., None]:
    """Check that `align a MODEL -o OUT` fails, names things, and leaves the folder of OUT as it was."""

    def check(model: object, *naming: object, options: tuple[str, ...] = ()) -> None:
        home = tmp_path / "outputs"
        home.mkdir(exist_ok=True)
        for extra in ((), ("--json",)):
            result = cli("align", models["a"], model, "-o", home / "out", *options, *extra)
            check_failed(result, *naming)
            assert list(home.iterdir()) == []

    return check


def poke(name: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[name].view(-1).__setitem__(7, value)


BROKEN_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], object], tuple[str, ...]]] = {
    "missing": (lambda t: t.pop(QKV), (f"tensor '{QKV}' is missing",)),
    "extra": (
        lambda t: t.update({"transformer.h.1.attn.gate.weight": torch.zeros(3)}),
        ("'transformer.h.1.attn.gate.weight' is unexpected",),
    ),
    "misshapen": (lambda t: t.update({QKV: t[QKV][:, :-1].clone()}), (QKV, "(16, 47)", "(16, 48)")),
    "nan": (poke(QKV, float("nan")), (QKV, "NaN or infinite")),
    "infinity": (poke(QKV, float("inf")), (QKV, "NaN or infinite")),
    "nan-elsewhere": (poke(MLP, float("nan")), (MLP, "NaN or infinite")),
    "quantised": (lambda t: t.update({QKV: t[QKV].to(torch.int8)}), (QKV, "int8")),
}


@pytest.mark.parametrize("kind", BROKEN_TENSORS)
def test_broken_tensors(kind: str, copied: Callable[..., Path], refused: Callable[..., None]):
    folder = copied()
    change, naming = BROKEN_TENSORS[kind]
    edit_tensors(folder, change)
    refused(folder, folder, *naming)


BROKEN_CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown type": ({"model_type": "gpt3"}, ("unknown model type 'gpt3'", "did you mean", "gpt2", "CONTRIBUTING.md")),
    "a type without a family": (
        {"model_type": "mt5", "is_encoder_decoder": True},
        ("no symmetries are known of model type 'mt5'", "isobasin symmetry --families", "CONTRIBUTING.md"),
    ),
    "no type": ({"model_type": None}, ("has no model_type",)),
    "cross-attention": ({"add_cross_attention": True}, ("add_cross_attention",)),
    "heads that don't divide": ({"n_head": 3}, ("n_head 3",)),
}


@pytest.mark.parametrize("kind", BROKEN_CONFIGS)
def test_broken_configs(kind: str, copied: Callable[..., Path], refused: Callable[..., None]):
    folder = copied()
    entries, naming = BROKEN_CONFIGS[kind]
    edit_config(folder, **entries)
    refused(folder, folder, *naming)


def test_config_missing_or_no_json(copied: Callable[..., Path], refused: Callable[..., None]):
    folder = copied()
    (folder / "config.json").write_text("{")
    refused(folder, folder / "config.json", "not valid JSON")
    (folder / "config.json").unlink()
    refused(folder, folder, "has no config.json")


@pytest.mark.parametrize(
    ("other", "naming"),
    [
        ("llama", ("gpt2", "llama")),
        ("wide", ("layer 0", "4 heads of 8 features")),
        ("two-heads", ("layer 0", "2 heads of 8 features")),
        ("deep", ("2 layers", "has 3")),
    ],
)
def test_different_architectures(
    other: str, naming: tuple[str, ...], models: dict[str, Path], refused: Callable[..., None]
):
    refused(models[other], *naming)


def test_missing_folders_and_files(copied: Callable[..., Path], refused: Callable[..., None], tmp_path: Path):
    refused(tmp_path / "nowhere", tmp_path / "nowhere", "no such folder")
    refused("owner/no-such-model", "owner/no-such-model", "hub can't be reached", "hf download")
    folder = copied()
    refused(folder / "model.safetensors", "not a folder")
    (folder / "model.safetensors").unlink()
    refused(folder, folder, "no weights found")


def test_truncated_and_corrupt_files(copied: Callable[..., Path], refused: Callable[..., None]):
    file = copied() / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[:-100], whole[:20], b"", b"\xff" * 100):
        file.write_bytes(content)
        refused(file.parent, file, "truncated or not a safetensors file")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(file.parent, file, "git lfs pull")


def _index(folder: Path, weight_map: dict[str, str]) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_wrong_index(copied: Callable[..., Path], refused: Callable[..., None]):
    folder = copied()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "shard.safetensors", {"format": "pt"})
    right = dict.fromkeys(tensors, "shard.safetensors")
    refused_index = _index(folder, right | {QKV: "lost.safetensors"})
    refused(folder, refused_index, "lost.safetensors", "missing")
    _index(folder, right | {"ghost": "shard.safetensors"})
    refused(folder, "'ghost'", "shard.safetensors")
    _index(folder, {name: file for name, file in right.items() if name != QKV})
    refused(folder, QKV, "not in the index")
    _index(folder, right | {QKV: "../shard.safetensors"})
    refused(folder, "only files beside the index are read")


def _pickled(folder: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def test_pickles_need_permission(
    cli: Cli, models: dict[str, Path], copied: Callable[..., Path], refused: Callable[..., None], tmp_path: Path
):
    file = _pickled(copied("a"))
    refused(file.parent, file, "pickled weights", "--allow-pickle")
    allowed = cli("align", models["a"], file.parent, "-o", tmp_path / "out", "--allow-pickle", "--json")
    assert allowed.exit_code == 0, allowed.stderr
    assert json.loads(allowed.stdout)["distance"]["after"] < 1e-4
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_pickled_code_is_never_run(copied: Callable[..., Path], refused: Callable[..., None], tmp_path: Path):
    file = _pickled(copied())
    torch.save({"weight": Path(tmp_path)}, file)
    refused(file.parent, file, "plain tensors", options=("--allow-pickle",))


def test_an_existing_output_is_kept_without_force(cli: Cli, models: dict[str, Path], tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("kept")
    arguments = ("align", models["a"], models["b"], "-o", out, "--no-verify")
    check_failed(cli(*arguments), out, "--force")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (out / "precious.txt").read_text() == "kept"
    assert cli(*arguments, "--force").exit_code == 0
    assert not (out / "precious.txt").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    (out / "precious.txt").write_text("kept")
    check_failed(cli("merge", models["a"], models["b"], "-o", out), out, "--force")
    assert (out / "precious.txt").read_text() == "kept"
    file = tmp_path / "file"
    file.write_text("")
    check_failed(cli("scramble", models["a"], "-o", file), file, "is a file")


def test_an_output_apart_from_the_inputs(cli: Cli, models: dict[str, Path], copied: Callable[..., Path]):
    folder = copied()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for out in (folder, folder / "inside", folder.parent):
        for pair in ((models["a"], folder), (folder, models["a"])):
            check_failed(cli("align", *pair, "-o", out, "--force"), out, "name a folder apart from it")
        check_failed(cli("interpolate", models["a"], folder, "-o", out, "--force"), out)
        check_failed(cli("merge", models["a"], folder, "-o", out, "--force"), out)
        check_failed(cli("scramble", folder, "-o", out, "--force"), out)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_no_space(refused: Callable[..., None], models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100, used=90, free=10))
    refused(models["b"], "out", "no space left")


@pytest.mark.parametrize(
    "words",
    [("align",), ("merge",), ("refine",), ("gauge", "--for", "rtn4"), ("transport",), ("scramble",)],
    ids=lambda words: words[0],
)
def test_no_space_is_found_before_any_work(
    words: tuple[str, ...], cli: Cli, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Who learns for half an hour wants to know it before."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100, used=90, free=10))
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("work began"))
    count = {"gauge": 1, "scramble": 1, "transport": 3}.get(words[0], 2)
    sources = [models["a"], models["b"], models["a"]][:count]
    check_failed(cli(words[0], *sources, *words[1:], "-o", tmp_path / "out"), "out", "no space left")


def test_no_space_in_the_middle(refused: Callable[..., None], models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("isobasin.checkpoints.writer._write", full)
    refused(models["b"], "out", "no space left")


def test_a_move_that_changes_the_function_is_not_written(
    refused: Callable[..., None], models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    from isobasin.symmetries.bilinear import Bilinear

    act = Bilinear.act

    def wrong(factor: Any, element: Any, weights: Any) -> Any:
        return {name: 1.01 * tensor for name, tensor in act(factor, element, weights).items()}

    monkeypatch.setattr(Bilinear, "act", wrong)
    refused(models["b"], "outputs differ by", "was not written")


def test_nan_outside_attention_is_named_by_every_command(
    cli: Cli, models: dict[str, Path], copied: Callable[..., Path], tmp_path: Path
):
    folder = copied()
    edit_tensors(folder, poke(MLP, float("nan")))
    for arguments in (
        ("verify", folder, folder),
        ("verify", models["b"], folder),
        ("equivalent", folder, folder),
        ("diagnose", folder, folder),
        ("scramble", folder, "-o", tmp_path / "out"),
        ("interpolate", models["b"], folder, "-o", tmp_path / "out"),
        ("merge", models["b"], folder, "-o", tmp_path / "out"),
    ):
        check_failed(cli(*arguments), folder, MLP)
    assert [file.name for file in tmp_path.iterdir()] == ["inputs"]


def test_a_merge_of_unrelated_models_is_refused_in_a_line(cli: Cli, models: dict[str, Path], tmp_path: Path):
    merge = "merge", models["a"], models["b"], "-o", tmp_path / "out"
    for scope in ("attention", "block"):
        check_failed(cli(*merge, "--scope", scope), models["b"], "unrelated", "--scope model", "--force-unrelated")
    assert not list(tmp_path.iterdir())


def test_alignments_that_do_not_fit(cli: Cli, models: dict[str, Path], scrambled: Path, tmp_path: Path):
    out = tmp_path / "out"
    check_failed(cli("apply", tmp_path / "none", models["a"], "-o", out), tmp_path / "none", "no such alignment")
    other = "not an alignment, but other tensors: give the file that `isobasin align` wrote"
    check_failed(cli("apply", models["a"] / "model.safetensors", models["a"], "-o", out), other)
    check_failed(cli("apply", scrambled, models["llama"], "-o", out), "gpt2", "llama")
    check_failed(cli("apply", scrambled, models["deep"], "-o", out), "2 layers", models["deep"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("align", "x"), ("Missing argument 'MODEL'", "isobasin align --help")),
        (("align", "x", "y"), ("Missing option '--output'",)),
        (("align", "x", "y", "-o", "z", "--method", "magic"), ("'--method'", "magic", "gauss-newton", "paper")),
        (("align", "x", "y", "-o", "z", "--max-condition", "big"), ("'--max-condition'", "valid")),
        (("merge", "x", "y", "-o", "z", "--space", "outer"), ("'--space'", "outer", "weights", "circuit")),
        (
            ("align", "x", "y", "-o", "z", "--device", "cuda:99"),
            ("device 'cuda:99'", "use --device cpu" if not torch.cuda.is_available() else "cuda:"),
        ),
        (
            ("transport", "x", "y", "z", "-o", "o", "--scale", "1", "--data", "d"),
            ("--scale is given", "one of the two"),
        ),
        (("diagnose", "x", "y", "--fix"), ("--fix needs a folder to write", "-o OUT")),
        (("transport", "x", "y", "z", "-o", "o", "--objective", "activations"), ("weighs by --data",)),
        (("transport", "x", "y", "z", "-o", "o", "--scale", "nan"), ("scale is nan: give a finite number",)),
        (("merge", "x", "y", "-o", "z", "-t", "half"), ("-t half: give a number",)),
        (("merge", "x", "y", "-o", "z", "-t", "1,2,3"), ("3 weights for 2 models",)),
        (("merge", "x", "-o", "z"), ("two or more models, not 1",)),
        (
            ("merge", "x", "y", "-o", "z", "--device", "gpu"),
            ("'--device': 'gpu' is no device: did you mean 'cpu'?",),
        ),
        (("verify", "x", "y", "--device", "mps"), ("device 'mps': it has no float64", "use --device cpu")),
        (("alingn",), ("No such command 'alingn'", "align")),
        (("--colour",), ("No such option: --colour", "isobasin --help")),
        (("verify", "x", "y", "--seeds", "1"), ("No such option: --seeds",)),
    ],
)
def test_usage_errors_are_one_line(cli: Cli, arguments: tuple[str, ...], naming: tuple[str, ...]):
    check_failed(cli(*arguments), *naming)


def test_values_out_of_range(cli: Cli, models: dict[str, Path], tmp_path: Path):
    out = ("-o", tmp_path / "out")
    check_failed(cli("align", models["a"], models["b"], *out, "--max-condition", "0.5"), "0.5", "at least 1")
    check_failed(cli("scramble", models["a"], *out, "--condition", "nan"), "condition is nan", "from 1 to")
    check_failed(cli("scramble", models["a"], *out, "--condition", "inf"), "condition is inf", "from 1 to")
    check_failed(cli("scramble", models["a"], *out, "--seed", 10**23), "seed is 1000", "from 0 to")
    check_failed(cli("scramble", models["a"], *out, "--seed", "1e23"), "'--seed'", "valid integer")
    check_failed(cli("verify", models["a"], models["b"], "--tolerance", "nan"), "tolerance is nan")
    check_failed(cli("interpolate", models["a"], models["b"], *out, "-t", "nan"), "t is nan: give a finite number")
    check_failed(cli("interpolate", models["a"], models["b"], *out, "-t", "1e39"), "at t = 1e+39", "torch.float32")
    far = *out, "-t", "1e39", "--force-unrelated"
    check_failed(cli("merge", models["a"], models["b"], *far), "beyond torch.float32")
    carried = ("transport", models["a"], models["b"], models["a"], "--scope", "attention")
    check_failed(cli(*carried, *out, "--scale", "1e39"), "at scale 1e+39", "beyond torch.float32")
    check_failed(cli(*carried[:2], models["deep"], models["a"], *out), "deep", "h.2.attn.c_attn.bias")
    if not torch.cuda.is_available():
        check_failed(cli("align", models["a"], models["b"], *out, "--device", "cuda"), "cuda", "--device cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "code", "naming"),
    [
        (KeyboardInterrupt(), 130, ("interrupted",)),
        (MemoryError(), 2, ("out of memory; use a smaller model",)),
        (RuntimeError("DefaultCPUAllocator: you tried to allocate 8000 bytes. Error"), 2, ("memory: 8000 bytes more",)),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.5 GiB. GPU"),
            2,
            ("memory: 2.5 GiB more",),
        ),
        (RecursionError("maximum recursion depth"), 2, ("nested too deeply",)),
        (RuntimeError("first\nsecond"), 70, ("RuntimeError", "first second", "ISOBASIN_DEBUG=1")),
        (OSError(errno.EIO, "Input/output error", "/some/[file]"), 2, ("/some/[file]: Input/output error",)),
    ],
)
def test_failures_of_other_kinds(
    failure: BaseException,
    code: int,
    naming: tuple[str, ...],
    cli: Cli,
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(*arguments: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr("isobasin.verbs.symmetry.symmetry", fail)
    check_failed(cli("symmetry", models["a"]), *naming, code=code)


@pytest.mark.parametrize(("number", "code", "line"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_a_signal_that_a_library_made_another_error_of(
    number: int, code: int, line: str, cli: Cli, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object, **options: object) -> None:
        raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'")

    monkeypatch.setattr("isobasin.verbs.symmetry.symmetry", fail)
    monkeypatch.setattr(failures, "received", lambda: number)
    result = cli("symmetry", models["a"])
    check_failed(result, code=code)
    assert result.stderr == f"error: {line}\n"


def test_debugging_shows_the_traceback_too(
    cli: Cli, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ISOBASIN_DEBUG", "1")
    result = cli("symmetry", tmp_path / "[none]")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert re.search(r"^error: .*\[none\]", result.stderr, re.MULTILINE)
