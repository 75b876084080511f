"""What the protocol replaces: a scope of a model drawn anew, and what is trained after that."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from isobasin.architectures.registry import family
from isobasin.choices import Redrawn
from isobasin.errors import ArchitectureError
from isobasin.experiments.models import stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel


def scope_parameters(model: PreTrainedModel, scope: Redrawn) -> list[str]:
    """The names of a scope's parameters, as `named_parameters` has them.

    Attention is its four projections with their biases, without any norm; a layer is its attention, its FFN and
    their norms; the entire model is all that its class trains, heads and embeddings included.
    """
    if scope is Redrawn.entire_model:
        return _trained(model)
    first = _layers(model)[0]
    if scope is Redrawn.first_layer:
        return _names(model, first.parameters())
    layers = [first] if scope is Redrawn.first_attention else _layers(model)
    return [name for layer in layers for name in _names(model, _attention(layer))]


def trainable(model: PreTrainedModel, scope: Redrawn, freeze: bool) -> None:
    """Set `requires_grad`: with `freeze` of the scope's parameters only, without it of all that the class trains."""
    chosen = set(scope_parameters(model, scope if freeze else Redrawn.entire_model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def reinitialise(model: PreTrainedModel, scope: Redrawn, seed: int, heads: int | None = None) -> PreTrainedModel:
    """A copy in which a scope is drawn anew, as transformers initialises it; all else that is trained stays to the bit.

    Args:
        model: The model, which is left as it is.
        scope: What is drawn.
        seed: Of the draw.
        heads: Attention heads in the scope; None for as many as before. Where only the first layer gets others, the
            copy is a model of `isobasin.models`.

    Raises:
        ArchitectureError: The model can't have so many heads there.
    """
    model_class, config = (type(model), model.config) if heads is None else _with_heads(model, scope, heads)
    return _drawn(model, model_class, config, scope_parameters(model, scope), seed)


def reinitialise_layer(model: PreTrainedModel, layer: int, seed: int) -> PreTrainedModel:
    """A copy in which the attention of one layer, counted from 0, is drawn anew."""
    return _drawn(model, type(model), model.config, _names(model, _attention(_layers(model)[layer])), seed)


@torch.no_grad()
def _drawn(model: PreTrainedModel, model_class: Any, config: Any, names: list[str], seed: int) -> PreTrainedModel:
    """An untrained model with the trained parameters of `model`, those of `names` excepted.

    A whole model is drawn, so that every tensor is initialised by its own class. What isn't trained, such as tables
    of positions, follows from the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream("scope", seed))
        fresh = model_class(deepcopy(config))
    fresh = fresh.to(model.device, model.dtype).train(model.training)
    kept, old = set(_trained(model)) - set(names), dict(model.named_parameters())
    for name, parameter in fresh.named_parameters():
        if name in kept:
            parameter.copy_(old[name])
    return fresh


def _trained(model: PreTrainedModel) -> list[str]:
    """The parameters that the model's class trains, whatever is frozen in this one."""
    with torch.device("meta"):
        plain = type(model)(deepcopy(model.config))
    return [name for name, parameter in plain.named_parameters() if parameter.requires_grad]


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    count = model.config.num_hidden_layers
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return list(next(lists))


def _attention(layer: nn.Module) -> list[nn.Parameter]:
    """The four projections; some attention modules have a norm as well."""
    block = next(child for child in layer.children() if type(child).__name__.endswith("Attention"))
    norms = {id(p) for m in block.modules() if "Norm" in type(m).__name__ for p in m.parameters()}
    return [parameter for parameter in block.parameters() if id(parameter) not in norms]


def _names(model: PreTrainedModel, parameters: Iterable[nn.Parameter]) -> list[str]:
    chosen = {id(parameter) for parameter in parameters}
    return [name for name, parameter in model.named_parameters() if id(parameter) in chosen]


def _with_heads(model: PreTrainedModel, scope: Redrawn, heads: int) -> tuple[Any, Any]:
    """The class and the configuration of the same model with other heads in a scope."""
    config: Any = deepcopy(model.config)
    width: int = config.hidden_size
    if width % heads:
        raise ArchitectureError(f"{heads} heads can't share the width {width}: it must be a multiple of them")
    if _rotates(config) and (width // heads) % 2:
        raise ArchitectureError(f"{heads} heads of {width // heads} features can't rotate: their width must be even")
    if scope in (Redrawn.first_attention, Redrawn.first_layer):
        return _with_heads_in_first_layer(model, config, heads)
    before: int = config.num_attention_heads
    groups: int | None = getattr(config, "num_key_value_heads", None)
    if groups == before:
        config.num_key_value_heads = heads
    elif groups is not None and heads % groups:
        raise ArchitectureError(f"{heads} heads can't share {groups} key/value heads: they must be a multiple of them")
    if getattr(config, "head_dim", None) == width // before:
        config.head_dim = width // heads
    if hasattr(config, "heads_per_layer"):
        config.heads_per_layer = None
    config.num_attention_heads = heads
    return type(model), config


def _with_heads_in_first_layer(model: PreTrainedModel, config: Any, heads: int) -> tuple[Any, Any]:
    from isobasin import models

    before: list[int] = getattr(config, "heads_per_layer", None) or [config.num_attention_heads] * len(_layers(model))
    if heads == before[0]:
        return type(model), config
    name = type(model).__name__
    own = getattr(models, f"Isobasin{name.removeprefix('Isobasin')}", None)
    if own is None:
        raise ArchitectureError(
            f"{name} can't have {heads} heads in one layer and {before[0]} in others: all its layers share one table "
            "of rotary frequencies; give all of them other heads, or take absolute positions"
        )
    values = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures")}
    return own, own.config_class.from_dict({**values, "heads_per_layer": [heads, *before[1:]]})


def _rotates(config: Any) -> bool:
    return any(block.group.rotary.planes for block in family(config.model_type).blocks(config))
