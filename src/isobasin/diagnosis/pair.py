"""An original and its conversion, opened: the conversion's tensors are found by the original's names."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.registry import kind
from isobasin.architectures.resolve import check_any
from isobasin.architectures.stream import StreamFacts
from isobasin.canonical import Canonical, Source, evened, open_canonical
from isobasin.checkpoints import Checkpoint, check_finite
from isobasin.diagnosis.catalogue import Reading
from isobasin.diagnosis.layers import Order
from isobasin.errors import ArchitectureError, TensorError, about
from isobasin.model import Blocks, Model
from isobasin.symmetries.along import Stream


@dataclass(frozen=True, eq=False)
class _Ordered(Checkpoint):
    """A conversion's tensors as if its files had the original's form.

    Attributes:
        values: The tensors of these names.
    """

    values: Callable[[Iterable[str]], dict[str, Tensor]] = field(default=lambda names: {})

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """See `Checkpoint.read`; raises TensorError, CheckpointError."""
        return self.values(names)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two checkpoints, of which the second is judged.

    Attributes:
        a: The original.
        b: The conversion; only its names and shapes are looked at, whatever its configuration says.
    """

    a: Model
    b: Canonical

    def model_b(self) -> Model:
        """The conversion as a model of its own; refused where it is none."""
        return Model.of(self.b)

    def ordered(self, order: Order, lost: Blocks) -> Pair:
        """The same with the conversion in the original's form, its layers in that order.

        Args:
            order: Which layer is which.
            lost: The original in the conversion's basis of the residual stream: missing layers are its own.

        Raises:
            TensorError: The conversion lacks another tensor, or has one of another shape.
        """
        form, infos = self.a.canonical, self.b.checkpoint.tensors
        there = {own: found for name, own in form.view.tensors.items() if (found := order.name(name)) is not None}
        tensors = dict(form.checkpoint.tensors)
        for own, found in there.items():
            info = infos.get(self.b.view.find(found) or "")
            if info is None or info.shape != tensors[own].shape:
                raise TensorError(f"{self.b.name}: has no tensor {found!r} of shape {tensors[own].shape}")
            tensors[own] = replace(tensors[own], dtype=info.dtype)

        def read(names: Iterable[str]) -> dict[str, Tensor]:
            names = list(names)
            theirs = self.b.read(there[name] for name in names if name in there)
            ours = lost.read(name for name in names if name not in there)
            return {
                name: theirs[there[name]] if name in there else ours[name].to(tensors[name].dtype) for name in names
            }

        facts = {field.name: getattr(form.checkpoint, field.name) for field in fields(Checkpoint)}
        facts |= {"folder": self.b.checkpoint.folder, "tensors": tensors, "original": None}
        return replace(self, b=replace(form, name=self.b.name, checkpoint=_Ordered(**facts, values=read)))

    @cached_property
    def blocks(self) -> list[AttentionBlock | FeedForward]:
        """The original's blocks by canonical names; feed-forward blocks only where all of them is understood."""
        bare = self.a.canonical.description.specification
        try:
            self.a.feedforwards()
        except (ArchitectureError, TensorError):
            return [*bare.attention]
        return [*bare.attention, *bare.feedforwards]

    @cached_property
    def stream(self) -> Stream | None:
        """The original's residual stream by canonical names; None where nothing is known of it."""
        try:
            found = self.a.stream()
        except (ArchitectureError, TensorError):
            return None
        return found.named({name: self.a.view.canonical[name] for name in found.names()})

    @cached_property
    def embedding(self) -> str | None:
        """The canonical name of the first embedding."""
        return None if self.stream is None else self.stream.along[0].tensor

    @cached_property
    def _facts(self) -> StreamFacts | None:
        """What the family says of the original's residual stream; None where it has nothing to say."""
        facts = self.a.canonical.description.family.stream
        with suppress(ArchitectureError):
            return None if facts is None else facts(self.a.canonical.description.config)

    @cached_property
    def readouts(self) -> frozenset[str]:
        """Canonical names of what reads the stream after the last layer."""
        found = () if self._facts is None else self._facts.readouts
        return frozenset(f"{readout.module}.weight" for readout in found)

    @cached_property
    def offsets(self) -> dict[str, float]:
        """What is added to every gain of a normalisation that is folded, by canonical name."""
        if self.stream is None or self._facts is None:
            return {}
        gains = {item.tensor for item in self.stream.along if item.role == "gain"}
        offset = self._facts.gain_offset
        return {**dict.fromkeys(gains, offset), **{norm.gain: norm.offset for norm in self.stream.norms}}

    def readings(self, block: AttentionBlock | FeedForward) -> list[Reading]:
        """The normalisations that a block reads."""
        found: list[Reading] = []
        for norm in () if self.stream is None else self.stream.norms:
            weights = {reader.weight for reader in norm.readers}
            roles = tuple(role for role, projection in block.readers.items() if projection.weight in weights)
            if roles:
                tensors = {
                    name: x.double()
                    for name, x in self.original(name for name in (norm.gain, norm.bias) if name).items()
                }
                gain = norm.gains(tensors)
                if bool((gain != 0).all()):
                    found.append(Reading(norm.gain, gain, tensors.get(norm.bias or ""), roles))
        return found

    def original(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The original's tensors."""
        return _checked(self.a.canonical, self.a.canonical.read(names))

    def conversion(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """The conversion's tensors, by the original's names for them; those that it lacks are left out."""
        there = {own: name for own, name in names.items() if self.b.view.find(name) is not None}
        found = self.b.read(there.values())
        return _checked(self.b, {own: found[name] for own, name in there.items()})


def _checked(end: Canonical, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that are numbers, and no codes."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype.itemsize < 2:
            found = str(tensor.dtype).removeprefix("torch.")
            raise TensorError(f"{end.name}: tensor {end.view.stored(name)!r} is {found}: dequantise the model first")
    check_finite({end.view.stored(name): x for name, x in tensors.items()}, end.name)
    return tensors


@contextmanager
def opened_pair(a: Source, b: Source, *, allow_pickle: bool = False) -> Generator[Pair]:
    """Open an original and its conversion, neither tied where the other isn't.

    Raises:
        CheckpointError: One can't be found or read.
        ArchitectureError: The original's architecture is not supported, or the conversion is another one.
        TensorError: The conversion has none of the original's attention tensors.
    """
    how = {"allow_pickle": allow_pickle}
    with open_canonical(a, **how) as first, open_canonical(b, **how) as second:
        types = [str(end.checkpoint.config.get("model_type")) for end in (first, second)]
        if kind(types[0]) != kind(types[1]):
            raise ArchitectureError(f"A is a {types[0]} model, B is a {types[1]} model; give two of one type")
        if second.checkpoint.config.get("quantization_config"):
            raise ArchitectureError(f"{second.name}: config.json has quantization_config: dequantise the model first")
        one, other = evened((first, second))
        pair = Pair(Model.of(one), other)
        names = {name for block in pair.blocks for name in block.shapes()}
        if not any(other.view.find(name) for name in names):
            with about(other.name):
                check_any(one.description.specification, other.view, one.description.family)
        yield pair
