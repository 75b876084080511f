"""Copies of models, as somebody would make them who wants them not to be known: moved inside the group, then changed.

`benchmarks/provenance.py` and `benchmarks/locked.py` make theirs here. A copy that is there already is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from characters import train
from torch import nn

import isobasin
from isobasin.alignment import STREAM, AnyMove
from isobasin.checkpoints import temporary_folder

# What is fine-tuned on: text that no model here has seen, this project's own documents.
TEXT = "".join(path.read_text() for path in sorted(Path(__file__).parents[1].glob("docs/*.md")))
# Share of weights that are pruned, bits that are left of them, tokens that are added, and the layer that is dropped.
PRUNED, BITS, ADDED, DROPPED = 0.5, 4, 8, 1


def load(folder: Path) -> Any:
    """A causal language model in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def tuned(model: Any, steps: int, rate: float, seed: int = 0) -> Any:
    """A model trained on with the project's documents, by characters."""
    return train(model, torch.tensor([ord(c) % model.config.vocab_size for c in TEXT]), steps, rate, seed)


def _still(move: AnyMove) -> AnyMove:
    """A move of a block without its map of the stream, its permutations and its scales."""
    if move.block == STREAM:
        element = move.element
        unmoved = {"gains": element.old_gains, "biases": element.old_biases}
        return replace(move, element=replace(element, matrix=torch.eye(len(element.matrix)).double(), **unmoved))
    return replace(move, element=move.group.identity())


def rotated(move: AnyMove) -> AnyMove:
    """The stream's map alone; gains and biases of normalisations stay as they are."""
    if move.block != STREAM:
        return _still(move)
    own = {"gains": move.element.old_gains, "biases": move.element.old_biases}
    return replace(move, element=replace(move.element, **own))


def scaled(move: AnyMove) -> AnyMove:
    """Gains of normalisations, biases and scales of units alone."""
    if move.block == STREAM:
        return replace(move, element=replace(move.element, matrix=_still(move).element.matrix))
    if move.block.startswith("feedforward"):
        order = {name: _still(move).element.parts[name] for name in ("permutation", "experts")}
        return replace(move, element=move.element.having(order))
    return _still(move)


def permuted(move: AnyMove) -> AnyMove:
    """Permutations of units alone."""
    if not move.block.startswith("feedforward"):
        return _still(move)
    order = {name: move.element.parts[name] for name in ("permutation", "experts")}
    return replace(move, element=_still(move).element.having(order))


def mixed(move: AnyMove) -> AnyMove:
    """Permutations and maps of heads alone."""
    return move if move.block.startswith("attention") else _still(move)


MOVES: dict[str, Callable[[AnyMove], AnyMove] | None] = {
    "as it is": None,
    "rotated": rotated,
    "scaled": scaled,
    "units permuted": permuted,
    "heads mixed": mixed,
    "all": lambda move: move,
}


def moved(source: Path, target: Path, move: str, seed: int = 0, read: Callable[[Path], Any] = load) -> Path:
    """A copy of the same function: a random group element, or some of its factors."""
    part = MOVES[move]
    if part is None:
        read(source).save_pretrained(target)
        return target
    found = isobasin.random_alignment(source, scope="model", seed=seed)
    found = replace(found, moves=tuple(map(part, found.moves)))
    found.apply(source, target, dtype=torch.float32)
    return target


def _blocks(model: Any) -> list[Any]:
    """The modules of the layers that have matrices."""
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    return [m for m in layers.modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 2]


@torch.no_grad()
def pruned(model: Any) -> Any:
    """The smallest weights of every matrix of the layers are zero."""
    for module in _blocks(model):
        size = module.weight.abs()
        module.weight[size <= size.flatten().kthvalue(int(PRUNED * size.numel())).values] = 0
    return model


@torch.no_grad()
def quantised(model: Any) -> Any:
    """Matrices of the layers rounded to the nearest of few values, evenly spaced for every row as it is stored."""
    for module in _blocks(model):
        step = module.weight.abs().amax(1, keepdim=True) / (2 ** (BITS - 1) - 1)
        module.weight.copy_((module.weight / step.clamp(min=1e-12)).round() * step)
    return model


def dropped(model: Any) -> Any:
    """Without one layer."""
    owner, name = next(
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList)
    )
    layers = getattr(owner, name)
    setattr(owner, name, nn.ModuleList(layer for i, layer in enumerate(layers) if i != DROPPED))
    model.config.num_hidden_layers = len(layers) - 1
    return model


def extended(model: Any) -> Any:
    """With more tokens, whose vectors are drawn like the others."""
    torch.manual_seed(0)
    model.resize_token_embeddings(model.config.vocab_size + ADDED, mean_resizing=False)
    return model


def mean(a: Any, b: Any, t: float) -> Any:
    """The point (1 - t) a + t b."""
    other = b.state_dict()
    result = copy.deepcopy(a)
    result.load_state_dict({name: torch.lerp(x, other[name], t) for name, x in a.state_dict().items()})
    return result


CHANGES: dict[str, Callable[[Any], Any]] = {
    "0 steps": lambda model: model,
    "50 steps": lambda model: tuned(model, 50, 3e-4),
    "500 steps": lambda model: tuned(model, 500, 1e-3),
    "pruned": pruned,
    "quantised": quantised,
    "layer dropped": dropped,
    "vocabulary extended": extended,
}
"""What is done to a copy after it was moved."""

MERGED = {"merged with a sibling": 0.5, "merged with a stranger": 0.4}
"""Of a mean, taken before the move, the share of the other: a fine-tune, or another seed's aligned to it."""


def merged(source: Path, other: Path, kind: str, target: Path) -> Path:
    """The mean of a model with a fine-tune of it, or with a model trained apart that was aligned to it."""
    if "sibling" in kind:
        second = tuned(load(source), 100, 1e-3, seed=1)
    else:
        with temporary_folder() as home:
            isobasin.align(source, other, home / "aligned", scope="model", verify=False)
            second = load(home / "aligned")
    mean(load(source), second, MERGED[kind]).save_pretrained(target)
    return target


def copies(source: Path, other: Path | None, home: Path, moves: list[str], changes: list[str]) -> dict[str, Path]:
    """Copies of a model by what was done: "move, change".

    Args:
        source: The model.
        other: One trained apart, which is merged with; none for no such merge.
        home: Where copies are written.
        moves: Of `MOVES`.
        changes: Of `CHANGES` and `MERGED`.
    """
    found: dict[str, Path] = {}
    for change in changes:
        for move in moves:
            target = home / f"{source.name}, {move}, {change}"
            if not target.exists():
                _copied(source, other, target, move, change)
            found[f"{move}, {change}"] = target
    return found


def _copied(source: Path, other: Path | None, target: Path, move: str, change: str) -> None:
    with temporary_folder() as temporary:
        start = source
        if change in MERGED:
            start = target.parent / f"{source.name} {change}"
            if not start.exists():
                assert other is not None
                merged(source, other, change, start)
        model = load(moved(start, temporary / "moved", move))
        CHANGES.get(change, CHANGES["0 steps"])(model).save_pretrained(temporary / "copy")
        (temporary / "copy").rename(target)
