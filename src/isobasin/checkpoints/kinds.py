"""Folders and files of other kinds than a Hugging Face checkpoint, recognised by name, and what to do with each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from isobasin.errors import CheckpointError

ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class _Kind:
    """One kind: names that give it away, all of which are there, what it is, and what to do.

    `{name}` stands for what the first of the names was found to be, `{folder}` for the folder.
    """

    names: tuple[str, ...]
    what: str
    advice: str


MERGE = "merge it into its base first: PeftModel.from_pretrained(base, {folder!r}).merge_and_unload(), and save that"

_GATHER = "gather its weights with DeepSpeed's zero_to_fp32.py"
_NATIVE = "download the files that transformers reads, or convert these with its {script}"
_OLD = "convert them with transformers 4: from_pretrained({option}=True)"
_INDEX = "download the index as well, or save the model again"
_EXPORTED = "pass the checkpoint that it was exported from"
_SAVE = "load it where it comes from, and save_pretrained the model"

# The first that fits is said.
_KINDS = (
    _Kind((ADAPTER,), "a PEFT adapter, not a whole model", MERGE),
    _Kind(("adapter_model.*",), "an adapter, not a whole model", MERGE),
    _Kind(
        ("model_index.json",),
        "a diffusers pipeline of several models",
        "pass one of them, such as {folder}/text_encoder",
    ),
    _Kind(
        ("*.gguf",),
        "a GGUF file ({name}), whose tensors are packed",
        "unpack it: AutoModelForCausalLM.from_pretrained({folder!r}, gguf_file={name!r}), and save that",
    ),
    _Kind(("zero_to_fp32.py",), "a DeepSpeed checkpoint", "gather it: python {folder}/zero_to_fp32.py {folder} OUT"),
    _Kind(("global_step*",), "a DeepSpeed checkpoint ({name})", _GATHER),
    _Kind(("zero_pp_rank_*",), "a part of a DeepSpeed checkpoint", _GATHER),
    _Kind(
        ("mp_rank_*",),
        "one of a model-parallel training (DeepSpeed or Megatron: {name})",
        "convert it with zero_to_fp32.py, or with Megatron's converter to Hugging Face",
    ),
    _Kind(("pytorch_model_fsdp_*",), "an FSDP checkpoint", "gather it: accelerate merge-weights {folder}/{name} OUT"),
    _Kind(("*.distcp",), "a distributed checkpoint of torch", "gather it: accelerate merge-weights {folder} OUT"),
    _Kind(
        ("snapshots", "blobs"),
        "a model's folder in the hub cache",
        "pass the hub id, or the folder of one revision, such as {folder}/snapshots/<revision>",
    ),
    _Kind(
        ("model-*-of-*.safetensors",),
        "weights in parts ({name}) without model.safetensors.index.json, which says what is in each",
        _INDEX,
    ),
    _Kind(
        ("pytorch_model-*-of-*.bin",),
        "weights in parts ({name}) without pytorch_model.bin.index.json, which says what is in each",
        _INDEX,
    ),
    _Kind(("model.*.safetensors",), "only a variant of the weights ({name})", "rename it to model.safetensors"),
    _Kind(
        ("consolidated*.safetensors", "params.json"),
        "weights in Mistral's own format ({name})",
        _NATIVE.replace("{script}", "convert_mistral_weights_to_hf.py"),
    ),
    _Kind(
        ("consolidated*.pth",),
        "weights in Llama's own format ({name})",
        _NATIVE.replace("{script}", "convert_llama_weights_to_hf.py"),
    ),
    _Kind(("weights*.npz",), "MLX weights ({name})", "save them as safetensors under transformers' names"),
    _Kind(("tf_model*.h5",), "TensorFlow weights ({name})", _OLD.replace("{option}", "from_tf")),
    _Kind(("flax_model*.msgpack",), "Flax weights ({name})", _OLD.replace("{option}", "from_flax")),
    _Kind(("*.onnx",), "an ONNX graph ({name})", _EXPORTED),
    _Kind(("onnx",), "an ONNX export", _EXPORTED),
    _Kind(("*.nemo",), "a NeMo archive ({name})", "convert it with NeMo's exporter to Hugging Face"),
    _Kind(("modules.json",), "a model in modules, each in a sub-folder", "pass the one that has config.json"),
    _Kind(("checkpoint-*",), "a training's folder", "pass one of its checkpoints, such as {folder}/{name}"),
    _Kind(("original",), "weights in another format ({name})", "download the weights that transformers reads"),
    _Kind(("optimizer.*",), "an optimizer's state ({name})", "pass the folder that the model was saved to"),
    _Kind(("*.ckpt",), "a checkpoint of a trainer ({name})", _SAVE),
    _Kind(("*.pt",), "a file of torch ({name})", _SAVE),
    _Kind(("*.pth",), "a file of torch ({name})", _SAVE),
)


def other_kind(folder: Path, names: list[str]) -> str | None:
    """What a folder without a checkpoint is instead, in a line, by the names of what is in it; None if unknown."""
    for kind in _KINDS:
        found = [next((name for name in names if fnmatch(name, pattern)), None) for pattern in kind.names]
        if all(found):
            place = {"name": found[0], "folder": os.fspath(folder)}
            return f"{folder}: {kind.what.format(**place)}: {kind.advice.format(**place)}"
    return None


def refuse_adapter(folder: Path, names: list[str]) -> None:
    """Refuse weights with an adapter beside them, which transformers adds to them where peft is installed.

    Raises:
        CheckpointError: Naming the adapter.
    """
    if ADAPTER in names:
        reason = f"{ADAPTER} beside the weights: transformers with peft adds that adapter to them"
        raise CheckpointError(f"{folder}: {reason}: merge it (merge_and_unload), or move it to another folder")
