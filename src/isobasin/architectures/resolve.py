"""From a checkpoint's configuration and header to its specification; refuses whatever it can't explain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from isobasin.architectures.configuration import Config, build, check_supported, described, key
from isobasin.architectures.registry import Family, family
from isobasin.architectures.schema import AttentionSite, Specification
from isobasin.errors import ArchitectureError, TensorError

Shapes = Mapping[str, tuple[int, ...]]


def specification(folder_config: Mapping[str, Any], shapes: Shapes, *, source: str) -> Specification:
    """What a checkpoint means, checked against the tensors it has.

    Args:
        folder_config: The contents of `config.json`.
        shapes: Name and shape of every tensor in the checkpoint.
        source: What to call the checkpoint in messages.

    Raises:
        ArchitectureError: If the configuration is not supported.
        TensorError: If an attention tensor is missing, misshapen or unexplained.
    """
    try:
        entry, config, bare = _configured(folder_config)
    except ArchitectureError as error:
        raise ArchitectureError(f"{source}: {error}") from error
    try:
        found = bare.renamed(_prefix(bare, entry, shapes))
        _check_shapes(found, shapes, config)
        _check_explained(found, entry, shapes, config)
    except TensorError as error:
        raise TensorError(f"{source}: {error}") from error
    return found


def check_comparable(reference: Specification, model: Specification) -> None:
    """Check that two checkpoints have attention blocks of the same kind; names and prefixes may differ.

    Raises:
        ArchitectureError: With the first difference, in words.
    """
    if reference.model_type != model.model_type:
        raise ArchitectureError(
            f"reference is a {reference.model_type} model, model is a {model.model_type} model; give two of one type"
        )
    if len(reference.sites) != len(model.sites):
        raise ArchitectureError(
            f"reference has {len(reference.sites)} layers, model has {len(model.sites)}; they must be equal"
        )
    for ours, theirs in zip(reference.sites, model.sites, strict=True):
        # Facts in the order in which a reader would look for them; the first that differs is the message.
        for one, other in zip(_facts(ours), _facts(theirs), strict=True):
            if one != other:
                raise ArchitectureError(
                    f"layer {ours.layer}: reference has {one}, model has {other}; they must be equal"
                )


def _facts(site: AttentionSite) -> list[str]:
    """What must be equal in two blocks, in words: all of the group, the width, and which biases there are."""
    group = site.group
    biases = [name for name, projection in site.projections.items() if projection.bias is not None]
    return [
        f"{group.heads} heads of {group.query_key.features} features",
        f"{group.groups} key/value heads of {group.value_output.features} features",
        f"width {site.width}",
        f"rotary positions on features {group.query_key.planes}",
        f"rotary values on features {group.value_output.planes}",
        f"biases on {', '.join(biases) or 'nothing'}",
        f"group {group}",
    ]


def _configured(folder_config: Mapping[str, Any]) -> tuple[Family, Config, Specification]:
    """The family, the complete configuration, and the specification with the base model's names."""
    check_supported(folder_config)
    model_type = folder_config.get("model_type")
    if not isinstance(model_type, str):
        raise ArchitectureError("config.json has no model_type, so its architecture is unknown; add it")
    entry = family(model_type)
    config = build(model_type, folder_config)
    return entry, config, Specification(model_type, tuple(entry.blocks(config)))


def _prefix(bare: Specification, entry: Family, shapes: Shapes) -> str:
    """The prefix under which the checkpoint has the attention tensors."""
    needed = [name for site in bare.sites for name in site.shapes()]
    prefixes = ("", *entry.prefixes)
    found = [prefix for prefix in prefixes if any(prefix + name in shapes for name in needed)]
    if not found:
        raise TensorError(
            f"no attention tensor of a {entry.model_type} model is there; looked for "
            + " and ".join(repr(prefix + needed[0]) for prefix in prefixes)
        )
    if len(found) > 1:
        raise TensorError(
            f"attention tensors are there under several prefixes, {', '.join(map(repr, found))}; keep one"
        )
    return found[0]


def _check_shapes(found: Specification, shapes: Shapes, config: Config) -> None:
    """Check that every needed tensor is there, in the shape that follows from the configuration."""
    needed = {name: shape for site in found.sites for name, shape in site.shapes().items()}
    missing = [name for name in needed if name not in shapes]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise TensorError(f"tensor {missing[0]!r} is missing{more}, of {len(needed)} that config.json asks for")
    for name, shape in needed.items():
        if tuple(shapes[name]) != shape:
            raise TensorError(
                f"tensor {name!r} has shape {tuple(shapes[name])}, expected {shape} from {described(config)} "
                "in config.json"
            )


def _check_explained(found: Specification, entry: Family, shapes: Shapes, config: Config) -> None:
    """Check that no other tensor lies in an attention module: the block might use it."""
    known = {name for site in found.sites for name in site.shapes()}
    modules = re.compile("|".join(sorted({_any_layer(site, path) for site in found.sites for path in _modules(site)})))
    endings = tuple(f".{ending}" for ending in entry.buffers)
    for name in shapes:
        match = modules.match(name)
        if match is None or name in known or name.endswith(endings):
            continue
        layer = next(int(index) for index in match.groups() if index is not None)
        if layer >= len(found.sites):
            raise TensorError(
                f"tensor {name!r} belongs to layer {layer}, but config.json has "
                f"{key(config, 'num_hidden_layers')} {len(found.sites)}"
            )
        raise TensorError(f"tensor {name!r} is unexpected in an attention module, so no move of it is known exact")


def _modules(site: AttentionSite) -> set[str]:
    """The modules that hold the block's attention and nothing else: around Q, K and V, and of O itself."""
    around = {p.weight.rsplit(".", 2)[0] for p in (site.query, site.key, site.value)}
    return around | {site.output.weight.rsplit(".", 1)[0]}


def _any_layer(site: AttentionSite, module: str) -> str:
    """A regular expression for the names inside `module` in any layer; its group is the layer's index."""
    before, index, after = module.partition(f".{site.layer}.")
    if not index:
        raise ValueError(f"module {module!r} doesn't name its layer {site.layer}")
    return rf"{re.escape(before)}\.(\d+)\.{re.escape(after)}\."
