"""Reading a transformers configuration: sizes, rotary positions, and what is refused in any family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import fields
from typing import Any, TypeGuard

from transformers import CONFIG_MAPPING

from isobasin.architectures.entries import Shapes, check_sizes, facts, shown, trying
from isobasin.architectures.layouts import Sizes
from isobasin.errors import ArchitectureError

# A transformers configuration. Its attributes differ per family and are declared nowhere in common.
Config = Any

# With any of these the attention is another function of its tensors than the one that the families describe.
_REFUSED = {
    "text_config": "nested configurations are not supported, give a checkpoint of the text model alone",
    "vision_config": "nested configurations are not supported, give a checkpoint of the vision model alone",
    "quantization_config": "quantised weights can't be moved, dequantise the checkpoint first",
    "add_cross_attention": "cross-attention is not supported",
    "is_encoder_decoder": "encoder-decoder models are not supported",
    "pruned_heads": "pruned heads are not supported, save the model without them",
    "per_layer_config": "layers with configurations of their own are not supported",
}

# Each of these turns plane p by position times a frequency of its own, whatever it does to the frequencies,
# so the group is the same. Any other type is refused, because it may turn features in another order.
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

# Patches along the side of a window whose table of position biases is listed.
_WINDOW = 512


def check_supported(folder_config: Mapping[str, Any], accepted: Iterable[str] = (), within: str = "") -> None:
    """Refuse what the family doesn't support.

    Args:
        folder_config: The contents of `config.json`.
        accepted: Entries that the family accounts for; in a configuration nested there nothing is accepted.
        within: What to put before an entry's name in messages.

    Raises:
        ArchitectureError: With the first such entry and what to do.
    """
    for name, reason in _REFUSED.items():
        value = folder_config.get(name)
        if name not in accepted and value:
            raise ArchitectureError(f"config.json has {within}{name}: {reason}")
        if name in accepted and isinstance(value, Mapping):
            check_supported(value, within=f"{name}.")
    positions = folder_config.get("position_embedding_type")
    if positions not in (None, "absolute"):
        # transformers 4 added learned distances to the scores; transformers 5 ignores the setting.
        name = f"{within}position_embedding_type"
        raise ArchitectureError(f"config.json has {name} {shown(positions)}: only 'absolute' is supported")


def known(model_type: object) -> TypeGuard[str]:
    """Whether what a configuration gives for its model type is one that transformers has, or we have."""
    if not isinstance(model_type, str):
        return False
    if model_type not in CONFIG_MAPPING:
        # Ours; not at the top, because model classes take seconds to import.
        from isobasin.models import ensure_registered

        ensure_registered()
    return model_type in CONFIG_MAPPING


def build(model_type: str, folder_config: Mapping[str, Any], shapes: Shapes | None = None) -> Config:
    """The transformers configuration of a folder, with its defaults filled in: what a model is to be loaded with.

    It has the facts about the model only (`entries.facts`): no option of a loader, and nothing that names code.

    Args:
        model_type: The model type, one that transformers knows.
        folder_config: The contents of `config.json`.
        shapes: Shape of every stored tensor, which bound the sizes; None for a configuration of our own.

    Raises:
        ArchitectureError: transformers refuses it, or a size is out of all proportion to the tensors.
    """
    if not known(model_type):
        raise ArchitectureError(f"model type {shown(model_type)} is unknown to transformers")
    configuration_class: Any = CONFIG_MAPPING[model_type]
    with trying(f"transformers refuses config.json of model type {model_type}"):
        if shapes is not None:
            check_sizes(configuration_class, folder_config, shapes)
        # A copy, because transformers fills defaults into the nested dictionaries that it is given.
        return configuration_class.from_dict(deepcopy(facts(configuration_class, folder_config)))


def described_by(folder_config: Mapping[str, Any], shapes: Shapes | None = None) -> Config:
    """`build` for the model type that a folder's configuration says it is of; arguments and errors as there."""
    return build(str(folder_config.get("model_type")), folder_config, shapes)


def both_sides(config: Config, name: str) -> tuple[int, int]:
    """Rows and columns of an entry that may be one number for both."""
    value = getattr(config, name)
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def distances(rows: int, columns: int) -> int:
    """In how many ways two patches of a window can lie to each other."""
    if not (0 < rows <= _WINDOW and 0 < columns <= _WINDOW):
        raise ArchitectureError(f"windows of {rows} × {columns} patches are not supported: from 1 to {_WINDOW} a side")
    return (2 * rows - 1) * (2 * columns - 1)


def refuse(config: Config, name: str, reason: str) -> None:
    """Refuse a configuration in which a switch is on that makes the attention another function of its tensors."""
    value = getattr(config, name)
    if value is not None and value is not False:
        raise ArchitectureError(f"config.json has {name}: {reason}")


def switched(config: Config, switch: bool | str) -> bool:
    """Whether an entry is on, if the model type has one of that name: elsewhere nobody reads it; or what is given."""
    if isinstance(switch, bool):
        return switch
    return any(field.name == switch for field in fields(config)) and bool(getattr(config, switch))


def key(config: Config, name: str) -> str:
    """What the attribute `name` is called in this model type's `config.json`."""
    return config.attribute_map.get(name, name)


def described(config: Config) -> str:
    """The values of `config.json` from which the shapes follow, in words."""
    heads = ("num_attention_heads", "decoder_attention_heads", "num_key_value_heads", "head_dim")
    latent = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")
    return ", ".join(_values(config, ("hidden_size", *heads, *latent)))


def counted(config: Config) -> str:
    """The values of `config.json` from which the number of layers follows, in words."""
    decoder = ("decoder_layers", "num_decoder_layers")
    groups = ("num_hidden_groups", "inner_group_num", "depths")
    return ", ".join(_values(config, ("num_hidden_layers", *decoder, *groups)))


def _values(config: Config, names: Iterable[str]) -> list[str]:
    """Those of these values that there are, under the names that `config.json` has, nested configurations included."""
    there = [(key(config, name), getattr(config, name, None)) for name in names]
    found = list(dict.fromkeys(f"{name}={value}" for name, value in there if value is not None))
    for nested in sorted(config.sub_configs):
        found += [f"{nested}.{value}" for value in _values(getattr(config, nested), names)]
    return found


def layers(config: Config, entry: str = "num_hidden_layers") -> int:
    """The number of layers that an entry gives, at least one."""
    count = getattr(config, entry)
    if count < 1:
        raise ArchitectureError(f"{key(config, entry)} is {count}: there is nothing to align")
    return count


def sizes(
    config: Config,
    entry: str = "num_attention_heads",
    *,
    kv_heads: int | None = None,
    features: int | None = None,
    stage: tuple[int, int] | None = None,
) -> Sizes:
    """The checked sizes of a model's attention blocks.

    Args:
        config: The configuration.
        entry: Which entry gives the number of heads.
        kv_heads: Number of key/value heads; None if every head has its own.
        features: Width of a head; None if the heads share the model width.
        stage: Width and heads of one of several stages, where the configuration gives more than one of each.
    """
    width: int = config.hidden_size if stage is None else stage[0]
    heads: int = getattr(config, entry) if stage is None else stage[1]
    kv_heads = heads if kv_heads is None else kv_heads
    if width < 1 or heads < 1 or kv_heads < 1 or (features is not None and features < 1):
        raise ArchitectureError(f"sizes must be positive: {described(config)}")
    names = key(config, "hidden_size"), key(config, entry)
    if features is None and width % heads:
        raise ArchitectureError(f"{names[0]} {width} is not a multiple of {names[1]} {heads}")
    if heads % kv_heads:
        raise ArchitectureError(f"{names[1]} {heads} is not a multiple of num_key_value_heads {kv_heads}")
    return Sizes(width, heads, kv_heads, width // heads if features is None else features)


def rotated(config: Config, features: int, *, by_layer_type: bool = False, partial: bool = False) -> int:
    """How many features of a head rotate, in all layers alike, from `rope_parameters`, whose type must be a known one.

    Args:
        config: The configuration.
        features: Width of a head.
        by_layer_type: Whether the family has `rope_parameters` for each of its `layer_types`.
        partial: Whether the family's attention can leave features unrotated. Where it can't, transformers ignores
            `partial_rotary_factor` or fails on it, depending on the type of rotary positions, so it is refused.
    """
    ropes: list[dict[str, Any]] = [config.rope_parameters]
    if by_layer_type:
        ropes = [config.rope_parameters[kind] for kind in sorted(set(config.layer_types))]
    shares = {_rotary_share(rope) for rope in ropes}
    if shares != {1.0} and not partial:
        raise ArchitectureError(f"partial_rotary_factor is not supported for model type {config.model_type}")
    if len(shares) > 1:
        raise ArchitectureError(f"layers that rotate other shares of a head, {sorted(shares)}, are not supported")
    return int(features * shares.pop())


def _rotary_share(rope: dict[str, Any]) -> float:
    """The share of a head's features that rotates."""
    kind = rope.get("rope_type")
    if kind not in _ROPE_TYPES:
        raise ArchitectureError(
            f"rope_parameters of rope_type {shown(kind)} are not supported, only {', '.join(_ROPE_TYPES)}"
        )
    factor = rope.get("partial_rotary_factor")
    return 1.0 if factor is None else float(factor)
