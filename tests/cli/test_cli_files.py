"""What people's folders hold, met by the program: files that change, links, modules, tensors of other types."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

from isobasin.checkpoints.shards import PickleShard, SafetensorsShard

Cli = Callable[..., Result]


def _replace(path: Path) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").rename(path)


def _rewrite(path: Path) -> None:
    data = path.read_bytes()
    os.utime(path, (0, 0))
    path.write_bytes(bytes(reversed(data)))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


@pytest.mark.parametrize("change", [_replace, _rewrite, _cut])
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("verb", ["interpolate", "align"])
def test_a_file_that_changes_while_it_is_read(
    verb: str,
    pickled: bool,
    change: Callable[[Path], None],
    cli: Cli,
    models: dict[str, Path],
    copied: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, file = copied(), "model.safetensors"
    if pickled:
        torch.save(load_file(model / file), model / "pytorch_model.bin")
        (model / file).unlink()
        file = "pytorch_model.bin"
    reads: list[None] = []

    def spied(kind: type[SafetensorsShard | PickleShard]) -> None:
        original = kind.read

        def read(shard: SafetensorsShard, names: list[str]) -> dict[str, torch.Tensor]:
            if shard.file.path == model / file:
                reads.append(None)
                if len(reads) == 2:
                    change(model / file)
            return original(shard, names)

        monkeypatch.setattr(kind, "read", read)

    spied(PickleShard if pickled else SafetensorsShard)
    options = ["--no-verify"] if verb == "align" else []
    result = cli(verb, models["a"], model, "-o", tmp_path / "out", "--allow-pickle", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {model / file}: changed while it was being read: run again when it is complete\n"
    assert sorted(os.listdir(tmp_path)) == ["inputs"]


def test_warnings_are_lines_on_stderr(cli: Cli, models: dict[str, Path], copied: Callable[..., Path], tmp_path: Path):
    model = copied()
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").touch()
    (model / "key.json").symlink_to("/etc/hostname")
    result = cli("align", models["a"], model, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["output"] == str(tmp_path / "out")
    assert result.stderr.splitlines() == [
        f"warning: {tmp_path / 'out'}: without onnx of {model} (other weights): copy what you need",
        f"warning: {tmp_path / 'out'}: without key.json of {model} (links out of the folder, or no files): "
        "copy what you need",
    ]


def test_a_weight_file_with_the_name_that_alignments_had(
    cli: Cli, models: dict[str, Path], copied: Callable[..., Path], tmp_path: Path
) -> None:
    model, out = copied(), tmp_path / "out"
    (model / "model.safetensors").rename(model / "alignment.safetensors")
    names = dict.fromkeys(load_file(model / "alignment.safetensors"), "alignment.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert cli("align", models["a"], model, "-o", out).exit_code == 0
    assert load_file(out / "alignment.safetensors").keys() == names.keys()
    assert cli("apply", out, model, "-o", tmp_path / "again").exit_code == 0
    assert (tmp_path / "again" / "alignment.safetensors").read_bytes() == (out / "alignment.safetensors").read_bytes()
    missing = cli("apply", model, model, "-o", tmp_path / "none")
    assert missing.exit_code == 2
    assert "alignment.safetensors: not an alignment, but other tensors" in missing.stderr


def test_outputs_are_the_same_to_the_byte(cli: Cli, models: dict[str, Path], tmp_path: Path) -> None:
    for out in ("one", "two"):
        assert cli("align", models["a"], models["b"], "-o", tmp_path / out, "--no-verify").exit_code == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


_TYPES = [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", _TYPES, ids=str)
@pytest.mark.parametrize("verb", ["align", "equivalent", "scramble", "canonicalize", "fingerprint", "merge"])
def test_a_block_of_another_type_is_refused_in_one_line(
    verb: str, dtype: torch.dtype, cli: Cli, models: dict[str, Path], copied: Callable[..., Path], tmp_path: Path
) -> None:
    model, name = copied(), "transformer.h.0.attn.c_attn.weight"
    state = load_file(model / "model.safetensors")
    save_file({**state, name: state[name].to(dtype)}, model / "model.safetensors")
    inputs = [models["a"], model] if verb in ("align", "equivalent", "merge") else [model]
    output = [] if verb in ("equivalent", "fingerprint") else ["-o", tmp_path / "out"]
    result = cli(verb, *inputs, *output)
    assert (result.exit_code, result.stdout) == (2, "")
    owner = " of B" if f"{name!r} of B" in result.stderr else ""  # both ends are looked at before they are merged
    assert f"tensor {name!r}{owner} is {str(dtype).removeprefix('torch.')}" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float4_e2m1fn_x2], ids=str)
def test_packed_tensors_have_no_line(dtype: torch.dtype, cli: Cli, copied: Callable[..., Path], tmp_path: Path) -> None:
    model, name = copied(), "transformer.wte.weight"
    state = load_file(model / "model.safetensors")
    bits = torch.arange(state[name].numel()).remainder(64).to(torch.uint8).reshape(state[name].shape)
    save_file({**state, name: bits.view(dtype)}, model / "model.safetensors")
    result = cli("interpolate", model, shutil.copytree(model, tmp_path / "other"), "-o", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{name!r} of A is {str(dtype).removeprefix('torch.')}" in result.stderr


def test_a_hub_cache_and_its_snapshot(cli: Cli, models: dict[str, Path], tmp_path: Path) -> None:
    repository = tmp_path / "models--somebody--model"
    shutil.copytree(models["a"], repository / "blobs")
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for path in (repository / "blobs").iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    result = cli("scramble", repository, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "a model's folder in the hub cache: pass the hub id, or the folder of one revision" in result.stderr
    assert cli("scramble", snapshot, "-o", tmp_path / "out").exit_code == 0
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_force_keeps_what_is_read(cli: Cli, models: dict[str, Path], tmp_path: Path):
    """Whatever is read, not only models, lies outside of the folder that is replaced."""
    moved = tmp_path / "moved"
    assert cli("scramble", models["a"], "-o", moved, "--no-verify").exit_code == 0
    data = moved / "text.txt"
    data.write_text("a b" * 20)
    letters = tmp_path / "letters.json"
    letters.write_text(json.dumps({"a": 0, "b": 1, " ": 2}))
    reading = "--objective", "activations", "--data", data, "--tokenizer", letters, "--length", 4
    before = {path: path.read_bytes() for path in moved.iterdir()}
    alignment = moved / "alignment.isobasin"
    for read, *words in (
        (alignment, "apply", alignment, models["a"]),
        (moved, "apply", moved, models["a"]),
        (alignment, "transport", models["a"], models["b"], models["b"], "--alignment", alignment),
        (data, "align", models["a"], models["b"], *reading),
    ):
        result = cli(*words, "-o", moved, "--force")
        line = f"error: {moved}: is, holds or lies in the input {read}: name a folder apart from it\n"
        assert (result.exit_code, result.stderr) == (2, line)
    assert {path: path.read_bytes() for path in moved.iterdir()} == before
