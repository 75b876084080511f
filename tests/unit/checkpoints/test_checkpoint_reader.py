from __future__ import annotations

import json
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_folders import (
    CONFIG,
    linked,
    make_sources,
    pickled,
    pickled_shards,
    same,
    shard_name,
    sharded,
    single,
    tensors,
    write_config,
    write_index,
)
from safetensors.torch import save_file

from isobasin.checkpoints import Checkpoint, TensorInfo, check_finite
from isobasin.checkpoints.files import WatchedFile
from isobasin.errors import CheckpointError, TensorError

FORMS = ["single", "sharded", "pickled", "pickled_shards"]


def refusal(folder: Path, kind: type[Exception] = CheckpointError, allow_pickle: bool = True) -> str:
    with pytest.raises(kind) as caught:
        Checkpoint.open(folder, allow_pickle=allow_pickle)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_open_and_read(form: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_sources(tmp_path)[form], allow_pickle=True)
    state = tensors()
    assert checkpoint.config == CONFIG
    assert checkpoint.tensors.keys() == state.keys()
    for name, info in checkpoint.tensors.items():
        assert (info.shape, info.dtype) == (tuple(state[name].shape), state[name].dtype)
    assert same(checkpoint.read(state), state)
    names = ["layers.2.weight", "scale", "layers.0.bias"]
    assert list(checkpoint.read(names)) == names
    assert checkpoint.read([]) == {}


@pytest.mark.parametrize("form", ["sharded", "pickled_shards"])
def test_shards_have_safetensors_names_in_order(form: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_sources(tmp_path)[form], allow_pickle=True)
    assert checkpoint.files == (shard_name(1), shard_name(2))
    assert set(checkpoint.metadata) == set(checkpoint.files)
    assert checkpoint.metadata[shard_name(2)]["format"] == "pt"
    assert checkpoint.tensors["scale"] == TensorInfo((), torch.float32, shard_name(1))
    assert checkpoint.tensors["layers.2.steps"].file == shard_name(2)


def test_tensors_are_in_the_order_of_the_header(tmp_path: Path) -> None:
    header = (
        b'{"b":{"dtype":"F32","shape":[1],"data_offsets":[3,7]},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    )
    data = struct.pack("<Q", len(header)) + header + b"xyz" + struct.pack("<f", 2.5)
    (write_config(tmp_path) / "model.safetensors").write_bytes(data)
    checkpoint = Checkpoint.open(tmp_path)
    assert list(checkpoint.tensors) == ["b", "a"]
    assert checkpoint.metadata == {"model.safetensors": {}}
    assert same(checkpoint.read(["b"]), {"b": torch.tensor([2.5])})  # its bytes are not aligned


def test_every_type_of_safetensors(tmp_path: Path) -> None:
    codes = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64"
    codes += " float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"
    dtypes = [getattr(torch, code) for code in codes.split() if hasattr(torch, code)]
    state = {str(dtype): torch.ones(2, 8, dtype=torch.uint8).view(dtype) for dtype in dtypes}
    checkpoint = Checkpoint.open(single(tmp_path, state))
    assert {name: info.dtype for name, info in checkpoint.tensors.items()} == {str(dtype): dtype for dtype in dtypes}
    for name, tensor in checkpoint.read(state).items():
        assert tensor.dtype == state[name].dtype
        assert tuple(tensor.shape) == checkpoint.tensors[name].shape
        assert torch.equal(tensor.view(torch.uint8), torch.ones(2, 8, dtype=torch.uint8))


def test_read_tensors_own_their_memory(tmp_path: Path) -> None:
    for folder in make_sources(tmp_path).values():
        checkpoint = Checkpoint.open(folder, allow_pickle=True)
        tensor = checkpoint.read(["layers.0.weight"])["layers.0.weight"]
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.is_contiguous()
        tensor.zero_()
        assert same(checkpoint.read(tensors()), tensors())


def test_each_shard_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(sharded(tmp_path))
    opened: list[Path] = []
    original = WatchedFile.open
    monkeypatch.setattr(WatchedFile, "open", lambda file: opened.append(file.path) or original(file))
    checkpoint.read(checkpoint.tensors)
    assert opened == [tmp_path / shard_name(1), tmp_path / shard_name(2)]


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    pickled(single(tmp_path), {"other": torch.zeros(1)})
    assert Checkpoint.open(tmp_path).tensors.keys() == tensors().keys()


def test_a_linked_snapshot(tmp_path: Path) -> None:
    snapshot = linked(sharded(tmp_path / "blobs"), tmp_path / "snapshots" / "main")
    assert same(Checkpoint.open(snapshot).read(tensors()), tensors())


def test_missing_things(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "missing")
    assert "no config.json" in refusal(tmp_path)
    message = refusal(write_config(tmp_path))
    assert "no weights found" in message
    for form in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "--allow-pickle"):
        assert form in message


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\xfa", b"[" * 100_000, b'{"a": 1} x'])
def test_a_config_that_is_not_json(text: bytes, tmp_path: Path) -> None:
    (single(tmp_path) / "config.json").write_bytes(text)
    message = refusal(tmp_path)
    assert "config.json: not valid JSON" in message


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "3"])
def test_a_config_that_is_not_an_object(text: str, tmp_path: Path) -> None:
    (single(tmp_path) / "config.json").write_text(text)
    assert "not an object" in refusal(tmp_path)


def test_a_config_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    assert "config.json: is a folder, not a file" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
@pytest.mark.parametrize("number", [1, 2])
def test_a_truncated_shard_is_found_at_open(number: int, keep: int, tmp_path: Path) -> None:
    path = sharded(tmp_path) / shard_name(number)
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(tmp_path)
    assert shard_name(number) in message
    assert "truncated or not a safetensors file" in message


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    (single(tmp_path) / "model.safetensors").write_text(pointer)
    assert "git lfs pull" in refusal(tmp_path)


def test_weights_that_are_a_folder_or_a_dead_link(tmp_path: Path) -> None:
    (write_config(tmp_path / "a") / "model.safetensors").mkdir()
    assert "model.safetensors: is a folder, not a file" in refusal(tmp_path / "a")
    (write_config(tmp_path / "b") / "model.safetensors").symlink_to("nowhere")
    assert "model.safetensors: the file is missing" in refusal(tmp_path / "b")


def test_a_type_that_torch_does_not_know(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    data = struct.pack("<Q", len(header)) + header + b"xyz"
    (write_config(tmp_path) / "model.safetensors").write_bytes(data)
    message = refusal(tmp_path)  # a safetensors that is older than the type refuses the file itself
    assert "F6_E2M3" in message


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_an_index_that_is_not_json(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model.safetensors.index.json").write_text("{")
    assert "index.json: not valid JSON" in refusal(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": None}])
def test_an_index_without_a_weight_map(index: object, tmp_path: Path) -> None:
    (sharded(tmp_path) / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "has no weight_map" in refusal(tmp_path)


def test_an_index_that_names_a_missing_file(tmp_path: Path) -> None:
    (sharded(tmp_path) / shard_name(2)).unlink()
    assert f"names {shard_name(2)}, which is missing" in refusal(tmp_path)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "./x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "x\0.safetensors"]
)
def test_an_index_that_leaves_the_folder(file: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    for place in (tmp_path, folder / "sub"):
        place.mkdir(exist_ok=True)
        save_file({"scale": torch.tensor(1.5)}, place / "x.safetensors")
    edit_index(folder, lambda weight_map: weight_map.update(scale=file))
    assert "only files beside the index are read" in refusal(folder)


def test_an_index_with_an_absolute_path(tmp_path: Path) -> None:
    outside = single(tmp_path / "outside") / "model.safetensors"
    edit_index(sharded(tmp_path / "model"), lambda weight_map: weight_map.update(scale=str(outside)))
    assert "only files beside the index are read" in refusal(tmp_path / "model")


@pytest.mark.parametrize("file", [3, None, "config.json", "model.bin"])
def test_an_index_that_names_no_safetensors_file(file: object, tmp_path: Path) -> None:
    edit_index(sharded(tmp_path), lambda weight_map: weight_map.update(scale=file))  # type: ignore[arg-type]
    assert "not to a .safetensors file" in refusal(tmp_path)


def test_an_index_that_names_the_wrong_shard(tmp_path: Path) -> None:
    edit_index(sharded(tmp_path), lambda weight_map: weight_map.update(scale=shard_name(2)))
    message = refusal(tmp_path, TensorError)
    assert f"puts tensor 'scale' in {shard_name(2)}, which doesn't have it" in message


def test_an_index_that_names_a_tensor_that_is_nowhere(tmp_path: Path) -> None:
    edit_index(sharded(tmp_path), lambda weight_map: weight_map.update(ghost=shard_name(2)))
    assert "'ghost'" in refusal(tmp_path, TensorError)


def test_a_tensor_that_is_not_in_the_index(tmp_path: Path) -> None:
    edit_index(sharded(tmp_path), lambda weight_map: weight_map.pop("scale"))
    assert f"'scale' is in {shard_name(1)} but not in the index" in refusal(tmp_path, TensorError)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    first = {"a": torch.zeros(1), "b": torch.zeros(1)}
    save_file(first, write_config(tmp_path) / shard_name(1))
    save_file({"b": torch.ones(1)}, tmp_path / shard_name(2))
    write_index(tmp_path, {"a": shard_name(1), "b": shard_name(2)})
    assert f"'b' is in {shard_name(1)} and in {shard_name(2)}" in refusal(tmp_path, TensorError)


@pytest.mark.parametrize("form", FORMS)
def test_reading_an_unknown_name(form: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_sources(tmp_path)[form], allow_pickle=True)
    with pytest.raises(TensorError, match="no tensor 'ghost'"):
        checkpoint.read(["scale", "ghost"])


def test_a_file_that_shrinks_after_open(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(single(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        checkpoint.read(["scale"])


@pytest.mark.parametrize("form", ["pickled", "pickled_shards"])
def test_pickles_are_refused_unless_allowed(form: str, tmp_path: Path) -> None:
    message = refusal(make_sources(tmp_path)[form], allow_pickle=False)
    assert "pytorch_model.bin" in message
    assert "convert it" in message
    assert "--allow-pickle" in message


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(marker),)

    folder = pickled(tmp_path / "model", {"a": torch.zeros(1), "b": Payload()})
    assert "can't be loaded as plain tensors" in refusal(folder)
    assert not marker.exists()


def test_old_torch_may_not_load_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    assert "upgrade torch" in refusal(pickled(tmp_path))


@pytest.mark.parametrize("state", [{"a": 3}, {"a": {"b": 3}}, {4: torch.zeros(1)}])
def test_a_pickle_with_entries_that_are_no_tensors(state: object, tmp_path: Path) -> None:
    assert "not a tensor: remove it" in refusal(pickled(tmp_path, state))


def test_a_pickle_with_tensors_in_one_of_its_entries(tmp_path: Path) -> None:
    state = {"epoch": 3, "state_dict": {"b": torch.zeros(1)}}
    assert "tensors lie in its entry 'state_dict': save what is there by itself" in refusal(pickled(tmp_path, state))


def test_pickles_of_other_kinds(tmp_path: Path) -> None:
    assert "not tensors by name" in refusal(pickled(tmp_path / "a", [torch.zeros(1)]))
    assert "no safetensors form" in refusal(pickled(tmp_path / "b", {"a": torch.eye(2).to_sparse()}))
    assert "no safetensors form" in refusal(pickled(tmp_path / "c", {"a": torch.zeros(1, dtype=torch.complex128)}))


def test_a_broken_pickle(tmp_path: Path) -> None:
    path = pickled(tmp_path) / "pytorch_model.bin"
    whole = path.read_bytes()
    for broken in (b"", b"garbage", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        assert "can't be loaded as plain tensors" in refusal(tmp_path)
    with tarfile.open(path, "w") as archive:  # the format before torch 0.4
        archive.add(tmp_path / "config.json", "storages")
    assert "can't be loaded as plain tensors" in refusal(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert "missing" in refusal(tmp_path)


def test_a_pickle_from_before_zip_archives(tmp_path: Path) -> None:
    path = write_config(tmp_path) / "pytorch_model.bin"
    torch.save(tensors(), path, _use_new_zipfile_serialization=False)
    assert same(Checkpoint.open(tmp_path, allow_pickle=True).read(tensors()), tensors())


def test_a_pickled_parameter_and_a_view(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"parameter": torch.nn.Parameter(base), "view": base.t()}
    tensor = Checkpoint.open(pickled(tmp_path, state), allow_pickle=True).read(state)
    assert same(tensor, {"parameter": base, "view": base.t()})
    assert not tensor["parameter"].requires_grad
    assert tensor["view"].is_contiguous()


def test_a_pickle_that_changes_after_open(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(pickled(tmp_path), allow_pickle=True)
    pickled(tmp_path, {"scale": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        checkpoint.read(["scale"])


def test_a_pickle_index_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = pickled_shards(tmp_path / "model")
    write_index(folder, {"scale": "../x.bin"}, "pytorch_model.bin.index.json")
    assert "only files beside the index are read" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_check_finite_counts(dtype: torch.dtype, bad: float) -> None:
    values = torch.ones(4, 5)
    values[1, 2] = values[3, 4] = bad
    with pytest.raises(TensorError, match=r"^here: tensor 'b': 2 of 20 values are NaN or infinite") as caught:
        check_finite({"a": torch.ones(2), "b": values.to(dtype), "c": values}, Path("here"))
    assert "\n" not in str(caught.value)


def test_check_finite_is_not_fooled_by_opposite_infinities_or_a_big_sum() -> None:
    with pytest.raises(TensorError, match="2 of 3"):
        check_finite({"a": torch.tensor([float("inf"), -float("inf"), 0.0])}, "here")
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        check_finite({"a": torch.full((100,), torch.finfo(dtype).max, dtype=dtype)}, "here")


def test_check_finite_looks_at_floats_only() -> None:
    state = {"int": torch.arange(3), "bool": torch.ones(2, dtype=torch.bool), "none": torch.zeros(0)}
    check_finite(state | {"e4m3": torch.ones(2).to(torch.float8_e4m3fn)}, "here")
    if hasattr(torch, "float4_e2m1fn_x2"):
        check_finite({"packed": torch.full((4,), 255, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "here")


def test_check_finite_sees_nan_in_float8() -> None:
    with pytest.raises(TensorError, match="1 of 2"):
        check_finite({"a": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)}, "here")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
@pytest.mark.parametrize("form", FORMS)
def test_no_file_stays_mapped_after_a_read(form: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_sources(tmp_path)[form], allow_pickle=True)
    kept = checkpoint.read(checkpoint.tensors)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert same(kept, tensors())
