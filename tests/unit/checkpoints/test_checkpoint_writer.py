from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_folders import (
    NEW,
    contents,
    leftovers,
    linked,
    make_sources,
    pickled,
    pickled_shards,
    read_all,
    same,
    shard_name,
    sharded,
    single,
    tensors,
    write_config,
)
from safetensors import safe_open
from torch import Tensor

from isobasin.beside import ALIGNMENT, ALIGNMENTS, CARD, RECIPE
from isobasin.checkpoints import Checkpoint, shards as shards_module, write_checkpoint
from isobasin.errors import IsobasinWarning, TensorError

FORMS = ["single", "sharded", "pickled", "pickled_shards"]


@pytest.mark.parametrize("form", ["single", "sharded"])
def test_a_copy_without_moves_is_identical_to_the_byte(form: str, tmp_path: Path) -> None:
    folder = make_sources(tmp_path)[form]
    write_checkpoint(Checkpoint.open(folder), tmp_path / "out", [])
    assert contents(tmp_path / "out") == contents(folder)
    assert leftovers(tmp_path) == []


def test_a_header_in_an_unusual_form_is_kept(tmp_path: Path) -> None:
    header = (
        b'{ "b":{"dtype":"F32","shape":[1],"data_offsets":[3,7]}, "a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    )
    data = len(header).to_bytes(8, "little") + header + b"xyz" + b"\0\0\x80?"
    path = write_config(tmp_path / "source") / "model.safetensors"
    path.write_bytes(data)
    write_checkpoint(Checkpoint.open(tmp_path / "source"), tmp_path / "out", [])
    assert (tmp_path / "out" / path.name).read_bytes() == data
    write_checkpoint(Checkpoint.open(tmp_path / "source"), tmp_path / "moved", [{"b": torch.tensor([2.0])}])
    assert (tmp_path / "moved" / path.name).read_bytes() == data[:-4] + b"\0\0\0@"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("piece", [8, 2**24])
def test_moved_tensors_replace_and_the_others_stay(
    form: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "PIECE", piece)
    folder = make_sources(tmp_path)[form]
    before = contents(folder)
    checkpoint = Checkpoint.open(folder, allow_pickle=True)
    write_checkpoint(checkpoint, tmp_path / "out", reversed([{name: value} for name, value in NEW.items()]))
    written = Checkpoint.open(tmp_path / "out")
    assert same(written.read(written.tensors), tensors() | NEW)
    assert written.files == checkpoint.files
    assert written.tensors == checkpoint.tensors
    assert list(written.tensors) == list(checkpoint.tensors)
    assert written.metadata == checkpoint.metadata
    assert contents(folder) == before


def test_moved_tensors_may_be_views_and_are_cast_to_the_stored_type(source: Checkpoint, tmp_path: Path) -> None:
    value = torch.arange(24.0, dtype=torch.float64).reshape(4, 6).t().requires_grad_()
    write_checkpoint(source, tmp_path / "out", [{"layers.0.weight": value}])
    assert same(read_all(tmp_path / "out"), tensors() | {"layers.0.weight": value.detach().float()})


def test_moves_are_consumed_lazily(source: Checkpoint, tmp_path: Path) -> None:
    written: list[bool] = []

    def moved() -> Iterator[dict[str, Tensor]]:
        yield {"layers.0.weight": NEW["layers.0.weight"]}
        staging = next(tmp_path.glob(".isobasin-partial-*/content/out"))
        with safe_open(staging / source.tensors["layers.0.weight"].file, framework="pt") as file:
            written.append(torch.equal(file.get_tensor("layers.0.weight"), NEW["layers.0.weight"]))
        yield {}

    write_checkpoint(source, tmp_path / "out", moved())
    assert written == [True]


def test_pickles_become_what_safetensors_would_write(tmp_path: Path) -> None:
    write_checkpoint(Checkpoint.open(pickled(tmp_path / "a"), allow_pickle=True), tmp_path / "out", [])
    assert sorted(contents(tmp_path / "out")) == ["config.json", "model.safetensors"]
    assert same(read_all(tmp_path / "out"), tensors())
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_index_of_pickles_is_rewritten(tmp_path: Path) -> None:
    write_checkpoint(Checkpoint.open(pickled_shards(tmp_path / "a"), allow_pickle=True), tmp_path / "out", [])
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    size = sum(tensor.nbytes for tensor in tensors().values())
    assert index["metadata"] == {"total_parameters": 1, "total_size": size}
    assert set(index["weight_map"].values()) == {shard_name(1), shard_name(2)}
    assert not [name for name in contents(tmp_path / "out") if "bin" in name]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_cast(form: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "PIECE", 16)
    checkpoint = Checkpoint.open(make_sources(tmp_path)[form], allow_pickle=True)
    exact = {"layers.0.weight": torch.full((6, 4), 1 / 3, dtype=torch.float64)}
    write_checkpoint(checkpoint, tmp_path / "out", [exact], dtype=dtype)
    written = Checkpoint.open(tmp_path / "out")
    state = tensors() | exact
    wanted = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    for name, tensor in written.read(wanted).items():
        assert tensor.dtype == wanted[name].dtype
        assert torch.equal(tensor.double(), wanted[name].double())
    assert list(written.tensors) == list(checkpoint.tensors)
    assert written.metadata == checkpoint.metadata
    assert written.config == {**checkpoint.config, "dtype": str(dtype).removeprefix("torch.")}
    if written.index is not None:
        size = sum(tensor.nbytes for tensor in wanted.values())
        assert written.index.content["metadata"]["total_size"] == size


def test_a_cast_keeps_every_tensor_aligned(tmp_path: Path) -> None:
    state = {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.int32), "c": torch.zeros(1, dtype=torch.int64)}
    write_checkpoint(Checkpoint.open(single(tmp_path / "a", state)), tmp_path / "out", [], dtype=torch.bfloat16)
    slots = Checkpoint.open(tmp_path / "out").shards["model.safetensors"].header.slots
    assert all(slot.start % slot.dtype.itemsize == 0 for slot in slots.values())


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"torch_dtype": "float32", "x": "é"}, {"torch_dtype": "float16", "x": "é"}),
        ({"dtype": "float32"}, {"dtype": "float16"}),
        ({}, {"dtype": "float16"}),
    ],
)
def test_a_cast_updates_the_config(config: dict[str, str], wanted: dict[str, str], tmp_path: Path) -> None:
    (single(tmp_path / "a") / "config.json").write_text(json.dumps(config))
    write_checkpoint(Checkpoint.open(tmp_path / "a"), tmp_path / "out", [], dtype=torch.float16)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == wanted


@pytest.mark.parametrize("move", [False, True])
def test_a_cast_that_overflows_is_refused(move: bool, tmp_path: Path) -> None:
    big = {"a": torch.tensor([1.0, -1e5])}
    checkpoint = Checkpoint.open(single(tmp_path / "a", big))
    with pytest.raises(TensorError, match=r"'a' has values up to 1e\+05, beyond torch.float16"):
        write_checkpoint(checkpoint, tmp_path / "out", [big] if move else [], dtype=torch.float16)
    assert sorted(os.listdir(tmp_path)) == ["a"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_only_floats_can_be_cast_to(dtype: torch.dtype, source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't store"):
        write_checkpoint(source, tmp_path / "out", [], dtype=dtype)


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no float4")
def test_packed_float4_is_copied_but_not_cast(tmp_path: Path) -> None:
    packed = {"a": torch.arange(16, dtype=torch.uint8).reshape(2, 8).view(torch.float4_e2m1fn_x2)}
    checkpoint = Checkpoint.open(single(tmp_path / "a", packed))
    write_checkpoint(checkpoint, tmp_path / "out", [packed])
    assert contents(tmp_path / "out") == contents(tmp_path / "a")
    with pytest.raises(TensorError, match="'a' is float4"):
        write_checkpoint(checkpoint, tmp_path / "cast", [], dtype=torch.float32)
    torch.save(packed, write_config(tmp_path / "pickle") / "pytorch_model.bin")
    write_checkpoint(Checkpoint.open(tmp_path / "pickle", allow_pickle=True), tmp_path / "converted", [])
    assert torch.equal(read_all(tmp_path / "converted")["a"].view(torch.uint8), packed["a"].view(torch.uint8))


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        ([{"ghost": torch.zeros(1)}], "'ghost' is not in"),
        ([{"layers.0.weight": torch.zeros(4, 6)}], "has shape"),
        ([{"scale": torch.tensor(1.0)}, {"scale": torch.tensor(1.0)}], "comes twice"),
    ],
)
def test_wrong_moves_are_programming_errors(
    moved: list[dict[str, Tensor]], words: str, source: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        write_checkpoint(source, tmp_path / "out", moved)
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_companions_are_copied_and_other_weights_are_not(tmp_path: Path) -> None:
    folder = single(tmp_path / "source")
    kept = ["tokenizer.json", "tokenizer.model", "LICENSE", "generation_config.json", ".gitattributes"]
    kept += [
        "additional_chat_templates/tool.jinja",
        "1_Pooling/config.json",
        "notes/README.md",
        "scheduler_config.json",
    ]
    dropped = ["pytorch_model.bin", "x.pt", "x.pth", "tf_model.h5", "flax_model.msgpack", "x.gguf", "x.onnx", "x.ckpt"]
    dropped += [*ALIGNMENTS, CARD, RECIPE, "alignment-2.isobasin", "train_log.json", "trainer_state.json"]
    dropped += ["all_results.json", "eval_results.txt", "optimizer.pt", "runs/x/events.out.tfevents.1"]
    dropped += ["pytorch_model.bin.index.json", "model.safetensors.index.json"]
    dropped += [".cache/x.json", ".git/config", "onnx/config.json", "onnx/deep/model.onnx", "1_Pooling/.cache/y"]
    for name in kept + dropped:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    with pytest.warns(IsobasinWarning, match=r"without flax_model.msgpack, .* and \d+ more of .*other weights"):
        write_checkpoint(Checkpoint.open(folder), tmp_path / "out", [])
    copied = contents(tmp_path / "out")
    assert sorted(copied) == sorted([*kept, "config.json", "model.safetensors"])
    assert all(copied[name] == name.encode() for name in kept)


def test_a_linked_snapshot_becomes_real_files(tmp_path: Path) -> None:
    real = sharded(tmp_path / "blobs")
    (real / "tokenizer.json").write_text("{}")
    (real / "tokenizer.json").chmod(0o400)
    snapshot = linked(real, tmp_path / "snapshots" / "main")
    (snapshot / "templates").mkdir()
    (snapshot / "templates" / "a.jinja").symlink_to(real / "tokenizer.json")
    (snapshot / "loop").symlink_to(snapshot)
    (snapshot / "dead").symlink_to(tmp_path / "nowhere")
    with pytest.warns(IsobasinWarning, match="without dead, loop of"):
        write_checkpoint(Checkpoint.open(snapshot), tmp_path / "out", [])
    out = tmp_path / "out"
    assert contents(out) == contents(real) | {"templates/a.jinja": b"{}"}
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert (out / "tokenizer.json").stat().st_mode & 0o200


def test_the_output_has_the_permissions_of_a_new_folder(source: Checkpoint, tmp_path: Path) -> None:
    for file in source.folder.iterdir():
        file.chmod(0o666)
    source.folder.chmod(0o777)
    write_checkpoint(Checkpoint.open(source.folder), tmp_path / "out", [])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").write_text("")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "new").stat().st_mode
    mode = (tmp_path / "new" / "file").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {mode}


def test_extra_comes_before_the_config_and_check_after(source: Checkpoint, tmp_path: Path) -> None:
    def extra(folder: Path) -> None:
        assert not (folder / "config.json").exists()
        assert (folder / "model.safetensors.index.json").exists()
        (folder / ALIGNMENT).write_text("extra")

    def check(folder: Path) -> dict[str, Tensor]:
        assert (folder / ALIGNMENT).read_text() == "extra"
        assert not (tmp_path / "out").exists()
        return read_all(folder)

    result = write_checkpoint(source, tmp_path / "out", [NEW], extra=extra, check=check)
    assert result is not None
    assert same(result, tensors() | NEW)
    assert (tmp_path / "out" / ALIGNMENT).exists()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_memory_is_bounded_by_pieces(tmp_path: Path) -> None:
    state = {str(n): torch.ones(2**21) for n in range(12)} | {"embedding": torch.ones(2**25)}
    checkpoint = Checkpoint.open(single(tmp_path / "source", state))
    del state

    def peak() -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
    start = peak()
    write_checkpoint(checkpoint, tmp_path / "out", (checkpoint.read([str(n)]) for n in range(0, 12, 2)))
    assert checkpoint.shards["model.safetensors"].header.size > 192 * 2**20
    assert peak() - start < 64 * 2**20
