"""Do two models compute the same? Compared over whole output tensors."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isobasin.verification import load

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
    for label, inputs in model_inputs(one, seed):
        pair = [outputs(model, inputs) for model in (one, other)]
        assert pair[0].keys() == pair[1].keys(), f"{label}: outputs {sorted(pair[0])} against {sorted(pair[1])}"
        for name, value in pair[0].items():
            if not hidden and name.startswith("hidden state"):
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
    kept = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
    with torch.no_grad():
        returned = model(**inputs, output_hidden_states=True)
    found = {name: value for name, value in returned.items() if isinstance(value, Tensor)}
    found |= {f"hidden state {i}": value for i, value in enumerate(returned.hidden_states)}
    return {
        name: value[kept] if kept is not None and value.shape[:2] == kept.shape else value
        for name, value in found.items()
        if value.is_floating_point()
    }


def model_inputs(model: Any, seed: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Random inputs of a model, each with a label."""
    generator = torch.Generator().manual_seed(seed)
    accepted = inspect.signature(model.forward).parameters
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        for scale in (1, 2) if "interpolate_pos_encoding" in accepted else (1,):
            shape = (2, model.config.num_channels, scale * size, scale * size)
            image = torch.randn(shape, generator=generator, dtype=torch.float64).to(model.dtype)
            yield f"{shape}", {"pixel_values": image} | ({"interpolate_pos_encoding": True} if scale > 1 else {})
        return
    for length in LENGTHS:
        tokens = torch.randint(3, model.config.vocab_size, (2, length), generator=generator)
        for offset in OFFSETS if "position_ids" in accepted else (0,):
            positions = (torch.arange(length) + offset).expand_as(tokens)
            extra = {"position_ids": positions} if offset else {}
            yield f"length {length}, offset {offset}", {"input_ids": tokens, **extra}
        if length > 1:
            for side, padding in _paddings(model, length):
                mask = torch.ones_like(tokens)
                mask[1, padding] = 0
                yield f"length {length}, padded {side}", {"input_ids": tokens, "attention_mask": mask}


def _paddings(model: Any, length: int) -> list[tuple[str, slice]]:
    """Which positions are padding, by side."""
    right, left = ("right", slice(length // 2, None)), ("left", slice(0, length // 2))
    # Capped scores, and those with ALiBi, have a float32 softmax in transformers: the lowest float64 overflows there, and
    # rows without any key to attend to, which padding on the left has, are NaN.
    config = model.config
    rough = getattr(config, "attn_logit_softcapping", None) is not None or config.model_type in ("bloom", "mpt")
    return [right] if rough and model.dtype == torch.float64 else [right, left]


def _loaded(source: Source) -> Any:
    return load(Path(source), torch.float64) if isinstance(source, (str, os.PathLike)) else source
