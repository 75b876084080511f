"""Numbers of a model that no move inside a block's group changes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobasin.architectures.blocks import labels
from isobasin.checkpoints import write_file_atomically, write_tensors
from isobasin.errors import OutputError
from isobasin.matching.canonical import head_sizes
from isobasin.matching.feedforward import unit_sizes
from isobasin.matching.sides import Sides, all_sides
from isobasin.model import Source, open_model
from isobasin.symmetries.rotation import Rotation
from isobasin.text import as_json
from isobasin.verbs.settings import chosen_device
from isobasin.verification import known_feedforwards


@dataclass(frozen=True)
class Fingerprint:
    """Invariants of every block under its whole group.

    Attributes:
        model_type: The architecture.
        tensors: By name, in descending order unless said otherwise: `attention.<layer>.query_key` and
            `attention.<layer>.value_output`, the singular values of every query head's circuits, `(heads, n)`;
            `attention.<layer>.planes`, `|q_p| |k_p|` of every rotated plane in the order of the planes, `(heads, p)`;
            `attention.<layer>.value_planes`, likewise where values rotate (`_m`: of m that turn alike);
            `attention.<layer>.query_latent` and `attention.<layer>.key_value_latent`, the singular values of what a
            latent is normalised from;
            `feedforward.<layer>.units`, the products of the norms of a unit's branches, of all experts at once and in
            `feedforward.<layer>.1.units` of those that all tokens share. Heads come with the largest circuits first.
    """

    model_type: str
    tensors: dict[str, Tensor]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"model_type": self.model_type, **{name: t.tolist() for name, t in self.tensors.items()}}

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a `.json` or a `.safetensors` file, as the name says, all of it or nothing.

        Raises:
            OutputError: Another ending, or the file exists or can't be written.
        """
        path = Path(path)
        if path.suffix not in (".json", ".safetensors"):
            raise OutputError(f"{path}: a fingerprint is written as .json or .safetensors")

        def write(file: Path) -> None:
            if path.suffix == ".json":
                file.write_text(as_json(self.to_json()) + "\n")
            else:
                write_tensors(file, self.tensors, {"model_type": self.model_type})

        write_file_atomically(path, write, force)


def fingerprint(model: Source, *, device: str = "cpu", allow_pickle: bool = False) -> Fingerprint:
    """Numbers that are the same, up to rounding, for all models that moves of their blocks connect.

    Args:
        model: Folder, hub id, or transformers model.
        device: Where the work is done.
        allow_pickle: Load pickled weights, with `weights_only`.
    """
    device = chosen_device(device)
    tensors: dict[str, Tensor] = {}
    with open_model(model, allow_pickle=allow_pickle) as opened:
        for block in opened.specification.attention:
            weights, group = block.read(opened.stored(block), device), block.group
            sizes = head_sizes(group, weights).flatten()
            order = sizes.argsort(descending=True) if group.permuted else torch.arange(len(sizes), device=sizes.device)
            for pair, circuit in all_sides(group, weights).items():
                for sides in circuit:
                    name = {"query_key": "planes"}.get(pair, "value_planes") if sides.left.is_complex() else pair
                    name += f"_{sides.width}" if sides.left.is_complex() and sides.width > 1 else ""
                    values = _spectra(sides).flatten(0, 1)[order]
                    tensors[f"attention.{block.layer}.{name}"] = values.cpu().contiguous()
            for factor in group.factors:
                if isinstance(factor, Rotation):
                    written = torch.linalg.svdvals(weights.tensors()[factor.writers[0]])
                    tensors[f"attention.{block.layer}.{factor.name}"] = written.cpu().contiguous()
        blocks = known_feedforwards(opened)
        for label, block in zip(labels([block.layer for block in blocks]), blocks, strict=True):
            sizes = unit_sizes(block.group, block.read(opened.stored(block), device))
            tensors[f"feedforward.{label}.units"] = sizes.flip(0).cpu().contiguous()
        return Fingerprint(opened.specification.model_type, tensors)


def _spectra(sides: Sides) -> Tensor:
    """Singular values of every query head's circuits, `(g, s, columns)`; of a plane its size."""
    left, right = (torch.linalg.qr(x, mode="r").R for x in sides.blocks())
    return torch.linalg.svdvals(left @ right.mH).flatten(-2)
