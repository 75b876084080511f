"""A checkpoint that is about to be converted wrongly: its tensors, which are changed in place, and what they mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock, Block
from isobasin.architectures.projection import Projection
from isobasin.errors import IsobasinError
from isobasin.model import Model
from isobasin.symmetries.along import Stream


@dataclass
class Conversion:
    """A checkpoint that is changed.

    Attributes:
        model: The original, open.
        tensors: Its tensors by canonical names; those that are taken out are missing in the conversion.
        config: Its configuration.
        generator: Of what is chosen at random.
    """

    model: Model
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    generator: torch.Generator

    @classmethod
    def of(cls, model: Model, seed: int) -> Conversion:
        """A copy of a model, not yet changed."""
        return cls(
            model,
            model.canonical.read(model.canonical.shapes),
            json.loads(json.dumps(model.checkpoint.config)),
            torch.Generator().manual_seed(seed),
        )

    @property
    def attention(self) -> tuple[AttentionBlock, ...]:
        """The attention blocks, by canonical names."""
        return self.model.canonical.description.specification.attention

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks."""
        return (*self.attention, *self.model.canonical.description.specification.feedforwards)

    @property
    def stream(self) -> Stream | None:
        """The residual stream, by canonical names."""
        try:
            found = self.model.stream()
        except IsobasinError:
            return None
        return found.named({name: self.model.view.canonical[name] for name in found.names()})

    def choose(self, several: int) -> int:
        """One of several, at random."""
        return int(torch.randint(several, (), generator=self.generator))

    def rows(self, projection: Projection, change: Callable[[Tensor], Tensor], *, bias: bool = True) -> bool:
        """Change the heads of a projection, `(heads, features, width)`, and with `bias` those of its bias."""
        stored = self.tensors[projection.weight].contiguous().clone()
        old = projection.layout.read(stored).transpose(1, 2).clone()
        new = change(old)
        projection.layout.put(stored, new.transpose(1, 2).contiguous())
        self.tensors[projection.weight] = stored
        if bias and projection.bias is not None:
            stored = self.tensors[projection.bias].contiguous().clone()
            heads = projection.layout.read(stored, bias=True)[..., None]
            projection.layout.put(stored, change(heads).squeeze(-1), bias=True)
            self.tensors[projection.bias] = stored
        return not torch.equal(old, new)

    def save(self, folder: Path) -> Path:
        """Write the conversion as a checkpoint, in the original's names."""
        shutil.copytree(self.model.checkpoint.folder, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        view = self.model.view
        named = {n if n in view.ties else view.stored(n): x.contiguous().clone() for n, x in self.tensors.items()}
        save_file(named, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder
