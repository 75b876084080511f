"""A model in the gauge in which whole models are compared, computed anew whenever some of its tensors are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import ExpertsBlock, FeedForward
from isobasin.architectures.schema import Specification
from isobasin.errors import about
from isobasin.memory import carried
from isobasin.model import Blocks
from isobasin.symmetries.along import Stream
from isobasin.symmetries.stream import Basis, centred
from isobasin.symmetries.turning import Maps, Tensors, fold, turn


@dataclass(frozen=True, eq=False)
class Folded(Blocks):
    """A model's tensors along the stream and of all blocks, folded, in float64; no more is held than is asked for.

    Left out are the means that no LayerNorm passes on, of queries and keys too, and the mean row of a router that may
    be shifted.

    Attributes:
        name: What the user called the model.
        specification: What the tensors mean, the feed-forward blocks among them.
        model: The model as it was opened.
        plan: Where its stream runs.
        device: Where it is computed.
        factors: What tensors are multiplied by in the end, by name; others by 1.
        maps: Of the basis in which the stream is; None for the model's own.
    """

    name: str
    specification: Specification
    model: Blocks
    plan: Stream
    device: str = "cpu"
    factors: Mapping[str, float] = field(default_factory=dict)
    maps: Maps | None = None

    @classmethod
    def of(cls, model: Blocks, plan: Stream, device: str = "cpu") -> Folded:
        """A model folded along its stream."""
        specification = replace(model.specification, feedforwards=model.feedforwards(), stream=None)
        return cls(model.name, specification, model, plan, device)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names; blocks are best asked for whole."""
        wanted = list(names)
        together = dict.fromkeys(other for name in wanted for other in self._mates.get(name, (name,)))
        made = self.made(self.model.checked(self.plan.needed(together)))
        return {name: made[name] for name in wanted}

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor along the stream and outside of all blocks, some rows at a time where it may be long."""
        stored = self.model.checked(self.plan.needed([name]))
        for rows in self.plan.pieces(name, stored[name].shape):
            yield self.made({**stored, name: stored[name][rows]})[name]

    def made(self, stored: Mapping[str, Tensor]) -> Tensors:
        """What tensors of the model are here: whole blocks, and others, with all that these need (`Stream.needed`)."""
        _, plan = self.plan.part(stored)
        with about(self.name):
            own = {name: carried(tensor, self.device, torch.float64, own=True) for name, tensor in stored.items()}
            tensors = fold(plan, own, own=True)
        if plan.group.basis is Basis.centred:
            _centre(plan, tensors)
        for block in self._centring:
            if tensors.keys() >= block.shapes().keys():
                tensors |= _without_means(block, tensors)
        for name in tensors.keys() & self.factors.keys():
            tensors[name].mul_(self.factors[name])
        return tensors if self.maps is None else turn(plan, self.maps, tensors)

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The type of every tensor: float64."""
        return dict.fromkeys(self.model.dtypes(), torch.float64)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.model.shape(name)

    def feedforwards(self) -> tuple[FeedForward, ...]:
        """The feed-forward blocks."""
        return self.specification.feedforwards

    def stream(self, *, keep_gains: bool = False) -> Stream:
        """The residual stream, along which nothing is left to fold."""
        return replace(self.plan, along=tuple(self.plan.axes()), norms=())

    @cached_property
    def _centring(self) -> list[AttentionBlock | ExpertsBlock]:
        """The blocks that leave out means of their own."""
        experts = (block for block in self.feedforwards() if isinstance(block, ExpertsBlock) and block.group.shift)
        return [*(block for block in self.specification.attention if block.group.means), *experts]

    @cached_property
    def _mates(self) -> dict[str, list[str]]:
        """The tensors with which one of such a block is computed, by its name."""
        blocks = [list(block.shapes()) for block in self._centring]
        return {name: names for names in blocks for name in names}


def _centre(plan: Stream, tensors: Tensors) -> None:
    """Leave out what no LayerNorm passes on: the mean of what writes, and of what reads."""
    items = list(plan.along)
    for norm in plan.norms:
        items += norm.scaled if norm.bias is None or norm.absorbed else norm.writers
    for item in items:
        if item.tensor in tensors:
            tensors[item.tensor] = centred(tensors[item.tensor], item.axis, plan.group.width)


def _without_means(block: AttentionBlock | ExpertsBlock, tensors: Tensors) -> Tensors:
    """The tensors of a block that leaves out means of its own."""
    if isinstance(block, AttentionBlock):
        return block.centred(tensors)
    names = (name for name in (block.router.weight, block.router.bias) if name is not None)
    return {name: tensors[name] - tensors[name].mean(0) for name in names}
