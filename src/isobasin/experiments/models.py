"""Untrained transformers models from an experiment's settings."""

from __future__ import annotations

from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from isobasin.architectures.meaning import first_position
from isobasin.architectures.registry import family
from isobasin.choices import Positions, TaskKind, Trained
from isobasin.errors import ArchitectureError, refusing
from isobasin.experiments.settings import CLASSES, MOST_PARAMETERS, ModelSettings
from isobasin.loading import quiet_transformers
from isobasin.tasks.kind import LOADERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SIZES = {
    "layers": ("num_hidden_layers",),
    "width": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "feedforward": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "hidden_dim"),
    "activation": ("hidden_act", "activation_function", "activation", "hidden_activation"),
}
"""What configurations of transformers call what a model's entries say, the usual name first."""

_DROPOUTS = ("dropout", "dropout_prob", "pdrop")
"""What the names of all probabilities of dropout end with."""

_POSITIONS = "max_position_embeddings"
# What entries of the model or of its data say too, besides what is renamed above.
_SAID = (_POSITIONS, "num_labels", "patch_size", "num_key_value_heads")
# Apart from its positions, GPT-NeoX as GPT-2 is: residual branches in turn, tied embeddings, GPT-2's activation.
_FACTS: dict[str, dict[str, Any]] = {
    "gpt_neox": {
        "use_parallel_residual": False,
        "tie_word_embeddings": True,
        "hidden_act": "gelu_new",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
    },
    "llama": {"tie_word_embeddings": False},
}


def new_model(
    settings: ModelSettings,
    task: str,
    *,
    num_labels: int | None = None,
    vocab_size: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    length: int | None = None,
    pad_token_id: int | None = None,
    seed: int,
) -> PreTrainedModel:
    """An untrained model on the CPU in float32, as transformers initialises it; the same for the same arguments.

    Args:
        settings: The model.
        task: What the models predict (`choices.TaskKind`).
        num_labels: Classes, of a classification.
        vocab_size: Tokens, of a text model.
        image_size: Side of the images, or height and width.
        channels: Of the images.
        length: Longest sequence of tokens.
        pad_token_id: Of the tokenizer.
        seed: Of the weights.

    Raises:
        ArchitectureError: Such a model doesn't exist, or its sizes don't fit together.
    """
    model_class = _model_class(settings, task)
    if task == "image-classification":
        facts: dict[str, Any] = {"num_labels": num_labels, "image_size": image_size, "num_channels": channels}
        _check_image(settings, image_size)
    else:
        facts = {"vocab_size": vocab_size, "length": length}
        facts |= {"num_labels": num_labels} if task == "text-classification" else {}
    missing = [name for name, value in facts.items() if value is None]
    if missing:
        raise ArchitectureError(f"a {settings.family} model for {task} needs {' and '.join(missing)}")
    _check_heads(settings)
    reach = facts.pop("length", None)
    config = _configuration(model_class.config_class, settings, facts, reach, pad_token_id)
    _check_extent(model_class, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream("model", seed))
        return model_class(config)


def check_model(settings: ModelSettings, task: str) -> None:
    """Refuse a model that can't be made whatever its data are.

    Raises:
        ArchitectureError: As `new_model`.
    """
    model_class = _model_class(settings, task)
    facts: dict[str, Any] = {}
    if task == "image-classification":
        _check_image(settings, None)
    else:
        facts["vocab_size"] = 1  # whatever it will be
    _check_heads(settings)
    with quiet_transformers():
        _configuration(model_class.config_class, settings, facts, None, None)


def _check_extent(model_class: Any, config: Any) -> None:
    """Refuse a model that is larger than any that is trained here, before it gets memory."""
    what = f"{model_class.__name__} can't be made with these sizes"
    with refusing(ArchitectureError, lambda reason: f"{what}: {reason}"), torch.device("meta"):
        model = model_class(config)
    count = sum(tensor.numel() for tensor in chain(model.parameters(), model.buffers()))
    if count > MOST_PARAMETERS:
        raise ArchitectureError(f"a model of {count:.3g} parameters, more than {MOST_PARAMETERS:.3g}: make it smaller")


def stream(purpose: str, seed: int) -> int:
    """A seed of 32 bits for one purpose: what is drawn for two purposes has nothing in common at the same seed."""
    return int.from_bytes(sha256(f"{purpose} {seed}".encode()).digest()[:4], "big")


def _model_class(settings: ModelSettings, task: str) -> Any:
    import transformers

    from isobasin import models

    kind, positions = settings.family, settings.positions
    if kind not in list(Trained):
        return _class_of(kind, task)
    name = CLASSES.get((kind, positions, task))
    if name is not None:
        return getattr(transformers, name, None) or getattr(models, name)
    tasks = {t for f, p, t in CLASSES if (f, p) == (kind, positions)}
    if not tasks:
        raise ArchitectureError(f"{kind} has no {positions} positions: write `positions: rotary`")
    raise ArchitectureError(f"{kind} is no model for {task}, only for {' and '.join(sorted(tasks))}")


def _class_of(model_type: str, task: str) -> Any:
    """The class of transformers for a task of any model type whose symmetries are known."""
    import transformers

    config_class = type(transformers.AutoConfig.for_model(family(model_type).model_type))
    classes = getattr(transformers, LOADERS[TaskKind(task)])._model_mapping
    if config_class not in classes:
        raise ArchitectureError(f"transformers has no {model_type} for {task}")
    # Of several, such as a distilled one beside the usual one, the first is the usual one.
    found = classes[config_class]
    return found[0] if isinstance(found, tuple) else found


def _check_image(settings: ModelSettings, image_size: int | tuple[int, int] | None) -> None:
    if settings.patch is None:
        raise ArchitectureError(f"a {settings.family} model needs `patch`, the side of its patches")
    sides = (image_size,) * 2 if image_size is None or isinstance(image_size, int) else image_size
    if any(side is not None and side % settings.patch for side in sides):
        shape = " x ".join(map(str, sides))
        raise ArchitectureError(f"images of {shape} can't be cut into patches of side {settings.patch}")


def _check_heads(settings: ModelSettings) -> None:
    width, heads = settings.width, settings.heads
    if width % heads:
        raise ArchitectureError(f"width {width} is not a multiple of heads {heads}")
    if settings.positions is Positions.rotary and (width // heads) % 2:
        raise ArchitectureError(f"heads of {width // heads} features can't rotate: width / heads must be even")
    if settings.key_value_heads is not None and heads % settings.key_value_heads:
        raise ArchitectureError(f"heads {heads} is not a multiple of key_value_heads {settings.key_value_heads}")


def _configuration(
    config_class: Any, settings: ModelSettings, facts: dict[str, Any], reach: int | None, pad_token_id: int | None
) -> Any:
    """The configuration; `options` come last."""
    usual, kind = config_class(), config_class.model_type.removeprefix("isobasin_")
    sizes = _sizes(usual, settings)
    # A family that is asked for by its model type is as transformers has it.
    own = _FACTS.get(kind, {}) if settings.family in list(Trained) else {}
    values = own | dict.fromkeys(_dropouts(usual), settings.dropout) | sizes | facts
    # Where it is no entry of its own it follows from others.
    if "head_dim" in vars(usual) and hasattr(config_class, "head_dim"):
        values["head_dim"] = settings.width // settings.heads
    if settings.patch is not None:
        values["patch_size"] = settings.patch
    if reach is not None and hasattr(usual, _POSITIONS):
        values[_POSITIONS] = reach
    if "vocab_size" in facts:
        # The families' own defaults are tokens of their own vocabularies.
        values |= {"pad_token_id": pad_token_id, "bos_token_id": None, "eos_token_id": None}
    if _POSITIONS in values:
        values[_POSITIONS] += first_position(config_class(pad_token_id=pad_token_id))
    if config_class.model_type == "isobasin_vit":
        values["rotary"] = True
    aliases: dict[str, str] = config_class.attribute_map
    said = {aliases.get(name, name) for name in (*sizes, *facts, *_SAID)}
    for name in settings.options:
        if aliases.get(name, name) in said:
            raise ArchitectureError(f"options has {name!r}, which entries of the model or its data say already")
    unknown = [name for name in settings.options if not hasattr(usual, name)]
    if unknown:
        raise ArchitectureError(f"options has {unknown[0]!r}, which {config_class.__name__} doesn't know")
    what = f"transformers refuses the configuration of {settings.family}"
    with refusing(ArchitectureError, lambda message: f"{what}: {message}", lambda error: " ".join(str(error).split())):
        return config_class(**{**values, **settings.options})


def _sizes(usual: Any, settings: ModelSettings) -> dict[str, Any]:
    """What the model's entries say, under the names that its configuration has for them; `usual` is one."""
    from transformers.activations import ACT2FN

    found: dict[str, Any] = {}
    for entry, names in _SIZES.items():
        value, name = getattr(settings, entry), next((name for name in names if hasattr(usual, name)), None)
        if value is not None and name is None:
            raise ArchitectureError(f"{type(usual).__name__} has no entry for {entry}: see its options")
        if value is not None:
            found[str(name)] = value
        elif name is not None and entry == "feedforward":
            raise ArchitectureError(f"a {settings.family} model needs feedforward, the units of its layers")
    if settings.activation is not None and settings.activation not in ACT2FN:
        raise ArchitectureError(f"transformers has no activation {settings.activation!r}, see its ACT2FN")
    if hasattr(usual, "num_key_value_heads"):
        found["num_key_value_heads"] = settings.key_value_heads or settings.heads
    elif settings.key_value_heads is not None:
        raise ArchitectureError(f"{settings.family} has no key_value_heads")
    return found


def _dropouts(usual: Any) -> list[str]:
    """Every probability of dropout that a configuration has."""
    return [name for name, value in vars(usual).items() if name.endswith(_DROPOUTS) and isinstance(value, float)]
