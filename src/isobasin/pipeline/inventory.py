"""The symmetry group of a whole model, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from isobasin.model import Source, open_model
from isobasin.symmetries.groups import AttentionGroup


@dataclass(frozen=True)
class LayerSymmetry:
    """The group of one attention block.

    Attributes:
        layer: Index of the layer.
        group: The group.
        parameters: Number of weights and biases that it acts on.
    """

    layer: int
    group: AttentionGroup
    parameters: int


@dataclass(frozen=True)
class Symmetry:
    """The attention symmetry of a model.

    Attributes:
        layers: Every attention block.
        parameters: Stored values of the whole model.
    """

    layers: tuple[LayerSymmetry, ...]
    parameters: int

    @property
    def dimension(self) -> int:
        """Directions in which the weights can move without changing the function."""
        return sum(layer.group.dimension for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        layers = [
            {
                "layer": layer.layer,
                "group": str(layer.group),
                "dimension": layer.group.dimension,
                "parameters": layer.parameters,
            }
            for layer in self.layers
        ]
        return {"layers": layers, "dimension": self.dimension, "parameters": self.parameters}


def symmetry(model: Source, *, allow_pickle: bool = False) -> Symmetry:
    """The group of every attention block (arXiv 2606.17830, Theorems 2.1, 4.1, 4.2) and its dimension.

    Only headers are read.

    Args:
        model: Folder, hub id, or transformers model.
        allow_pickle: Load pickled weights, with `weights_only`.
    """
    with open_model(model, allow_pickle=allow_pickle) as opened:
        layers = tuple(
            LayerSymmetry(site.layer, site.group, sum(prod(shape) for shape in site.shapes().values()))
            for site in opened.specification.sites
        )
        return Symmetry(layers, opened.parameters())
