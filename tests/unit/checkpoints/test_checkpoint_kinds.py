"""Folders of other kinds are recognised by name, and sub-folders that belong to the model go along with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_folders import contents, single, write_config
from safetensors.torch import save_file

from isobasin.checkpoints import Checkpoint, resolve, write_checkpoint
from isobasin.errors import CheckpointError, IsobasinWarning

KINDS = {
    "adapter_config.json adapter_model.safetensors": "PEFT adapter.*merge_and_unload",
    "config.json adapter_model.bin": "an adapter.*merge_and_unload",
    "config.json model.safetensors adapter_config.json": "beside the weights.*merge_and_unload",
    "config.json model-Q4_K_M.gguf": r"GGUF.*gguf_file='model-Q4_K_M.gguf'",
    "config.json zero_to_fp32.py global_step10/": "DeepSpeed.*python .*zero_to_fp32.py",
    "config.json global_step10/": "DeepSpeed.*zero_to_fp32.py",
    "zero_pp_rank_0_mp_rank_00_model_states.pt": "DeepSpeed.*zero_to_fp32.py",
    "mp_rank_00/ latest_checkpointed_iteration.txt": "Megatron",
    "config.json pytorch_model_fsdp_0/": "FSDP.*accelerate merge-weights",
    "__0_0.distcp .metadata": "distributed checkpoint.*accelerate merge-weights",
    "blobs/ refs/ snapshots/": "hub cache.*snapshots/",
    "config.json model-00001-of-00003.safetensors model-00003-of-00003.safetensors": "without model.safetensors.index",
    "config.json pytorch_model-00001-of-00002.bin": "without pytorch_model.bin.index.json",
    "config.json model.fp16.safetensors": "variant.*model.fp16.safetensors.*rename",
    "consolidated.safetensors params.json tekken.json": "Mistral's own format.*convert_mistral_weights_to_hf",
    "consolidated.00.pth params.json": "Llama's own format.*convert_llama_weights_to_hf",
    "config.json weights.npz": "MLX",
    "config.json tf_model.h5": "TensorFlow.*from_tf=True",
    "config.json flax_model.msgpack": "Flax.*from_flax=True",
    "config.json model.onnx": "ONNX.*exported from",
    "config.json onnx/": "ONNX.*exported from",
    "model_index.json unet/ text_encoder/": "diffusers pipeline.*text_encoder",
    "modules.json 0_Transformer/": "modules.*config.json",
    "checkpoint-500/ checkpoint-1000/": "checkpoints, such as .*checkpoint-1000",
    "config.json optimizer.pt scheduler.pt": "optimizer.*saved to",
    "config.json optimizer.bin": "optimizer.*saved to",
    "config.json original/": "another format",
    "last.ckpt": "trainer",
    "config.json something.pth": "torch",
}


@pytest.mark.parametrize("names", KINDS)
def test_a_folder_of_another_kind_is_named(names: str, tmp_path: Path) -> None:
    for name in names.split():
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=KINDS[names]) as caught:
        Checkpoint.open(tmp_path, allow_pickle=True)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("x.gguf", "GGUF.*gguf_file='x.gguf'"), ("model.safetensors", "not a folder"), ("a.ckpt", "trainer")],
)
def test_a_file_of_another_kind_is_named(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=words):
        resolve(tmp_path / name)


def sentence_transformer(folder: Path, modules: object) -> Path:
    """A folder whose own model is one of several modules."""
    single(folder)
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling", "2_Dense/deep", "3_Other", "onnx"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(name)
    for name in ("2_Dense", "2_Dense/deep", "3_Other"):
        save_file({"linear.weight": torch.ones(2)}, folder / name / "model.safetensors")
    (folder / "onnx" / "model.onnx").touch()
    return folder


def test_modules_are_copied_whole_and_other_weights_left_out_with_a_word(tmp_path: Path) -> None:
    modules = [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "2_Dense/"}]
    source = sentence_transformer(tmp_path / "source", modules)
    with pytest.warns(IsobasinWarning, match=r"out: without 3_Other, onnx of .*source \(other weights\)"):
        write_checkpoint(Checkpoint.open(source), tmp_path / "out", [])
    wanted = {name: data for name, data in contents(source).items() if not name.startswith(("3_Other", "onnx"))}
    assert contents(tmp_path / "out") == wanted


def test_a_module_inside_another_folder(tmp_path: Path) -> None:
    source = sentence_transformer(tmp_path / "source", [{"path": "2_Dense/deep"}, {"path": "../x"}, {"path": 3}, None])
    with pytest.warns(IsobasinWarning, match="without 2_Dense/model.safetensors, 3_Other, onnx of"):
        write_checkpoint(Checkpoint.open(source), tmp_path / "out", [])
    assert (tmp_path / "out" / "2_Dense" / "deep" / "model.safetensors").exists()


@pytest.mark.parametrize("modules", [{}, "x", None, [3], [{"path": "/"}], [{"path": "."}]])
def test_a_list_of_modules_that_names_none(modules: object, tmp_path: Path) -> None:
    source = sentence_transformer(tmp_path / "source", modules)
    with pytest.warns(IsobasinWarning, match="without 2_Dense, 3_Other, onnx of"):
        write_checkpoint(Checkpoint.open(source), tmp_path / "out", [])


def test_an_index_without_metadata_is_refused_as_transformers_refuses_it(tmp_path: Path) -> None:
    write_config(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    for metadata in ({}, {"metadata": None}, {"metadata": []}, {"metadata": "x"}):
        index = {"weight_map": {"a": "x.safetensors"}, **metadata}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match='has no "metadata" object'):
            Checkpoint.open(tmp_path)
