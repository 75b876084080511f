"""What of a folder's `config.json` is a fact about the model, and how large it may be.

A configuration also says how to load a model: which kernels, which Python files, how to split it. None of that is a
fact about its function, and some of it would run code or reach the hub, so it is left out before anything is built.
Sizes are compared with the tensors that are there first: a number in a file is no reason to fill the memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import fields
from functools import cache
from itertools import chain
from math import prod
from typing import Any

from transformers import CONFIG_MAPPING

from isobasin.errors import ArchitectureError, refusing

Shapes = Mapping[str, tuple[int, ...]]

# What every configuration class has and what is a fact about the model nevertheless.
_COMMON = frozenset(
    (
        *("model_type", "architectures", "is_encoder_decoder", "id2label", "label2id", "num_labels", "problem_type"),
        "rope_scaling",
    )
)
# What else is there says how to load a model or what to return besides its outputs, and our loaders decide that.
_LOADING = frozenset(
    (
        *("attn_implementation", "experts_implementation", "auto_map", "return_dict", "torchscript", "use_bfloat16"),
        *("dtype", "torch_dtype", "output_hidden_states", "output_attentions", "use_return_dict", "name_or_path"),
        *("chunk_size_feed_forward", "gradient_checkpointing", "quantization_config", "transformers_version"),
    )
)
# Where transformers looks for a configuration inside: a stray entry of this name would be taken for it.
_TOWERS = ("text_config", "vision_config", "audio_config", "text_encoder", "generator", "decoder", "encoder")

# Numbers of modules in a model, each with tensors of its own: bounded by how many of those there are.
_COUNTS = re.compile(r"(?<!per)_layers?$|^layers?$|experts$|_groups?$|_group_num$|^depths$")
# No tensor need be as large as these: places in a text or a vocabulary, and distances.
_PLACES = re.compile(r"position|token|_ids?$|_index$|sliding|length|distance|max_|seq|theta|factor")
# Entries may be larger than all that is stored, as a head that isn't there; no list of so many is a burden.
_SPARE_COUNT, _SPARE_SIZE, _SPARE_VALUES = 64, 2**16, 2**24


def facts(configuration_class: Any, folder_config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that say what the model computes, nested ones likewise.

    Args:
        configuration_class: Of the model type.
        folder_config: The contents of `config.json`, or of an entry nested there.

    Returns:
        A new dictionary; values are those of `folder_config`, except nested configurations.

    Raises:
        ArchitectureError: `architectures` is no list of names, which transformers doesn't check.
    """
    names: Any = folder_config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ArchitectureError(f"config.json has architectures {shown(names)}: not a list of names of classes")
    found = {name: value for name, value in folder_config.items() if _is_fact(configuration_class, name)}
    return found | {name: facts(inner, found[name]) for name, inner in _nested(configuration_class, found)}


def _nested(configuration_class: Any, entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names of the nested configurations among some entries, with their classes."""
    for name, inner in configuration_class.sub_configs.items():
        value = entries.get(name)
        if not isinstance(value, Mapping):
            continue
        if not hasattr(inner, "sub_configs"):  # the entry itself says which class it is of
            model_type = value.get("model_type", configuration_class.sub_configs_defaults[name].model_type)
            inner = CONFIG_MAPPING[model_type]
        yield name, inner


def _is_fact(configuration_class: Any, name: str) -> bool:
    """Whether an entry says what the model computes: no option of loaders, no method's or plan's name."""
    if name in _LOADING:
        return False
    if name in _COMMON or name in _declared(configuration_class):
        return True
    return not name.startswith("_") and name not in _TOWERS and not hasattr(configuration_class, name)


@cache
def _declared(configuration_class: Any) -> Set[str]:
    """The entries that a class has, under both of their names; what sets them may be a property."""
    own = {field.name for field in fields(configuration_class)} | configuration_class.attribute_map.keys()
    return own | {name for name in dir(configuration_class) if name in ("out_features", "out_indices")}


def check_sizes(configuration_class: Any, folder_config: Mapping[str, Any], shapes: Shapes, within: str = "") -> None:
    """Refuse numbers for which the stored tensors leave no room, before anything is built from them.

    The bounds are loose: they keep time and memory in proportion to the files. Whether a size is right is seen when
    each tensor's shape is compared.

    Args:
        configuration_class: Of the model type.
        folder_config: The contents of `config.json`, or of an entry nested there.
        shapes: Shape of every stored tensor.
        within: What to put before an entry's name in messages.

    Raises:
        ArchitectureError: With the first such entry.
    """
    for name, inner in _nested(configuration_class, folder_config):
        check_sizes(inner, folder_config[name], shapes, f"{within}{name}.")
    sizes, counts = _bounds(shapes)
    for name in sorted(folder_config.keys() & (_declared(configuration_class) | {"num_labels"})):
        largest = 0 if _PLACES.search(name) else max(_integers(folder_config[name]), default=0)
        bound = counts if _COUNTS.search(name) else sizes
        if largest > bound:
            raise ArchitectureError(
                f"config.json has {within}{name} {shown(largest)}: the stored tensors have room for {bound} at most; "
                "restore config.json"
            )


def _bounds(shapes: Shapes) -> tuple[int, int]:
    """What sizes, and what numbers of modules, may be at most: by tensors' axes and by the numbers in their names."""
    longest = max((size for shape in shapes.values() for size in shape), default=0)
    indices = (int(part) for name in shapes for part in name.split(".") if part.isdecimal() and len(part) < 9)
    stacked = (shape[0] for shape in shapes.values() if len(shape) == 3)
    modules = 1 + max(max(indices, default=0), max(stacked, default=0))
    return max(_SPARE_SIZE, 2 * longest), _SPARE_COUNT + 2 * modules


def check_extent(model: Any, shapes: Shapes) -> None:
    """Refuse a model that would hold many more values than are stored, before it gets any memory.

    Args:
        model: A `torch.nn.Module` on the device "meta".
        shapes: Shape of every stored tensor.

    Raises:
        ArchitectureError: Names its largest tensor that is not as large in the file.
    """
    held = dict(chain(model.named_parameters(), model.named_buffers()))
    stored, total = sum(map(prod, shapes.values())), sum(x.numel() for x in held.values())
    if total > 2 * stored + _SPARE_VALUES:
        longest = {prod(shape) for shape in shapes.values()}
        name = max(held, key=lambda n: held[n].numel() if held[n].numel() not in longest else 0)
        raise ArchitectureError(
            f"config.json describes a model of {total:.3g} values, and {stored:.3g} are stored: {name!r} alone would "
            f"have shape {tuple(held[name].shape)}; restore config.json"
        )


def _integers(value: Any) -> Iterator[int]:
    """The integers of an entry, and of lists in it."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack += item
        elif isinstance(item, int):
            yield item


def trying(what: str) -> AbstractContextManager[None]:
    """Say of any failure inside that the configuration can't be used: transformers validates in many ways, and late.

    Args:
        what: What was tried, as in "transformers refuses config.json of model type gpt2".

    Raises:
        ArchitectureError: Instead of whatever was raised that isn't one of ours.
    """
    return refusing(ArchitectureError, lambda reason: f"{what}: {reason}", _reason)


def shown(value: object) -> str:
    """A value of a file in one line that isn't too long."""
    return _cut(" ".join(repr(value).split()), 80)


def _reason(error: BaseException) -> str:
    """A library's message in one line; where it is only a name or a number, with the kind of failure."""
    text = " ".join(str(error).split())
    return _cut(text if isinstance(error, ValueError) and text else f"{type(error).__name__} {text}".strip(), 300)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
