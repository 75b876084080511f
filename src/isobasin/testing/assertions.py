"""Do two models compute the same? Compared over whole output tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isobasin.architectures.examples import USUAL
from isobasin.architectures.tiny import Single
from isobasin.inputs import model_inputs, promised
from isobasin.loading import load

if TYPE_CHECKING:
    from isobasin.model import Source

LENGTHS = (1, 5, 12)
OFFSETS = (0, 3)


def assert_function_preserved(
    a: Source, b: Source, tolerance: float = 1e-9, *, seed: int = 0, hidden: bool = True
) -> float:
    """Assert that two models agree in every output and every hidden state.

    Inputs are random, of several lengths, position offsets (where the model takes positions) and paddings on either
    side; images also at twice their size.

    Args:
        a: Folder of a checkpoint, or a transformers model; folders are loaded in float64.
        b: The other one.
        tolerance: Largest difference allowed, relative to the largest value of the output that it is in.
        seed: Of the inputs.
        hidden: Compare hidden states too: they are in another basis after a move of the residual stream.

    Returns:
        The largest relative difference.
    """
    worst = 0.0
    one, other = (_loaded(source) for source in (a, b))
    padded_left = one.dtype != torch.float64 or not _rough(getattr(one.config, "text_config", one.config))
    for label, inputs in model_inputs(one, seed, LENGTHS, OFFSETS, padded_left=padded_left):
        pair = [outputs(model, inputs) for model in (one, other)]
        assert pair[0].keys() == pair[1].keys(), f"{label}: outputs {sorted(pair[0])} against {sorted(pair[1])}"
        for name, value in pair[0].items():
            if not hidden and "hidden state" in name:
                continue
            found = relative_difference(value, pair[1][name])
            assert found <= tolerance, f"{name} at {label} differs by {found:.3g} relative (allowed {tolerance:.3g})"
            worst = max(worst, found)
    return worst


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of any value over the largest value of `a`; infinite where one is not a number."""
    if a.shape != b.shape:
        return float("inf")
    gap = (a.double() - b.double()).abs().nan_to_num(torch.inf, torch.inf)
    size = a.double().abs().nan_to_num(torch.inf, torch.inf)
    if not gap.numel() or float(gap.max()) == 0:
        return 0.0
    return float(gap.max()) / float(size.max()) if float(size.max()) > 0 else float("inf")


def outputs(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Every floating-point output and hidden state; at positions that are padding nothing is promised."""
    with torch.no_grad():
        returned = model(**inputs, output_hidden_states=True)
    return {name: promised(value, inputs) for name, value in _named(returned) if value.is_floating_point()}


def _named(returned: Mapping[str, Any], of: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a model returns, hidden states one by one, and those of the models inside it."""
    for name, value in returned.items():
        if isinstance(value, Tensor):
            yield of + name, value
        elif isinstance(value, Mapping):
            yield from _named(value, f"{name}: ")
        elif name.endswith("hidden_states"):
            side = name.removesuffix("hidden_states").replace("_", " ")
            yield from ((f"{of}{side}hidden state {i}", state) for i, state in enumerate(value))


def _rough(config: Any) -> bool:
    """Whether scores have a float32 softmax in transformers, to which padding on the left is no number."""
    usual = USUAL.get(config.model_type)
    return usual is not None and usual.single is Single.softmax


def _loaded(source: Source) -> Any:
    return load(Path(source), torch.float64) if isinstance(source, (str, os.PathLike)) else source
