"""Where the residual stream runs through a checkpoint's tensors, and which group of maps it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from torch import Tensor

from isobasin.symmetries.stream import StreamGroup

# Values of a long tensor that are moved at a time.
_VALUES = 2**23


class Role(StrEnum):
    """How an axis moves with the stream's basis T.

    * vector: as the stream itself, `x <- x T`: what writes into it.
    * covector: as what reads from it without a folded normalisation between, by `T^{-1}`.
    * gain: a factor of every coordinate, by `|T|`: it is permuted, and has no sign.
    """

    vector = "vector"
    covector = "covector"
    gain = "gain"


@dataclass(frozen=True)
class Along:
    """An axis of a stored tensor that runs along the stream.

    Attributes:
        tensor: The tensor.
        axis: The axis.
        role: How it moves.
        table: Whether the tensor has a row for every token or position, which are the same in a longer table.
    """

    tensor: str
    axis: int
    role: Role = Role.vector
    table: bool = False


@dataclass(frozen=True)
class Reader:
    """A projection that reads what a folded normalisation returns.

    Attributes:
        weight: Its weight.
        axis: The axis that it reads along.
        bias: Its bias, or None.
        table: As in `Along`.
    """

    weight: str
    axis: int
    bias: str | None
    table: bool = False

    @property
    def along(self) -> Along:
        """The axis that it reads along, once the normalisation is folded."""
        return Along(self.weight, self.axis, Role.covector, self.table)


@dataclass(frozen=True)
class Norm:
    """A normalisation `y = x̂ g + n` that is folded into its readers, or a factor g that what it multiplies takes in.

    Attributes:
        gain: The tensor that g is stored in.
        bias: The tensor n, or None.
        readers: All that read y.
        writers: The weight and the bias of a block whose output g multiplies, as LayerScale does.
        offset: What is added to the stored values for g.
    """

    gain: str
    bias: str | None
    readers: tuple[Reader, ...] = ()
    writers: tuple[Along, ...] = ()
    offset: float = 0.0

    def gains(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The factors g, from tensors as they are stored."""
        return tensors[self.gain] + self.offset

    @property
    def absorbed(self) -> bool:
        """Whether n can pass into the readers' biases; where one has none, n moves along the stream as `n / g`."""
        return self.bias is not None and all(reader.bias is not None for reader in self.readers)

    @property
    def scaled(self) -> tuple[Along, ...]:
        """The axes of what takes g in."""
        return (*(reader.along for reader in self.readers), *self.writers)

    @property
    def tensors(self) -> list[str]:
        """Every tensor that has a part in it."""
        found = [self.gain, self.bias, *(item.tensor for item in self.writers)]
        for reader in self.readers:
            found += [reader.weight, reader.bias]
        return [name for name in found if name is not None]


@dataclass(frozen=True)
class Stream:
    """The residual stream of a checkpoint.

    Attributes:
        group: Which maps it has; how many normalisations are folded follows from `norms`.
        along: Everything that runs along it but for folded normalisations and their readers.
        norms: The folded normalisations, and the factors that writers take in.
        centred: Whether normalisations subtract the mean.
    """

    group: StreamGroup
    along: tuple[Along, ...]
    norms: tuple[Norm, ...] = ()
    centred: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", replace(self.group, norms=len(self.norms)))

    def named(self, names: Mapping[str, str]) -> Stream:
        """The same stream by other names of its tensors."""

        def along(items: tuple[Along, ...]) -> tuple[Along, ...]:
            return tuple(replace(item, tensor=names[item.tensor]) for item in items)

        def normalising(x: Norm) -> Norm:
            readers = (replace(r, weight=names[r.weight], bias=r.bias and names[r.bias]) for r in x.readers)
            own = {"gain": names[x.gain], "bias": x.bias and names[x.bias]}
            return replace(x, **own, readers=tuple(readers), writers=along(x.writers))

        return replace(self, along=along(self.along), norms=tuple(map(normalising, self.norms)))

    def normalising(self) -> list[str]:
        """The gains and biases of folded normalisations."""
        return [name for norm in self.norms for name in (norm.gain, norm.bias) if name is not None]

    def ordered(self) -> list[str]:
        """The tensors that it runs through, or that hold the biases of what reads it, each once."""
        return list(dict.fromkeys([*(item.tensor for item in self.along), *(n for x in self.norms for n in x.tensors)]))

    def axes(self) -> list[Along]:
        """Every axis that runs along it once its normalisations are folded."""
        found = list(self.along)
        for norm in self.norms:
            found += norm.scaled
            if norm.bias is not None and not norm.absorbed:
                found.append(Along(norm.bias, 0))
        return found

    def pieces(self, name: str, shape: Sequence[int]) -> Iterator[slice]:
        """Rows of a tensor that may be moved without the others, few at a time; all where they belong together."""
        if [item.axis for item in self.axes() if item.tensor == name] != [1]:
            return iter([slice(None)])
        step = max(1, _VALUES // shape[1])
        return (slice(first, first + step) for first in range(0, max(1, shape[0]), step))

    def needed(self, names: Iterable[str]) -> list[str]:
        """These tensors, and all that is folded into them or passes through them to a bias."""
        found = dict.fromkeys(names)
        for norm in self.norms:
            for reader in norm.readers if norm.absorbed else ():
                if reader.bias in found:
                    found |= dict.fromkeys(name for name in (reader.weight, norm.bias) if name is not None)
            if any(name in found for name in (norm.bias, *(item.tensor for item in norm.scaled))):
                found[norm.gain] = None
        return list(found)

    def part(self, names: Iterable[str]) -> tuple[list[int], Stream]:
        """The normalisations in which some tensors have a part, by number, and the stream as far as it runs there."""
        there = set(names)
        places = [place for place, norm in enumerate(self.norms) if not there.isdisjoint(norm.tensors)]
        along = tuple(item for item in self.along if item.tensor in there)
        return places, replace(self, along=along, norms=tuple(self.norms[place] for place in places))

    def names(self) -> set[str]:
        """The tensors that it runs through, without order."""
        return set(self.ordered())
