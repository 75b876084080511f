"""The blocks of a checkpoint: where their projections lie, and which symmetry group each has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from isobasin.architectures.projection import Gains, Projection
from isobasin.errors import TensorError
from isobasin.memory import carried
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights


@dataclass(frozen=True)
class Block(ABC):
    """One block of a checkpoint, of either kind.

    Attributes:
        layer: Index of the layer, from 0; counted through all stacks where a model has several.
        name: The module's path in the checkpoint, for messages.
        stack: Which stack of layers the block belongs to; empty where there is only one.
    """

    layer: int
    name: str
    stack: str = field(default="", kw_only=True)

    @property
    @abstractmethod
    def projections(self) -> dict[str, Projection]:
        """The projections by their role, which is also the field's name."""

    @property
    @abstractmethod
    def writers(self) -> tuple[Projection, ...]:
        """The projections into the residual stream: one, or those of experts."""

    @property
    def readers(self) -> dict[str, Projection]:
        """The other projections by their role: those that read the block's input."""
        return {role: projection for role, projection in self.projections.items() if projection not in self.writers}

    @property
    def others(self) -> dict[str, Projection]:
        """Parameters that the residual stream doesn't run along, by their role: gains, tables, sinks."""
        return {}

    @property
    def deciding(self) -> frozenset[str]:
        """Tensors that only decide which values count: no output has a derivative by them."""
        return frozenset()

    @property
    def width(self) -> int:
        """Width of the residual stream that the block reads and writes."""
        return dict(self.writers[0].layout.sizes)["width"]

    @property
    def biases(self) -> tuple[str, ...]:
        """The roles that have a bias."""
        has = (role.partition(".")[0] for role, projection in self.projections.items() if projection.bias is not None)
        return tuple(dict.fromkeys(has))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every stored tensor of the block and the shape it must have."""
        shapes: dict[str, tuple[int, ...]] = {}
        for projection in self.projections.values():
            shapes[projection.weight] = projection.layout.shape()
            if projection.bias is not None:
                whole = projection in self.writers
                shapes[projection.bias] = self._whole(projection) if whole else projection.layout.shape(bias=True)
        shapes |= {other.weight: other.layout.shape(bias=True) for other in self.others.values()}
        return shapes

    def names(self, roles: Collection[str]) -> tuple[str, ...]:
        """The stored tensors that some roles of the block's weights are read from, each once."""
        found: list[str | None] = []
        for name, projection in (*self.projections.items(), *self.others.items()):
            role = name.partition(".")[0]
            found += [x for x, of in ((projection.weight, role), (projection.bias, f"{role}_bias")) if of in roles]
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def _whole(self, writer: Projection) -> tuple[int, ...]:
        """The shape of the bias of a projection into the stream, with an axis of experts if it holds several."""
        experts = dict(writer.layout.sizes).get("expert")
        return (self.width,) if experts is None else (experts, self.width)

    def named(self, change: Callable[[str], str]) -> Self:
        """The same block with all its names changed."""

        def renamed(old: Projection) -> Projection:
            return replace(old, weight=change(old.weight), bias=None if old.bias is None else change(old.bias))

        roles: dict[str, Any] = {}
        for role, old in vars(self).items():
            if isinstance(old, Projection):
                roles[role] = renamed(old)
            elif isinstance(old, tuple):
                roles[role] = tuple(map(renamed, cast(tuple[Projection, ...], old)))
        return replace(self, name=change(self.name), **roles)

    @property
    def _several(self) -> set[str]:
        """The roles of projections, or parameters, of which there are several, numbered behind a dot."""
        return {name.partition(".")[0] for name in (*self.projections, *self.others) if "." in name}

    def _parts(
        self, tensors: Mapping[str, Tensor], device: str | torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Weights, biases and other parameters by role as layouts read them, those of a role in one tensor.

        The first axis counts heads, or experts, and is 1 of what has none.
        """
        given = {name: carried(tensors[name], device, dtype) for name in self.shapes()}
        found: dict[str, list[Tensor]] = {}

        def add(role: str, name: str, projection: Projection, *, bias: bool) -> None:
            whole = bias and projection in self.writers
            read = given[name].reshape(-1, self.width) if whole else projection.layout.read(given[name], bias)
            found.setdefault(role, []).append(read)

        for name, projection in self.projections.items():
            role = name.partition(".")[0]
            add(role, projection.weight, projection, bias=False)
            if projection.bias is not None:
                add(f"{role}_bias", projection.bias, projection, bias=True)
        for name, other in self.others.items():
            add(name.partition(".")[0], other.weight, other, bias=True)
        several = self._several
        return {role: torch.cat(x) if role.removesuffix("_bias") in several else x[0] for role, x in found.items()}

    def _write(self, tensors: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New stored tensors of the block, the inverse of `_parts`, in the weights' type and the layouts of these."""
        new: dict[str, Tensor] = {}
        done, several = Counter[str](), self._several

        def put(role: str, name: str, projection: Projection, *, bias: bool) -> None:
            size = dict(projection.layout.sizes).get("expert", 1)
            part, stored = parts[role], tensors[name]
            if role.removesuffix("_bias") in several:
                part = part[done[role] : done[role] + size]
            done[role] += size
            if bias and projection in self.writers:
                new[name] = part.reshape(stored.shape)
                return
            if name not in new:
                # Of a tensor of several projections each replaces its own part.
                copied = projection.layout.pick is not None
                new[name] = stored.contiguous().to(part, copy=True) if copied else part.new_empty(stored.shape)
            projection.layout.put(new[name], part, bias)

        for name, projection in self.projections.items():
            role = name.partition(".")[0]
            if (projection.bias is None) != (f"{role}_bias" not in parts):
                raise ValueError(f"{self.name}: the {role} bias must be given if, and only if, the block has one")
            put(role, projection.weight, projection, bias=False)
            if projection.bias is not None:
                put(f"{role}_bias", projection.bias, projection, bias=True)
        for name, other in self.others.items():
            put(name.partition(".")[0], other.weight, other, bias=True)
        return new


@dataclass(frozen=True)
class AttentionBlock(Block):
    """One attention block of a checkpoint.

    Attributes:
        layer: Index of the layer, from 0.
        name: The module's path in the checkpoint, for messages.
        query, key, value, output: The projections.
        group: The block's symmetry group.
        query_gain, key_gain: Gains of normalised queries and keys; None without norm.
        table: Relative position biases; blocks that read one table have one head permutation. None without.
        sink: Scores of no token; None without.
        gain_offset: What is added to stored gains.
        rotary_query, rotary_key: What rotates, in latent attention (`LatentGroup`); None elsewhere.
        query_down, key_value_down: What latents are normalised from; None where there is no such latent.
        query_down_gain, key_value_down_gain: Their gains.
    """

    query: Projection
    key: Projection
    value: Projection
    output: Projection
    group: AttentionGroup
    query_gain: Gains | None = None
    key_gain: Gains | None = None
    table: Projection | None = None
    sink: Projection | None = None
    gain_offset: float = 0.0
    rotary_query: Projection | None = None
    rotary_key: Projection | None = None
    query_down: Projection | None = None
    key_value_down: Projection | None = None
    query_down_gain: Projection | None = None
    key_value_down_gain: Projection | None = None

    @property
    def projections(self) -> dict[str, Projection]:
        """The projections by their role."""
        own = {"query": self.query, "key": self.key, "value": self.value, "output": self.output}
        return own | self._there("rotary_query", "rotary_key", "query_down", "key_value_down")

    def _there(self, *roles: str) -> dict[str, Projection]:
        """Those of some roles that the block has."""
        named: dict[str, Gains | None] = {role: getattr(self, role) for role in roles}
        found: dict[str, Projection] = {}
        for role, there in named.items():
            if isinstance(there, tuple):
                found |= {f"{role}.{head}": part for head, part in enumerate(there)}
            elif there is not None:
                found[role] = there
        return found

    @property
    def readers(self) -> dict[str, Projection]:
        """The projections that read the residual stream; others read a latent."""
        return {role: projection for role, projection in super().readers.items() if role not in self.group.inside}

    @property
    def others(self) -> dict[str, Projection]:
        """Gains, table and sinks, where there are any."""
        return self._there("query_gain", "key_gain", "table", "sink", "query_down_gain", "key_value_down_gain")

    @property
    def writers(self) -> tuple[Projection, ...]:
        """The output projection."""
        return (self.output,)

    def read(
        self, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float64
    ) -> AttentionWeights:
        """The block's weights, without leading dimensions, nor the means that LayerNorm takes away.

        Raises:
            TensorError: A gain of a latent is 0, by which rows of its readers can't be divided.
        """
        weights = self._read(tensors, device, dtype).tensors()
        for role, gain in weights.items():
            if role.endswith("down_gain") and bool((gain == 0).any()):
                raise TensorError(f"{self.others[role].weight!r} has a gain of 0: its latent can't be moved")
        return AttentionWeights(**self.group.read(weights))

    def _read(self, tensors: Mapping[str, Tensor], device: str | torch.device, dtype: torch.dtype) -> AttentionWeights:
        g, s = self.group.kv_heads, self.group.queries_per_kv
        heads = {"query": (g, s), "rotary_query": (g, s), "key": (g,), "value": (g,), "output": (g, s)}
        biases = {f"{role}_bias": axes for role, axes in heads.items() if role != "output"}
        own = {role.partition(".")[0] for role in self.others}

        def axes(role: str, x: Tensor) -> Tensor:
            return self._by_heads(role, x) if role in own else x.reshape(*(heads | biases).get(role, ()), *x.shape[1:])

        return AttentionWeights(**{role: axes(role, x) for role, x in self._parts(tensors, device, dtype).items()})

    def _by_heads(self, role: str, x: Tensor) -> Tensor:
        """A parameter of every head, or of all together, `(heads, features)`, in the weights' axes."""
        if role.endswith("down_gain"):
            return x.squeeze(0)
        if role == "key_gain":
            return x + self.gain_offset
        if role == "query_gain":
            own = len(x) == self.group.heads
            return (
                x.reshape(*((self.group.kv_heads, self.group.queries_per_kv) if own else (1, 1)), -1) + self.gain_offset
            )
        x = x.unflatten(0, (self.group.kv_heads, self.group.queries_per_kv))
        return x.squeeze(-1) if role == "sink" else x

    def write(self, tensors: Mapping[str, Tensor], weights: AttentionWeights) -> dict[str, Tensor]:
        """New stored tensors of the block, with `tensors`' layout and `weights`' values and type."""
        # Heads that change places leave what reading took away, their means, where they are.
        stored = self._read(tensors, weights.query.device, weights.query.dtype).tensors() if self.group.unread else None
        return self._written(tensors, AttentionWeights(**self.group.stored(weights.tensors(), stored)))

    def _written(self, tensors: Mapping[str, Tensor], plain: AttentionWeights) -> dict[str, Tensor]:
        parts = plain.tensors()
        parts |= {role: parts[role] - self.gain_offset for role in ("query_gain", "key_gain") if role in parts}
        return self._write(tensors, self._flat(parts))

    def centred(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tensors without the means that LayerNorm takes away from queries and keys."""
        return self._written(tensors, self.read(tensors))

    def _flat(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts with gains that heads have by themselves one after another."""
        return {role: x.flatten(0, -2) if role in self._several else x for role, x in parts.items()}

    def stored(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tensors of weights by role to which nothing is added, and no gain folded in: a linear map."""
        zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in self.shapes().items()}
        return self._write(zeros, self._flat(parts))


def labels(layers: Iterable[int]) -> list[str]:
    """What to call blocks by their layers: "3", and "3.1" for a second one of the same layer."""
    seen: Counter[int] = Counter()
    found: list[str] = []
    for layer in layers:
        found.append(f"{layer}.{seen[layer]}" if seen[layer] else str(layer))
        seen[layer] += 1
    return found
