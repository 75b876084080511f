"""Other files for the same function: what people's checkpoints look like beside what `save_pretrained` writes.

Every form changes a folder in place and says whether there was anything to change. Whether transformers takes the
result for the same model is for the caller to see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isobasin.architectures.registry import family

Tensors = dict[str, Tensor]
Form = Callable[[Path], bool]

_WEIGHTS = "model.safetensors"
_PROJECTIONS = ("q_proj.weight", "qkv_proj.weight", "query_key_value.weight", "o_proj.weight")
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids", "embeddings.token_type_ids")


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> bool:
    """Change the tensors of a checkpoint of one file; false if nothing changed."""
    before = load_file(folder / _WEIGHTS)
    after = change(dict(before))
    if after.keys() == before.keys() and all(after[name] is before[name] for name in after):
        return False
    save_file({name: tensor.clone() for name, tensor in after.items()}, folder / _WEIGHTS, {"format": "pt"})
    return True


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> bool:
    """Change config.json; false if nothing changed."""
    path = folder / "config.json"
    before = json.loads(path.read_text())
    after = change(json.loads(path.read_text()))
    path.write_text(json.dumps(after))
    return after != before


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of `config.json`."""
    return json.loads((folder / "config.json").read_text())


def usual(folder: Path) -> bool:
    """As `save_pretrained` writes it."""
    return True


def without_prefix(folder: Path) -> bool:
    """The base model's names as they are, as a checkpoint of it alone has them."""
    prefixes = family(_model_type(folder)).prefixes

    def change(tensors: Tensors) -> Tensors:
        return {next((n.removeprefix(p) for p in prefixes if n.startswith(p)), n): t for n, t in tensors.items()}

    return edit_tensors(folder, change)


def with_prefix(folder: Path) -> bool:
    """A base model's tensors under the names that a model with a head gives them."""
    prefixes = family(_model_type(folder)).prefixes
    if not prefixes:
        return False

    def change(tensors: Tensors) -> Tensors:
        if any(name.startswith(prefixes) for name in tensors):
            return tensors
        return {prefixes[0] + name: tensor for name, tensor in tensors.items()}

    return edit_tensors(folder, change)


def with_buffers(folder: Path) -> bool:
    """With the masks, rotary tables and position numbers that older versions of transformers stored."""
    buffers = (*family(_model_type(folder)).buffers, *_BUFFERS)

    def change(tensors: Tensors) -> Tensors:
        for buffer in buffers:
            module = buffer.split(".", 1)[0]
            around = {name[: name.index(f".{module}.") + 1] for name in tensors if f".{module}." in name}
            # Rotary tables lay in modules that hold nothing else, inside those of attention.
            around = around or {f"{name.rsplit('.', 2)[0]}." for name in tensors if name.endswith(_PROJECTIONS)}
            tensors |= {f"{place}{buffer}": torch.ones(4) for place in sorted(around)}
        return tensors

    return edit_tensors(folder, change)


def tied_twice(folder: Path) -> bool:
    """With the copies of tied tensors that pickles, and some converters, store too."""
    import transformers

    config = read_config(folder)
    architecture: Any = getattr(transformers, (config.get("architectures") or [""])[0], None)
    if architecture is None:
        return False
    with torch.device("meta"):
        tied = dict(architecture(architecture.config_class.from_pretrained(folder)).all_tied_weights_keys)

    def change(tensors: Tensors) -> Tensors:
        return tensors | {copy: tensors[kept] for copy, kept in tied.items() if kept in tensors}

    return edit_tensors(folder, change)


def old_gains(folder: Path) -> bool:
    """Gains and biases of LayerNorms under the names of TensorFlow's, as in the first BERTs."""

    def change(tensors: Tensors) -> Tensors:
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        return {next((n.replace(a, b) for a, b in names.items() if n.endswith(a)), n): t for n, t in tensors.items()}

    return edit_tensors(folder, change)


def config_of_4(folder: Path) -> bool:
    """With the configuration that transformers 4 wrote: rotary positions in two entries, an old name of the type."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        if "dtype" in config:
            config["torch_dtype"] = config.pop("dtype")
        rope = config.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            del config["rope_parameters"]
            config["rope_theta"] = rope.pop("rope_theta")
            scaled = rope.get("rope_type", "default") != "default" or "partial_rotary_factor" in rope
            config["rope_scaling"] = rope if scaled else None
        config["transformers_version"] = "4.46.0"
        return config

    return edit_config(folder, change)


def foreign_entries(folder: Path) -> bool:
    """With entries of config.json that other tools leave, and that no model reads."""
    return edit_config(folder, lambda config: config | {"unsloth_version": "2025.1", "_name_or_path": "elsewhere"})


def no_architectures(folder: Path) -> bool:
    """Without the entry that names the class of the model."""
    return edit_config(folder, lambda config: {k: v for k, v in config.items() if k != "architectures"})


def unknown_class(folder: Path) -> bool:
    """With a class that transformers doesn't have."""
    return edit_config(folder, lambda config: config | {"architectures": ["ElsewhereForEverything"]})


def in_shards(folder: Path) -> bool:
    """In two files and an index."""
    tensors = load_file(folder / _WEIGHTS)
    (folder / _WEIGHTS).unlink()
    names, weight_map = sorted(tensors), dict[str, str]()
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return True


def reordered(folder: Path) -> bool:
    """With the tensors in another order, and without metadata."""
    tensors = load_file(folder / _WEIGHTS)
    save_file(dict(reversed(tensors.items())), folder / _WEIGHTS)
    return True


def _model_type(folder: Path) -> str:
    return read_config(folder)["model_type"]


FORMS: dict[str, Form] = {
    "as saved": usual,
    "base names without prefix": without_prefix,
    "base model under a prefix": with_prefix,
    "mask and rotary buffers": with_buffers,
    "tied tensor stored twice": tied_twice,
    "gamma and beta": old_gains,
    "config of transformers 4": config_of_4,
    "foreign entries": foreign_entries,
    "no architectures": no_architectures,
    "unknown class": unknown_class,
    "shards": in_shards,
    "other order, no metadata": reordered,
}
"""By what a table of situations calls them."""
