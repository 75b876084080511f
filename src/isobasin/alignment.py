"""The result of matching two models: which group element moves each attention block, and how well it did.

An alignment is a small file of its own: it can be applied to a sibling of the model it was found for, inverted
and composed.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isobasin.architectures.schema import Specification
from isobasin.checkpoints import write_file_atomically
from isobasin.errors import AlignmentError
from isobasin.model import Blocks, Source, TensorBlocks
from isobasin.symmetries import attention, bilinear
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup
from isobasin.symmetries.permutation import is_permutation
from isobasin.verification import Verification

if TYPE_CHECKING:
    from isobasin.pipeline.moving import Moved

FILE_NAME = "alignment.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class LayerStatistics:
    """How the match of one block went.

    Attributes:
        distance_before: Frobenius distance of all attention weights and biases, reference to model.
        distance_after: The same after the move.
        condition: Largest condition number of any head's U or W.
        iterations: Most steps that any head's stage 2 took.
        status: "exact", "converged", "max-iterations", "capped", or "composed" for an element that no solver found.
        rounding: Relative error of the circuits that storing the moved weights will cause (predicted).
    """

    distance_before: float = math.nan
    distance_after: float = math.nan
    condition: float = math.nan
    iterations: int = 0
    status: str = "composed"
    rounding: float = math.nan


@dataclass(frozen=True)
class LayerAlignment:
    """The group element of one block.

    Attributes:
        layer: Index of the layer.
        group: The block's symmetry group.
        element: What moves the model's block, float64, without leading dimensions.
        statistics: How its match went.
    """

    layer: int
    group: AttentionGroup
    element: AttentionElement
    statistics: LayerStatistics

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        permutation = [int(i) for i in self.element.head_permutation()]
        return {"layer": self.layer, "head_permutation": permutation, **_plain(asdict(self.statistics))}


@dataclass(frozen=True)
class Alignment:
    """One group element per attention block, with where it came from.

    Attributes:
        model_type: Architecture that it fits.
        layers: The blocks in order.
        provenance: Free facts: names and SHA-256 of the inputs, method, head cost.
        verified: How the moved model's outputs compare with the model's, if that was measured; not saved.
    """

    model_type: str
    layers: tuple[LayerAlignment, ...]
    provenance: Mapping[str, str]
    verified: Verification | None = None

    def distance(self) -> dict[str, float]:
        """Frobenius distance of all attention weights before and after."""
        before = [layer.statistics.distance_before for layer in self.layers]
        after = [layer.statistics.distance_after for layer in self.layers]
        return {"before": math.hypot(*before), "after": math.hypot(*after)}

    def inverse(self) -> Alignment:
        """The alignment that takes every move back."""
        layers = tuple(_bare(layer, attention.inverse(layer.group, layer.element)) for layer in self.layers)
        return Alignment(self.model_type, layers, {**self.provenance, "operation": "inverse"})

    def compose(self, first: Alignment) -> Alignment:
        """The alignment that acts as `first` and then as this one.

        Raises:
            AlignmentError: If the two don't fit one architecture.
        """
        self.check_fits(first.model_type, [layer.group for layer in first.layers], "the other alignment")
        layers = tuple(
            _bare(b, attention.compose(b.group, b.element, a.element))
            for a, b in zip(first.layers, self.layers, strict=True)
        )
        return Alignment(self.model_type, layers, {"operation": "composed"})

    def check_fits(self, model_type: str, groups: list[AttentionGroup], name: str) -> None:
        """Refuse an architecture that this alignment wasn't made for.

        Raises:
            AlignmentError: Naming the first difference.
        """
        if model_type != self.model_type:
            raise AlignmentError(f"the alignment is for {self.model_type}, but {name} is {model_type}")
        if len(groups) != len(self.layers):
            raise AlignmentError(f"the alignment has {len(self.layers)} layers, {name} has {len(groups)}")
        for layer, group in zip(self.layers, groups, strict=True):
            if layer.group != group:
                raise AlignmentError(f"layer {layer.layer}: the alignment is for {layer.group}, {name} has {group}")

    def apply(self, model: Source, output: str | os.PathLike[str] | None = None, **options: Any) -> Moved:
        """Make the move on a model; arguments and result as `isobasin.apply`."""
        from isobasin.pipeline.moving import apply

        return apply(self, model, output, **options)

    def moved_tensors(self, model: Mapping[str, Tensor], specification: Specification) -> dict[str, Tensor]:
        """Tensors in memory after the move, for an architecture of your own (`isobasin.align_tensors`).

        Returns:
            All of `model`'s tensors; those of attention blocks are new, cast to their types once.
        """
        new = dict(model)
        for tensors in self.moved(TensorBlocks("model", model, specification)):
            new |= {name: tensor.to(model[name]) for name, tensor in tensors.items()}
        return new

    def moved(self, model: Blocks, device: str = "cpu") -> Iterator[dict[str, Tensor]]:
        """The stored tensors of every block after the move, a layer at a time, in float64 as they are computed.

        Raises:
            AlignmentError: If the model has another architecture.
        """
        sites = model.specification.sites
        self.check_fits(model.specification.model_type, [site.group for site in sites], model.name)
        for layer, site in zip(self.layers, sites, strict=True):
            stored = {name: tensor.to(device, torch.float64) for name, tensor in model.stored(site).items()}
            yield site.write(stored, attention.act(layer.group, layer.element.to(device), site.read(stored, device)))

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write one safetensors file, all of it or nothing."""
        tensors = {
            f"layers.{layer.layer}.{name}": torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
            for layer in self.layers
            for name, part in layer.element.tensors().items()
        }
        tensors = {name: part.contiguous().cpu() for name, part in tensors.items()}
        metadata = {
            "format": str(_FORMAT),
            "isobasin": json.dumps(
                {
                    "model_type": self.model_type,
                    "provenance": dict(self.provenance),
                    "layers": [
                        {
                            "layer": layer.layer,
                            "group": asdict(layer.group),
                            "statistics": _plain(asdict(layer.statistics)),
                        }
                        for layer in self.layers
                    ],
                }
            ),
        }
        write_file_atomically(Path(path), lambda file: save_file(tensors, file, metadata), force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Alignment:
        """Read what `save` wrote; a folder stands for the alignment file that `align` left in it.

        Raises:
            AlignmentError: If it is missing, damaged, or no alignment.
        """
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise AlignmentError(f"{file}: no such alignment: give the {FILE_NAME} that `isobasin align` wrote")
        try:
            with safe_open(file, framework="pt") as opened:
                header = _Header.model_validate_json((opened.metadata() or {}).get("isobasin", ""))
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            layers = tuple(_load_layer(entry, tensors) for entry in header.layers)
        except (SafetensorError, ValidationError, KeyError, ValueError, TypeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise AlignmentError(f"{file}: not an alignment, or damaged ({reason}): write it again") from error
        return cls(header.model_type, layers, header.provenance)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"distance": _plain(self.distance()), "layers": [layer.to_json() for layer in self.layers]}

    def __repr__(self) -> str:
        distance = self.distance()
        known = not math.isnan(distance["before"])  # an inverse or a composition was never matched
        gap = f", distance {distance['before']:.4g} -> {distance['after']:.4g}" if known else ""
        return f"Alignment({self.model_type}, {len(self.layers)} layers{gap})"

    def _repr_html_(self) -> str:
        columns = ("layer", "distance_before", "distance_after", "condition", "iterations", "status")
        names = ("layer", "distance before", "after", "condition", "iterations", "status", "head permutation")
        head = "".join(f"<th>{name}</th>" for name in names)
        rows: list[str] = []
        for layer in self.layers:
            entry = layer.to_json()
            cells = [_shown(entry[column]) for column in columns] + [html.escape(str(entry["head_permutation"]))]
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        body = "".join(rows)
        return f"<p>{html.escape(repr(self))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class _Group(BaseModel):
    """A bilinear group in a file."""

    model_config = ConfigDict(extra="forbid")
    features: int
    planes: tuple[tuple[int, int], ...]


class _AttentionGroup(BaseModel):
    """An attention group in a file."""

    model_config = ConfigDict(extra="forbid")
    groups: int
    queries: int
    query_key: _Group
    value_output: _Group
    key_shift: bool
    value_shift: bool

    def build(self) -> AttentionGroup:
        query_key, value_output = (BilinearGroup(p.features, p.planes) for p in (self.query_key, self.value_output))
        return AttentionGroup(self.groups, self.queries, query_key, value_output, self.key_shift, self.value_shift)


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    layer: int
    group: _AttentionGroup
    statistics: dict[str, float | int | str | None]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model_type: str
    provenance: dict[str, str]
    layers: list[_Layer]


def _load_layer(entry: _Layer, tensors: Mapping[str, Tensor]) -> LayerAlignment:
    """One block from its entry in the header and its tensors, with every shape checked."""
    group = entry.group.build()
    expected = attention.identity(group).tensors()
    parts: dict[str, Tensor] = {}
    for name, like in expected.items():
        part = tensors[f"layers.{entry.layer}.{name}"]
        part = torch.view_as_complex(part) if like.is_complex() else part
        if part.shape != like.shape or part.dtype != like.dtype or not part.isfinite().all():
            raise ValueError(f"layer {entry.layer}: {name} is {part.dtype} {tuple(part.shape)} or not finite")
        parts[name] = part
    if not (is_permutation(parts["outer"]) and is_permutation(parts["inner"])):
        raise ValueError(f"layer {entry.layer}: head permutation is none")
    values = {k: math.nan if v is None else v for k, v in entry.statistics.items()}
    return LayerAlignment(entry.layer, group, AttentionElement.from_tensors(parts), LayerStatistics(**values))  # pyright: ignore[reportArgumentType]


def _bare(layer: LayerAlignment, element: AttentionElement) -> LayerAlignment:
    """The block with another element, and no statistics of a match but its condition."""
    return replace(layer, element=element, statistics=LayerStatistics(condition=condition_of(element)))


def condition_of(element: AttentionElement) -> float:
    """Largest condition number of any head's U or W."""
    pairs = (element.query_key, element.value_output)
    return max(float(bilinear.condition(pair).max()) for pair in pairs)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values that JSON can hold: null for what is not a finite number."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
