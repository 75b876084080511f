"""Coordinates on a model's symmetry group around the identity: what gradient descent moves.

All coordinates are 0 at the identity. Invertible maps are `exp(X)`, plane-wise scalings `exp(r + iφ)`, scales of units
and trades of gains `exp(l)`, rotations of latents and of the residual stream `exp(S - S^T)`, gains of its norms
`g exp(γ)`; shifts of biases are themselves. So every point is an element of the group, and a model's function is the
same at all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from isobasin.alignment import (
    Alignment,
    FeedForwardAlignment,
    FeedForwardStatistics,
    LayerAlignment,
    LayerStatistics,
    ResidualAlignment,
    condition_of,
)
from isobasin.alignment.stream import gains_of
from isobasin.architectures.blocks import labels
from isobasin.model import Blocks
from isobasin.symmetries import attention, feedforward, stream
from isobasin.symmetries.along import Stream
from isobasin.symmetries.bilinear import BilinearElement
from isobasin.symmetries.feedforward import FeedForwardGroup, Scale
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup
from isobasin.symmetries.latent import LatentElement, rotated
from isobasin.symmetries.stream import Basis, StreamGroup, complement, lift


class Chart:
    """Coordinates around a model.

    Attributes:
        coordinates: By name, float64 leaves that need a gradient.
    """

    def __init__(
        self,
        model: Blocks,
        *,
        feedforward: bool,
        stream: Stream | None,
        keep_gains: bool = False,
        device: str = "cpu",
    ) -> None:
        """All coordinates at 0.

        Args:
            model: Whose group it is.
            feedforward: Move feed-forward blocks too.
            stream: Its residual stream; None to leave that as it is.
            keep_gains: Whether that stream was found with all gains kept.
            device: Where to compute.
        """
        self._model, self._stream, self._keep_gains, self._device = model, stream, keep_gains, device
        sites = model.feedforwards() if feedforward else ()
        self._feedforwards = list(zip(labels(site.layer for site in sites), sites, strict=True))
        self._norms = None if stream is None else gains_of(model, stream, device)
        sizes = dict(self._sizes())
        self.coordinates = {
            name: torch.zeros(size, dtype=torch.float64, device=device, requires_grad=True)
            for name, size in sizes.items()
            if 0 not in size
        }

    def _sizes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for site in self._model.specification.sites:
            group, name = site.group, f"attention.{site.layer}"
            for part, pair in (("query_key", group.query_key), ("value_output", group.value_output)):
                if part == "query_key" and group.norm is not None:
                    yield f"{name}.trades", group.trades
                    continue
                n = len(pair.linear)
                yield f"{name}.{part}.matrix", (group.groups, n, n)
                yield f"{name}.{part}.planes", (group.groups, len(pair.planes), 2)
            if group.latent is not None:
                yield f"{name}.latent.rotary", (len(group.rotary.planes), 2)
                for latent, width in group.latent.widths.items():
                    yield f"{name}.latent.{latent}", (width * (width - 1) // 2,)
                    yield f"{name}.latent.{latent}_trades", (width,)
            # The free shift of a key bias changes no score, on the line neither: it has no coordinate.
            yield f"{name}.value_shift", (group.groups, group.value_output.features if group.value_shift else 0)
        # Nor has the free shift of a router.
        for label, site in self._feedforwards:
            for part, scale in (("up", site.group.up), ("gate", site.group.gate)):
                yield f"feedforward.{label}.{part}", (*site.group.batch, _scaled(site.group, scale))
        if self._stream is not None:
            group, norms = self._stream.group, self._stream.norms
            size = 0 if group.basis.discrete else group.width - (group.basis is Basis.centred)
            yield "stream.matrix", (size, size)
            yield "stream.gains", (len(norms), group.width)
            yield "stream.biases", (sum(norm.absorbed for norm in norms), group.width)

    def alignment(self) -> Alignment:
        """The group element at the coordinates, differentiable by them."""
        layers = tuple(
            LayerAlignment(site.layer, site.group, self._attention(site.layer, site.group), LayerStatistics())
            for site in self._model.specification.sites
        )
        moved = tuple(
            FeedForwardAlignment(site.layer, site.group, self._units(label, site.group), FeedForwardStatistics())
            for label, site in self._feedforwards
        )
        model_type = self._model.specification.model_type
        facts = {"operation": "refine"}
        return Alignment(model_type, layers, facts, feedforward=moved, stream=self._residual())

    def element(self) -> Alignment:
        """The same without gradients, on the CPU, with the condition of every map."""
        with torch.no_grad():
            found = self.alignment()
            layers = tuple(
                replace(
                    layer,
                    element=layer.element.to("cpu"),
                    statistics=LayerStatistics(condition=condition_of(layer.element)),
                )
                for layer in found.layers
            )
            moved = tuple(replace(layer, element=layer.element.to("cpu")) for layer in found.feedforward)
            stream = found.stream
            if stream is not None:
                stream = replace(stream, element=stream.element.to("cpu"))
        return replace(found, layers=layers, feedforward=moved, stream=stream)

    def _attention(self, layer: int, group: AttentionGroup) -> attention.AttentionElement:
        name = f"attention.{layer}"
        start = attention.identity(group, (), self._device)
        trades = self.coordinates.get(f"{name}.trades")
        return replace(
            start,
            query_key=self._pair(f"{name}.query_key", group.query_key, start.query_key),
            value_output=self._pair(f"{name}.value_output", group.value_output, start.value_output),
            value_shift=self.coordinates.get(f"{name}.value_shift", start.value_shift),
            trades=start.trades if trades is None else trades.exp(),
            latent=None if start.latent is None else self._latent(f"{name}.latent", start.latent),
        )

    def _latent(self, name: str, start: LatentElement) -> LatentElement:
        parts = start.tensors()
        for part in parts:
            coordinates = self.coordinates.get(f"{name}.{part}")
            if coordinates is not None:
                if part == "rotary":
                    parts[part] = torch.exp(torch.view_as_complex(coordinates))
                else:
                    parts[part] = coordinates.exp() if part.endswith("trades") else rotated(coordinates)
        return LatentElement(**parts)

    def _pair(self, name: str, group: BilinearGroup, start: BilinearElement) -> BilinearElement:
        matrix, planes = (self.coordinates.get(f"{name}.{part}") for part in ("matrix", "planes"))
        return BilinearElement(
            start.matrix if matrix is None else torch.matrix_exp(matrix),
            start.planes if planes is None else torch.exp(torch.view_as_complex(planes)),
        )

    def _units(self, label: str, group: FeedForwardGroup) -> feedforward.FeedForwardElement:
        start = feedforward.identity(group, (), self._device)
        scales = {part: self.coordinates.get(f"feedforward.{label}.{part}") for part in ("up", "gate")}
        return replace(start, **{part: log.exp() for part, log in scales.items() if log is not None})

    def _residual(self) -> ResidualAlignment | None:
        if self._stream is None or self._norms is None:
            return None
        group = self._stream.group
        start = stream.identity(group, *self._norms)
        gains, biases = self.coordinates.get("stream.gains"), self.coordinates.get("stream.biases")
        if gains is not None:
            start = replace(start, gains=start.gains * gains.exp())
        if biases is not None:
            which = torch.tensor([norm.absorbed for norm in self._stream.norms], device=biases.device)
            start = replace(start, biases=start.biases.index_add(0, which.nonzero().squeeze(-1), biases))
        matrix = self.coordinates.get("stream.matrix")
        if matrix is not None:
            start = replace(start, matrix=_map(group, matrix))
        return ResidualAlignment(group, start, self._keep_gains)


def _scaled(group: FeedForwardGroup, scale: Scale | None) -> int:
    return group.units if scale is not None and scale.dimension else 0


def _map(group: StreamGroup, coordinates: Tensor) -> Tensor:
    """The residual stream's map at some coordinates."""
    if group.basis is Basis.linear:
        return torch.matrix_exp(coordinates)
    rotation = torch.matrix_exp(coordinates - coordinates.mT)
    return lift(rotation, complement(group.width, coordinates.device)) if group.basis is Basis.centred else rotation
