"""Do two models compute the same? Compared over whole output tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isobasin.architectures.examples import USUAL
from isobasin.architectures.tiny import Single
from isobasin.inputs import SHORT, Inputs, model_inputs, promised
from isobasin.loading import load

if TYPE_CHECKING:
    from isobasin.model import Source

OFFSETS = (0, 3)
# A label, inputs, and the outputs on them.
Answer = tuple[str, Inputs, dict[str, Tensor]]


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
    other = _loaded(b)
    for label, inputs, ours in _answers(a, seed):
        theirs = outputs(other, inputs)
        assert ours.keys() == theirs.keys(), f"{label}: outputs {sorted(ours)} against {sorted(theirs)}"
        for name, value in ours.items():
            if not hidden and "hidden state" in name:
                continue
            found = relative_difference(value, theirs[name])
            assert found <= tolerance, f"{name} at {label} differs by {found:.3g} relative (allowed {tolerance:.3g})"
            worst = max(worst, found)
    return worst


def _answers(source: Source, seed: int) -> tuple[Answer, ...]:
    """What a model says to random inputs; of a folder it is kept, since one is compared with many others."""
    if not isinstance(source, (str, os.PathLike)):
        return _asked(source, seed)
    files = ((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in Path(source).iterdir())
    return _kept(Path(source), frozenset(files), seed)


@lru_cache(maxsize=256)
def _kept(folder: Path, files: frozenset[tuple[str, int, int]], seed: int) -> tuple[Answer, ...]:
    """`_answers` of a folder, as long as its files are these."""
    return _asked(_loaded(folder), seed)


def _asked(model: Any, seed: int) -> tuple[Answer, ...]:
    """`_answers` of a model in memory."""
    padded_left = model.dtype != torch.float64 or not _rough(getattr(model.config, "text_config", model.config))
    asked = model_inputs(model, seed, SHORT, OFFSETS, padded_left=padded_left)
    return tuple((label, inputs, outputs(model, inputs)) for label, inputs in asked)


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
