"""Numbers of a model that no move of its blocks changes, and some that no move of the whole model does."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock, labels
from isobasin.architectures.feedforwards import FeedForward
from isobasin.checkpoints import write_file_atomically, write_tensors
from isobasin.checkpoints.files import WatchedFile, read_object
from isobasin.checkpoints.shards import SafetensorsShard
from isobasin.errors import ArchitectureError, CheckpointError, OutputError, TensorError, first_line
from isobasin.matching import tokens
from isobasin.matching.invariants import head_order, invariants
from isobasin.matching.whole.folded import Folded
from isobasin.model import Model, Source, open_model
from isobasin.plain import Plain, as_json
from isobasin.symmetries.along import Role
from isobasin.symmetries.stream import rows
from isobasin.verbs.settings import chosen_device
from isobasin.verification import known_feedforwards

ENDINGS = (".json", ".safetensors")
"""Of files that hold a fingerprint."""

FORMAT = "2"
SEEN = "tokens"
"""What names of numbers that tokens see begin with."""

_NAME = re.compile(r"(attention|feedforward)\.\d+(\.\d+)?\.\w+")


@dataclass(frozen=True)
class Fingerprint(Plain):
    """Invariants of every block under its whole group, and of the model's circuits in any basis of the stream.

    Attributes:
        model_type: The architecture.
        tensors: By name, in descending order unless said otherwise: `attention.<layer>.query_key` and
            `attention.<layer>.value_output`, the singular values of every query head's circuits, `(heads, n)`;
            `attention.<layer>.planes`, `|q_p| |k_p|` of every rotated plane in the order of the planes, `(heads, p)`;
            `attention.<layer>.value_planes`, likewise where values rotate (`_m`: of m that turn alike);
            `attention.<layer>.query_latent` and `attention.<layer>.key_value_latent`, the singular values of what a
            latent is normalised from;
            `feedforward.<layer>.units`, the products of the norms of a unit's branches, of all experts at once and in
            `feedforward.<layer>.1.units` of those that all tokens share, of more than 4 096 every n-th. Heads come
            with the largest circuits first.
            Where the residual stream is known, `attention.<layer>.tokens_query_key`, `…tokens_value_output` and
            `feedforward.<layer>.tokens_units` are what circuits make of sums of tokens (`isobasin.matching.tokens`),
            `(heads, K, K)`, normalisations folded: a map of the stream doesn't change them either.
    """

    model_type: str
    tensors: dict[str, Tensor]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {name: tensor.tolist() for name, tensor in self.tensors.items()}
        return {"format": FORMAT, "model_type": self.model_type, **found}

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a `.json` or a `.safetensors` file, as the name says, all of it or nothing.

        The latter has float32 and, for what tokens see, float16.

        Raises:
            OutputError: Another ending, or the file exists or can't be written.
        """
        path = Path(path)
        if path.suffix not in ENDINGS:
            raise OutputError(f"{path}: a fingerprint is written as .json or .safetensors")

        def write(file: Path) -> None:
            if path.suffix == ".json":
                file.write_text(as_json(self.to_json()) + "\n")
            else:
                short = {name: tensor.to(_stored_type(name)) for name, tensor in self.tensors.items()}
                write_tensors(file, short, {"format": FORMAT, "model_type": self.model_type})

        write_file_atomically(path, write, force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Fingerprint:
        """Read what `save` wrote.

        Raises:
            CheckpointError: It is missing or damaged, no fingerprint, or one of an earlier version.
        """
        path = Path(path)
        file = WatchedFile.of(path)
        if path.suffix not in ENDINGS:
            raise CheckpointError(f"{path}: a fingerprint ends in .json or .safetensors")
        facts, values = _json(file) if path.suffix == ".json" else _safetensors(file)
        kind, form = facts.get("model_type"), facts.get("format")
        if not isinstance(kind, str) or not values or not all(map(_NAME.fullmatch, values)):
            raise CheckpointError(f"{path}: no fingerprint: give files that `isobasin fingerprint -o` wrote")
        if form != FORMAT:
            old = "of an earlier version" if form is None else f"of format {form!r}, not {FORMAT!r}"
            raise CheckpointError(f"{path}: a fingerprint {old}: write it again with `isobasin fingerprint`")
        try:
            return cls(kind, {name: _checked(name, value) for name, value in values.items()})
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            raise CheckpointError(f"{path}: damaged fingerprint ({first_line(error)}): write it again") from error

    def layers(self) -> list[dict[str, Tensor]]:
        """What the blocks of every layer make of tokens, by the name without the layer; none without attention."""
        found: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            kind, layer, *_, last = name.split(".")
            if kind == "attention":
                found.setdefault(int(layer), {})
            if last.startswith(SEEN) and name == f"{kind}.{layer}.{last}":
                found.setdefault(int(layer), {})[last] = tensor
        return [found[layer] for layer in sorted(found)]


def _stored_type(name: str) -> torch.dtype:
    return torch.float16 if f".{SEEN}_" in name else torch.float32


def _json(file: WatchedFile) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The facts and the numbers of a JSON file."""
    content = read_object(file)
    facts = {name: content.pop(name, None) for name in ("format", "model_type")}
    return facts, content


def _safetensors(file: WatchedFile) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Likewise of a safetensors file."""
    shard = SafetensorsShard.open(file)
    names = [name for name in shard.header.slots if _NAME.fullmatch(name)]
    # Of a file that is no fingerprint nothing is read.
    if len(names) < len(shard.header.slots):
        return shard.header.metadata, {}
    return shard.header.metadata, shard.read(names)


def _checked(name: str, value: Any) -> Tensor:
    """One tensor of a fingerprint.

    Raises:
        ValueError: It has another shape, or values that are not finite.
    """
    tensor = torch.as_tensor(value, dtype=torch.float64)
    seen = f".{SEEN}_" in name
    if not tensor.isfinite().all() or (seen and tensor.shape[1:] != (tokens.SUMS, tokens.SUMS)):
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}")
    return tensor


def fingerprint(model: Source, *, device: str = "cpu", allow_pickle: bool = False) -> Fingerprint:
    """Numbers that are the same, up to rounding, for all models that moves of their blocks connect.

    Every tensor is read once, block by block.

    Args:
        model: Folder, hub id, or transformers model.
        device: Where the work is done.
        allow_pickle: Load pickled weights, with `weights_only`.
    """
    with open_model(model, allow_pickle=allow_pickle) as opened:
        return fingerprint_of(opened, chosen_device(device))


def fingerprint_of(model: Model, device: str) -> Fingerprint:
    """The fingerprint of an open model."""
    tensors: dict[str, Tensor] = {}
    folded = _folded(model, device)
    seen_by = None if folded is None else _sums(folded)
    feedforwards = known_feedforwards(model)
    names = [f"attention.{block.layer}" for block in model.specification.attention]
    names += [f"feedforward.{label}" for label in labels([block.layer for block in feedforwards])]
    for name, block in zip(names, (*model.specification.attention, *feedforwards), strict=True):
        shapes = block.shapes()
        stored = model.checked(shapes if folded is None else folded.plan.needed(shapes))
        found = invariants(block, stored, device)
        if folded is not None and seen_by is not None:
            found |= _seen(block, folded.made(stored), seen_by, device)
        tensors |= {f"{name}.{part}": values.cpu().contiguous() for part, values in found.items()}
    return Fingerprint(model.specification.model_type, tensors)


def _folded(model: Model, device: str) -> Folded | None:
    """The model with its normalisations folded; None where nothing is known of its stream."""
    try:
        return Folded.of(model, model.stream(), device)
    except (ArchitectureError, TensorError):
        return None


def _sums(folded: Folded) -> Tensor | None:
    """The sums of tokens that its circuits are seen by, from the tensor outside of all blocks that has most vectors."""
    inside = {name for block in folded.blocks() for name in block.shapes()}
    outer = [x for x in folded.plan.along if x.role is Role.vector and x.tensor not in inside]
    if not outer:
        return None
    first, width = max(outer, key=lambda x: prod(folded.shape(x.tensor))), folded.plan.group.width
    vectors = torch.empty(0, width, dtype=torch.float64, device=folded.device)
    for piece in folded.pieces(first.tensor):
        vectors = torch.cat([vectors, rows(piece, first.axis, width)])[: tokens.TOKENS]
        if len(vectors) == tokens.TOKENS:
            break
    return tokens.sums(vectors - vectors.mean(-1, keepdim=True) if folded.plan.centred else vectors)


def _seen(
    block: AttentionBlock | FeedForward, made: Mapping[str, Tensor], seen_by: Tensor, device: str
) -> dict[str, Tensor]:
    """What a block's circuits make of sums of tokens, from its folded tensors."""
    if isinstance(block, AttentionBlock):
        weights = block.read(made, device)
        order = head_order(block.group, weights)
        found = {name: values[order] for name, values in tokens.seen_heads(weights, seen_by).items()}
    else:
        found = {"units": tokens.seen_units(block.group, block.read(made, device), seen_by)}
    return {f"{SEEN}_{name}": values for name, values in found.items()}
