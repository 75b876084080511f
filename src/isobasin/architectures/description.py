"""What a folder says of its model before any value is read: its `config.json` and its headers, worked out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, check_supported, described_by
from isobasin.architectures.entries import Shapes, trying
from isobasin.architectures.family import Family
from isobasin.architectures.registry import family, lookup
from isobasin.architectures.schema import Specification
from isobasin.errors import ArchitectureError


@dataclass(frozen=True, eq=False)
class Description:
    """A folder's configuration and the shapes of its tensors, and what follows from the two.

    Attributes:
        entries: The contents of `config.json`.
        shapes: Name and shape of every stored tensor.
    """

    entries: Mapping[str, Any]
    shapes: Shapes

    @property
    def model_type(self) -> Any:
        """What the configuration gives for its model type, whatever that is."""
        return self.entries.get("model_type")

    @cached_property
    def config(self) -> Config:
        """The configuration as transformers builds it, with its defaults filled in.

        Raises:
            ArchitectureError: transformers refuses it, or a size is out of all proportion to the tensors.
        """
        return described_by(self.entries, self.shapes)

    @cached_property
    def family(self) -> Family:
        """The family of the model.

        Raises:
            ArchitectureError: There is none, or it doesn't support such a configuration.
        """
        known = lookup(self.model_type)
        # Of a type that is no family, that alone is what stands in the way.
        check_supported(self.entries, ("is_encoder_decoder",) if known is None else known.accepts)
        if not isinstance(self.model_type, str):
            raise ArchitectureError("config.json has no model_type, so its architecture is unknown; add it")
        return family(self.model_type)

    @cached_property
    def specification(self) -> Specification:
        """What the family says of such a model, under the base model's names; no tensor was looked for.

        Raises:
            ArchitectureError: The configuration is not supported.
        """
        entry, config = self.family, self.config
        with trying(f"config.json describes no {self.model_type} model that is known"):
            blocks = entry.blocks(config)
            if entry.unbiased is not None and not _has_biases(blocks, self.shapes):
                blocks = entry.unbiased(config)
            return Specification(self.model_type, tuple(blocks), tuple(entry.feedforwards(config)))


def _has_biases(blocks: Sequence[AttentionBlock], shapes: Shapes) -> bool:
    """Whether a file has any of the blocks' biases, whatever is before their names."""
    biases = tuple(p.bias for block in blocks[:1] for p in block.projections.values() if p.bias is not None)
    return any(name.endswith(biases) for name in shapes)
