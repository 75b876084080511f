"""Do two models compute the same? Compared over whole output tensors."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isobasin.verification import illustrated, load

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


def padding_mask(inputs: Mapping[str, Any]) -> Tensor | None:
    """Which positions of a model's random inputs are no padding, or None if none is."""
    return inputs.get("attention_mask", inputs.get("decoder_attention_mask"))


def promised(output: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """An output without the positions that are padding."""
    mask = padding_mask(inputs)
    return output if mask is None or output.shape[:2] != mask.shape else output[mask.bool()]


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


def model_inputs(model: Any, seed: int = 0, lengths: Iterable[int] = LENGTHS) -> Iterator[tuple[str, dict[str, Any]]]:
    """Random inputs of a model, each with a label; texts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    accepted, config = inspect.signature(model.forward).parameters, model.config

    def images(config: Any, scale: int = 1) -> Tensor:
        shape = (2, config.num_channels, scale * config.image_size, scale * config.image_size)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(model.dtype)

    if model.main_input_name == "pixel_values":
        for scale in (1, 2) if "interpolate_pos_encoding" in accepted else (1,):
            extra = {"interpolate_pos_encoding": True} if scale > 1 else {}
            yield f"images at scale {scale}", {"pixel_values": images(config, scale), **extra}
        return
    text = getattr(config, "text_config", config)
    padded_left = model.dtype != torch.float64 or not _rough(text)
    for label, inputs in _texts(text, accepted, generator, lengths, padded_left=padded_left):
        if model.main_input_name == "input_features":
            shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
            sound = torch.randn(shape, generator=generator, dtype=torch.float64).to(model.dtype)
            yield label, {"input_features": sound} | {f"decoder_{name}": value for name, value in inputs.items()}
        elif config.is_encoder_decoder:
            tokens = inputs["input_ids"]
            # Of another length, so that the mask of the one is not taken for that of the other.
            yield label, inputs | {"decoder_input_ids": tokens[:, : max(1, tokens.shape[1] - 1)].flip(1)}
        elif "pixel_values" in accepted:
            yield label, illustrated(inputs, config) | {"pixel_values": images(config.vision_config)}
        else:
            yield label, inputs


def _texts(
    config: Any,
    accepted: Mapping[str, Any],
    generator: torch.Generator,
    lengths: Iterable[int],
    *,
    padded_left: bool,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Random tokens of several lengths, position offsets and paddings."""
    for length in lengths:
        tokens = torch.randint(3, config.vocab_size, (2, length), generator=generator)
        end = getattr(config, "eos_token_id", None)
        if isinstance(end, int) and end < config.vocab_size:
            tokens[:, -1] = end  # where some models pool: elsewhere could be padding, of which nothing is promised
        for offset in OFFSETS if "position_ids" in accepted else (0,):
            positions = (torch.arange(length) + offset).expand_as(tokens)
            extra = {"position_ids": positions} if offset else {}
            yield f"length {length}, offset {offset}", {"input_ids": tokens, **extra}
        if length > 1:
            paddings = {"right": slice(length // 2, None)} | ({"left": slice(0, length // 2)} if padded_left else {})
            for side, padding in paddings.items():
                mask = torch.ones_like(tokens)
                mask[1, padding] = 0
                yield f"length {length}, padded {side}", {"input_ids": tokens, "attention_mask": mask}


def _rough(config: Any) -> bool:
    """Whether scores have a float32 softmax in transformers, as capped ones and those with ALiBi have.

    The lowest float64 overflows there, and rows without any key to attend to, which padding on the left has, are NaN.
    """
    return getattr(config, "attn_logit_softcapping", None) is not None or config.model_type in ("bloom", "mpt")


def _loaded(source: Source) -> Any:
    return load(Path(source), torch.float64) if isinstance(source, (str, os.PathLike)) else source
