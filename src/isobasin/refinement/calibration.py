"""What data say of an alignment: where to start a residual stream's map, and which of several ends is best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.architectures.residual import Residual
from isobasin.matching.residual import StreamPairs, fit
from isobasin.model import Model
from isobasin.refinement.line import End, Line
from isobasin.symmetries.residual import Basis
from isobasin.tasks.examples import Examples
from isobasin.tasks.kind import load_model
from isobasin.tasks.losses import model_inputs

_EXAMPLES = 128
_BATCH = 32


class DataCalibration:
    """Calibration on examples of the models' task.

    Distance hardly differs between starts of a residual stream's map, the loss of the mid-point does: it chooses.
    """

    def __init__(self, examples: Examples, device: str = "cpu") -> None:
        """Use the first examples.

        Args:
            examples: Training data, prepared for the reference.
            device: Where models run.
        """
        self._examples, self._device = examples, device

    def starts(self, a: Model, b: Model, stream: Residual) -> dict[str, Tensor]:
        """The map that brings b's hidden states nearest to a's, each normalised, summed over layers and tokens."""
        pairs = [(x.mT, y.mT) for x, y in zip(self._states(a, stream), self._states(b, stream), strict=True)]
        group = stream.group
        if group.basis is Basis.linear:
            return {}
        return {"activations": fit(group, StreamPairs(pairs, ()))}

    def scores(self, a: Model, b: Model, alignments: Sequence[Alignment]) -> list[float]:
        """The loss half-way between a and the moved b, for each alignment."""
        line: Line | None = None
        found: list[float] = []
        for alignment in alignments:
            if line is None:
                line = Line.between(a, b, alignment, self._examples.kind, device=self._device)
            else:
                line = replace(line, ends=(line.ends[0], End.of(b, alignment, moved=True, device=self._device)))
            found += line.losses(self._examples, _EXAMPLES, _BATCH, (0.5,))
        return found

    @torch.no_grad()
    def _states(self, model: Model, stream: Residual) -> Iterator[Tensor]:
        """Normalised hidden states in float64, `(tokens, d)` for every layer and batch."""
        module = load_model(model.checkpoint.folder, self._examples.kind, self._device)
        count = min(len(self._examples), _EXAMPLES)
        for start in range(0, count, _BATCH):
            batch = self._examples.fetch(range(start, min(start + _BATCH, count)))
            inputs = model_inputs(module, batch, torch.device(self._device))
            # The last one is after the last normalisation in some families and before it in others.
            for state in module(**inputs, output_hidden_states=True).hidden_states[:-1]:
                rows = state.double().flatten(0, -2)
                rows = rows - rows.mean(-1, keepdim=True) if stream.centred else rows
                yield rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
