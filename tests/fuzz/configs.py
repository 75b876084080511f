"""Damage to `config.json`: entries of other types and sizes, and entries that loaders act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .mutation import VALUES, Draw, Mutation, deep

_SWITCHES = (
    *("architectures", "attn_implementation", "_attn_implementation", "experts_implementation", "auto_map"),
    *("return_dict", "torchscript", "attribute_map", "base_model_tp_plan", "base_model_pp_plan", "text_config"),
    *("vision_config", "dtype", "torch_dtype", "id2label", "label2id", "num_labels", "problem_type", "model_type"),
    *("quantization_config", "tie_word_embeddings", "is_encoder_decoder", "is_decoder", "rope_scaling"),
    *("rope_parameters", "rope_theta", "layer_types", "output_hidden_states", "output_attentions", "use_cache"),
    *("chunk_size_feed_forward", "transformers_weights", "per_layer_config", "pruned_heads", "tokenizer_class"),
    *("pad_token_id", "eos_token_id", "sub_configs", "to_dict", "__class__", "unsloth_version", "_name_or_path"),
)
_SIZES = (0, -1, 1, 3, 10**4, 10**6, 10**7, 10**9, 2**40, 10**30, 1e7)


def _changed(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def _entries(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def _another_type(draw: Draw, folder: Path) -> None:
    _changed(folder, **{draw.choice(sorted(_entries(folder))): draw.choice(VALUES)})


def _a_switch(draw: Draw, folder: Path) -> None:
    _changed(folder, **{draw.choice(_SWITCHES): draw.choice(VALUES)})


def _several(draw: Draw, folder: Path) -> None:
    names = draw.sample([*sorted(_entries(folder)), *_SWITCHES], 3)
    _changed(folder, **{name: draw.choice(VALUES) for name in names})


def _a_size(draw: Draw, folder: Path) -> None:
    numbers = sorted(n for n, x in _entries(folder).items() if isinstance(x, int) and not isinstance(x, bool))
    _changed(folder, **{draw.choice([*numbers, "num_labels"]): draw.choice(_SIZES)})


def _nearly(draw: Draw, folder: Path) -> None:
    """A number that is off by a little, or by a factor."""
    numbers = {n: x for n, x in _entries(folder).items() if isinstance(x, (int, float)) and not isinstance(x, bool)}
    name = draw.choice(sorted(numbers))
    _changed(folder, **{name: draw.choice((numbers[name] + 1, numbers[name] - 1, 2 * numbers[name], -numbers[name]))})


def _as_text(draw: Draw, folder: Path) -> None:
    entries = _entries(folder)
    name = draw.choice(sorted(entries))
    _changed(folder, **{name: str(entries[name])})


def _left_out(draw: Draw, folder: Path) -> None:
    entries = _entries(folder)
    for name in draw.sample(sorted(entries), draw.choice((1, 1, 5))):
        del entries[name]
    (folder / "config.json").write_text(json.dumps(entries))


def _nested(draw: Draw, folder: Path) -> None:
    entries = _entries(folder)
    inner = [name for name, value in entries.items() if isinstance(value, dict) and value]
    name = draw.choice(inner) if inner else "text_config"
    nested = dict(entries.get(name) or {"hidden_size": 32})
    nested[draw.choice(sorted(nested))] = draw.choice(VALUES)
    _changed(folder, **{name: nested})


def _of_code(draw: Draw, folder: Path) -> None:
    """Names Python of the folder's own, which must not run."""
    (folder / "own.py").write_text("raise SystemExit(99)\n")
    own = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForCausalLM": "own.Model"}
    _changed(folder, auto_map=own, **draw.choice(({}, {"model_type": "own"}, {"architectures": ["own.Model"]})))


def _another_class(draw: Draw, folder: Path) -> None:
    names = ("BertModel", "GPT2LMHeadModel", "Unknown", "AutoModel", "pipeline", "LlamaForSequenceClassification", "")
    _changed(folder, architectures=draw.choice(([draw.choice(names)], [draw.choice(names), "x"], draw.choice(names))))


def _written(draw: Draw, folder: Path) -> None:
    texts = ("", "{}", "[]", "null", "3", '"x"', "{", '{"model_type": "gpt2"}', '{"n_layer": 1e999}', "\ufeff{}")
    texts = (*texts, json.dumps(deep(5000)) if draw.random() < 0.2 else "[" * 10**5, '{"a": 1' + "0" * 5000 + "}")
    (folder / "config.json").write_text(draw.choice(texts))


CONFIGS = (
    Mutation("config", "entry of another type", "checkpoint", _another_type),
    Mutation("config", "switch", "checkpoint", _a_switch),
    Mutation("config", "several entries", "checkpoint", _several),
    Mutation("config", "size", "checkpoint", _a_size),
    Mutation("config", "nearly right", "checkpoint", _nearly),
    Mutation("config", "as text", "checkpoint", _as_text),
    Mutation("config", "left out", "checkpoint", _left_out),
    Mutation("config", "nested", "checkpoint", _nested),
    Mutation("config", "code", "checkpoint", _of_code),
    Mutation("config", "another class", "checkpoint", _another_class),
    Mutation("config", "another text", "checkpoint", _written),
)
