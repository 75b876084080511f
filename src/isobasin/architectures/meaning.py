"""What a configuration means for the function that a model computes, and where two configurations differ in it.

Entries are those that the code of the model type reads, found in its source, with the values that they have once
transformers has built the configuration: the forms of its versions are one, and what other tools write beside them is
nothing. Left out are entries that change no output: names, training, caches, sizes that the tensors show, and whatever
only other heads than the given ones read.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobasin.architectures.configuration import Config, key, known
from isobasin.architectures.description import Description
from isobasin.architectures.entries import shown, trying

# Entries of bookkeeping, of training and of generation, and switches of what is returned or how fast.
_SILENT = re.compile(
    r"_(?!remove_final_layer_norm).*|architectures|model_type|transformers_version|(torch_)?dtype|name_or_path|problem_type|return_dict|auto_map"
    r"|initializer_.*|init_.*|.*_init_value|.*dropout.*|.*_pdrop|drop_.*|.*layerdrop|.*_drop_rate|use_cache|output_.*"
    r"|chunk_size_feed_forward|gradient_checkpointing|pretraining_tp|deterministic_flash_attn|reorder_and_upcast_attn"
    r"|apply_spec_augment|mask_(time|feature)_.*|sparse_pred.*|router_aux_loss_coef|router_jitter_noise|.*loss_.*"
    r"|(use_)?auxiliary_.*"
    r"|(bos|sep|cls|mask|decoder_start|forced_\w+)_token_id|keys_to_ignore_at_inference|.*_plan"
)
# Sizes and ties that names and shapes of the tensors show; how far positions are counted says no more (but see
# `_Rotation`).
_SHOWN = re.compile(
    r".*vocab_size|num_labels|id2label|label2id|.*max_position_embeddings|n_positions|n_ctx|max_seq_len"
    r"|max_(source|target)_positions|head_dim|num_key_value_heads|num_kv_heads|tie_word_embeddings|pooler_output_size"
)
_READ = re.compile(r"config((?:\.[a-zA-Z_]\w*)+)|getattr\([\w.]*config, *\"(\w+)\"")
_READ_OF_ROPE = re.compile(r"rope_parameters(?:\.get\(|\[)\"(\w+)\"")
# Sources in which padding is more than a row: positions are counted from it, or the last token before it is read.
_COUNTS_PADDING = re.compile(r"create_position_ids_from_input_ids")
_PADDING = re.compile(r"self\.padding_idx = (\d+)")
_READS_LAST = re.compile(r"GenericForSequenceClassification|pad_token_id is None")
_WORD = re.compile(r"[a-zA-Z_]\w*")
# Code that makes a part of whichever class a configuration inside says.
_OPEN = re.compile(r"\bAuto\w+\._?from_config|load_backbone")
# What a window is that is no shorter than any text.
_HIDES_NOTHING = "beyond all positions"
_POINTS = torch.linspace(-8, 8, 257, dtype=torch.float64)


@dataclass(frozen=True)
class Difference:
    """An entry of two configurations that is not one.

    Attributes:
        entry: Its name in `config.json`; of a nested one with dots.
        a: Its value in the first.
        b: Its value in the second.
    """

    entry: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.entry} is {shown(self.a)} in one and {shown(self.b)} in the other"


@dataclass(frozen=True)
class _Rotation:
    """Frequencies of rotary positions, with what else is read of their parameters.

    Attributes:
        frequencies: Radians per position of every plane, for short and for long inputs, and what scores are scaled by.
        others: What else counts, by name: what the model's code reads of the parameters, and the length of inputs from
            which on frequencies change.
        written: The parameters as they are written.
    """

    frequencies: tuple[Tensor, ...]
    others: Mapping[str, Any]
    written: Mapping[str, Any]

    def same(self, other: _Rotation) -> bool:
        """Whether all positions are rotated alike."""
        pairs = list(zip(self.frequencies, other.frequencies, strict=False))
        alike = len(self.frequencies) == len(other.frequencies) and all(x.shape == y.shape for x, y in pairs)
        return alike and self.others == other.others and all(torch.allclose(x, y, 1e-6, 0) for x, y in pairs)


def _meaning(description: Description, heads: frozenset[str]) -> dict[str, Any]:
    """Every entry that the function of models with these heads depends on, by name, nested ones with dots.

    Raises:
        ArchitectureError: transformers refuses the configuration.
    """
    if not known(description.model_type):
        return _raw(description.entries)
    with trying(f"config.json of model type {description.model_type} can't be read"):
        return {name: value for name, value in _entries(description.config, heads) if value is not None}


def _heads(*descriptions: Description) -> frozenset[str]:
    """The names of the classes that configurations are of; none where one says nothing."""
    named = [each.config.architectures if known(each.model_type) else None for each in descriptions]
    return frozenset(names[0] for names in named if names) if all(named) else frozenset()


def differences(a: Description, b: Description) -> list[Difference]:
    """The entries of two `config.json` in which they mean something else, with what is written there.

    Raises:
        ArchitectureError: transformers refuses one of them.
    """
    heads = _heads(a, b)
    ours, theirs = (_meaning(each, heads) for each in (a, b))
    found: list[Difference] = []
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name), theirs.get(name)
        if name.endswith("pad_token_id") and None in (one, other):
            continue  # only the head of one reads it
        if isinstance(one, _Rotation) and isinstance(other, _Rotation):
            found += [] if one.same(other) else _parameters(name, one, other)
        elif not _same(one, other):
            found.append(Difference(name, *(dict(v.written) if isinstance(v, _Rotation) else v for v in (one, other))))
    return found


def _entries(config: Config, heads: frozenset[str], within: str = "") -> Iterator[tuple[str, Any]]:
    """Names in `config.json` and values of what the code reads; None for what is as if it weren't there."""
    nested: dict[str, Any] = {name: getattr(config, name, None) for name in config.sub_configs}
    source = _source(type(config))
    classifies = any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ())
    for name in sorted(_names(_used(type(config), heads)) - nested.keys()):
        if not _says(name) or not hasattr(config, name):
            continue
        value = getattr(config, name)
        if name == "rope_parameters" and value:
            yield from ((within + entry, rotation) for entry, rotation in _rotations(config, source))
        elif not callable(value):
            yield within + key(config, name), _plain(config, name, value)
    counts = counts_padding(config) or (classifies and _READS_LAST.search(source))
    yield f"{within}pad_token_id", getattr(config, "pad_token_id", None) if counts else None
    yield f"{within}is_causal", False if getattr(config, "is_causal", True) is False else None
    for name, inner in nested.items():
        if inner is not None and hasattr(inner, "sub_configs"):
            yield from _entries(inner, heads, f"{within}{name}.")


def counts_padding(config: Config) -> bool:
    """Whether the code of a model type numbers positions from the number of its padding token on, so that few are left.

    `max_position_embeddings` counts those before the first position too, see `first_position`.
    """
    return _COUNTS_PADDING.search(_source(type(config))) is not None


def first_position(config: Config) -> int:
    """The number of a text's first position: one more than the padding token's, where code counts so, whichever it is.

    The code of some model types has a number of its own for it.
    """
    if not counts_padding(config):
        return 0
    own = _PADDING.search(_source(type(config)))
    return 1 + (int(own[1]) if own else config.pad_token_id or 0)


def _raw(folder_config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a model type that transformers doesn't know, as they are written."""
    return {name: value for name, value in folder_config.items() if _says(name) and not _neutral(value)}


def _says(name: str) -> bool:
    """Whether an entry of this name may change outputs in a way that tensors don't show."""
    return not (_SILENT.fullmatch(name) or _SHOWN.fullmatch(name) or name == "pad_token_id")


def _neutral(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (list, tuple, dict, str)) and not value)


def _plain(config: Config, name: str, value: Any) -> Any:
    """A value without the ways to write it; None if it is as if it weren't there."""
    slides = [kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"]
    if name in ("sliding_window", "layer_types") and not slides and getattr(config, "layer_types", None):
        return None
    if name == "sliding_window" and isinstance(value, int):
        # No None: the code of some types turns by positions only where there is a window.
        return value if value < getattr(config, "max_position_embeddings", math.inf) else _HIDES_NOTHING
    return None if _neutral(value) else list(value) if isinstance(value, tuple) else value


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one: equal, or names of activations that compute the same."""
    if one == other:
        return True
    if not (isinstance(one, str) and isinstance(other, str)):
        return False
    from transformers.activations import ACT2FN

    if one not in ACT2FN or other not in ACT2FN:
        return False
    try:
        values = [ACT2FN[name](_POINTS) for name in (one, other)]
    except Exception:  # some need parameters, or a device
        return False
    return torch.allclose(*values, rtol=1e-6, atol=1e-9)


def _parameters(entry: str, a: _Rotation, b: _Rotation) -> list[Difference]:
    """Which parameters of rotary positions differ."""
    ours, theirs = ({**one.others, **one.written} for one in (a, b))
    names = sorted(ours.keys() | theirs.keys())
    return [Difference(f"{entry}.{n}", ours.get(n), theirs.get(n)) for n in names if ours.get(n) != theirs.get(n)]


def _rotations(config: Config, source: str) -> Iterator[tuple[str, _Rotation | dict[str, Any]]]:
    """The rotary positions, or those of every type of layer; as they are written where transformers can't say."""
    written: dict[str, Any] = config.rope_parameters
    kinds = sorted(set(getattr(config, "layer_types", None) or ())) if "rope_type" not in written else [None]
    for kind in kinds:
        one: Any = written.get(kind) if kind is not None else written
        entry = "rope_parameters" if kind is None else f"rope_parameters.{kind}"
        try:
            yield entry, _rotation(config, source, kind, dict(one))
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, RuntimeError):
            yield entry, written


def _rotation(config: Config, source: str, kind: str | None, one: dict[str, Any]) -> _Rotation:
    """The rotary positions of one type of layer, as transformers computes them."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = one["rope_type"]
    reach = "original_max_position_embeddings" if rope == "longrope" else "max_position_embeddings"
    limit = one.get(reach, getattr(config, reach, None)) if rope == "longrope" or "dynamic" in rope else None
    read = set(_READ_OF_ROPE.findall(source)) - {"rope_type", "rope_theta"}
    others = {reach: limit, **{name: one.get(name) for name in read}}
    if rope == "default":
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dims = int(width * (one.get("partial_rotary_factor") or 1.0))
        frequencies = [1.0 / (one["rope_theta"] ** (torch.arange(0, dims, 2).float() / dims)), torch.ones(())]
    else:
        lengths = (None, 2 * limit) if limit else (None,)
        options: dict[str, Any] = {} if kind is None else {"layer_type": kind}
        made = [ROPE_INIT_FUNCTIONS[rope](config, torch.device("cpu"), seq_len=n, **options) for n in lengths]
        frequencies = [value for found, scale in made for value in (found.float(), torch.tensor(float(scale)))]
    return _Rotation(tuple(frequencies), {name: value for name, value in others.items() if not _neutral(value)}, one)


@cache
def _source(configuration_class: type) -> str:
    """The code that reads a configuration of this class: the modelling files beside it and beside those it extends."""
    texts: list[str] = []
    for parent in configuration_class.__mro__:
        if parent.__module__.startswith(("transformers.models.", "isobasin.models.")):
            folder = Path(inspect.getfile(parent)).parent
            files = sorted(folder.glob("modeling_*.py")) or sorted(folder.glob("*.py"))
            texts += [file.read_text(encoding="utf-8") for file in files]
    return "\n".join(dict.fromkeys(texts))


@cache
def _used(configuration_class: type, heads: frozenset[str]) -> str:
    """What of `_source` these classes use: what they name, and what that names in turn; all of it where that is open.

    It is open where a class is none of that code, or leaves to a configuration which classes it is made of.
    """
    source = _source(configuration_class)
    defined = _defined(source)
    found, left = set[str](), set(heads)
    while name := next(iter(left & defined.keys()), None):
        found.add(name)
        left = (left | set(_WORD.findall(defined[name]))) - found
    text = "\n".join(defined[name] for name in sorted(found))
    return text if heads and heads <= found and not _OPEN.search(text) else source


@cache
def _defined(source: str) -> dict[str, str]:
    """The text of each class, function and constant of some code, by name."""
    lines, found = source.splitlines(), dict[str, str]()
    for node in ast.parse(source).body:
        targets: Sequence[Any] = getattr(node, "targets", (node,))
        for name in (getattr(target, "name", getattr(target, "id", None)) for target in targets):
            if isinstance(name, str):
                found[name] = "\n".join((found.get(name, ""), *lines[node.lineno - 1 : node.end_lineno]))
    return found


@cache
def _names(source: str) -> frozenset[str]:
    """The names of entries that some code reads."""
    found: set[str] = set()
    for chain, name in _READ.findall(source):
        found |= {*chain.split("."), name} - {""}
    return frozenset(found)
