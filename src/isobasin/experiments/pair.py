"""Two models, and the losses on lines between them after any move."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isobasin.alignment import Alignment
from isobasin.architectures.resolve import check_comparable
from isobasin.checkpoints import temporary_folder
from isobasin.connectivity.path import POINTS, LinearPath, barrier, points
from isobasin.model import Model, open_model
from isobasin.records.curves import NAIVE
from isobasin.symmetries.groups import BilinearGroup
from isobasin.tasks.data import Examples
from isobasin.tasks.kind import load_model
from isobasin.tasks.losses import evaluate
from isobasin.verbs.align import match_models
from isobasin.verbs.apply import write_moved
from isobasin.verbs.settings import Calibration, Matching, Running, Scope

Folder = str | os.PathLike[str]


@dataclass(frozen=True)
class AblationOptions:
    """How ablations measure.

    Attributes:
        points: Of every line.
        batch_size: Examples of a forward pass.
        device: Where the losses are computed.
        permutations: How many head permutations are drawn where there are more than 24.
        seed: Of that draw.
        scope: What of the models is matched.
    """

    points: int = POINTS
    batch_size: int = 256
    device: str = "cpu"
    permutations: int = 23
    seed: int = 0
    scope: Scope = Scope.attention


@dataclass(frozen=True, eq=False)
class Pair:
    """Two open models and what the losses between them need."""

    a: Model
    b: Model
    examples: Examples
    options: AblationOptions
    exact: bool = True

    @classmethod
    @contextmanager
    def open(cls, a: Folder, b: Folder, examples: Examples, options: AblationOptions) -> Generator[Pair]:
        """Open both.

        Raises:
            ArchitectureError: They are no pair.
        """
        with ExitStack() as stack:
            one, other = (stack.enter_context(open_model(folder)) for folder in (a, b))
            check_comparable(one.specification, other.specification)
            yield cls(one, other, examples, options)

    def in_wrong_group(self) -> Pair:
        """The same pair as if positions weren't rotary: all of GL(d_h) on Q-K."""

        def wrong(model: Model) -> Model:
            sites = tuple(
                replace(site, group=replace(site.group, query_key=BilinearGroup(site.group.query_key.features)))
                for site in model.specification.sites
            )
            return replace(model, specification=replace(model.specification, sites=sites))

        return replace(self, a=wrong(self.a), b=wrong(self.b), exact=False)

    def match(self, matching: Matching, calibration: Calibration | None = None) -> Alignment:
        """The alignment of B to A."""
        return match_models(self.a, self.b, matching, Running(self.options.device, verify=False), calibration)

    @contextmanager
    def moved(self, alignment: Alignment | None) -> Generator[Path]:
        """B's folder, after a move or as it is; a move is verified unless it is in the wrong group."""
        if alignment is None:
            yield self.b.checkpoint.folder
            return
        with temporary_folder() as scratch:
            write_moved(alignment, self.b, Path(scratch) / "moved", Running(self.options.device, verify=self.exact))
            yield Path(scratch) / "moved"

    def curve(self, alignment: Alignment | None) -> dict[str, Any]:
        """The losses from A to B after a move, or to B as it is."""
        with self.moved(alignment) as end:
            return self.line(self.a.checkpoint.folder, end)

    def line(self, first: Path, last: Path) -> dict[str, Any]:
        """The losses on the line between two checkpoints."""
        ends = [load_model(folder, self.examples.kind, self.options.device) for folder in (first, last)]
        curve = barrier(LinearPath.between(*ends), self._loss, points(self.options.points))
        return {"barrier": curve.height, "worst_t": curve.worst_t, "t": list(curve.t), "losses": list(curve.losses)}

    def loss(self, folder: Path) -> float:
        """The loss of one checkpoint."""
        return self._loss(load_model(folder, self.examples.kind, self.options.device))

    def _loss(self, module: Any) -> float:
        batch, device = self.options.batch_size, self.options.device
        return evaluate(module, self.examples, batch_size=batch, device=device, temperature=False).loss


def with_percent(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every curve with its share of the naive barrier; None where there is no such barrier."""
    naive = found[NAIVE]["barrier"]
    return {
        name: {**row, "percent": 100 * row["barrier"] / naive if naive > 0 else None} for name, row in found.items()
    }
