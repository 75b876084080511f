"""Random inputs for a transformers model, derived from its class and configuration, and which outputs are promised.

Texts of several lengths, position offsets and paddings, images, sound. Of positions that the padding mask hides nothing
is promised: what transformers computes there depends on the attention that runs, and may be no number.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LENGTHS = (1, 7, 24)
SHORT = (1, 5, 12)
OFFSETS = (0, 11)
_ROWS = 2
# Where the configuration doesn't say.
_FARTHEST = 128
Inputs = dict[str, Any]


def model_inputs(
    model: Any,
    seed: int = 0,
    lengths: Iterable[int] | None = None,
    offsets: Iterable[int] = OFFSETS,
    *,
    padded_left: bool = False,
    crossed: bool = True,
) -> Iterator[tuple[str, Inputs]]:
    """Random inputs of a model, each with a label, on its device and floating-point ones in its type.

    Args:
        model: A transformers model.
        seed: Of the inputs.
        lengths: Of the texts, as far as the model has positions; by default `LENGTHS`, and one at which every entry of
            a table of relative positions is read.
        offsets: First positions, where the model takes positions.
        padded_left: Pad on the left as well as on the right.
        crossed: Texts of every length at every offset, and padded. Otherwise short ones as they are, and the longest
            padded and, as it is, at the last offset at which there are positions for it: one each of all that there
            is, at the farthest positions.
    """
    generator = torch.Generator().manual_seed(seed)
    for label, inputs in _inputs(model, generator, lengths, tuple(offsets), padded_left, crossed):
        yield label, {name: _placed(value, model) for name, value in inputs.items()}


def _placed(value: Any, model: Any) -> Any:
    """An input on the model's device; floating-point ones in its type."""
    if not isinstance(value, Tensor):
        return value
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)


def _inputs(
    model: Any,
    generator: torch.Generator,
    lengths: Iterable[int] | None,
    offsets: tuple[int, ...],
    padded_left: bool,
    crossed: bool,
) -> Iterator[tuple[str, Inputs]]:
    """`model_inputs` on the CPU."""
    accepted, config = inspect.signature(model.forward).parameters, model.config
    if model.main_input_name == "pixel_values":
        # A classifier of images may have the configuration of two towers.
        seen = getattr(config, "vision_config", config)
        yield from _images(seen, "interpolate_pos_encoding" in accepted, generator)
        return
    text = getattr(config, "text_config", config)
    pools = made_for(model, "SEQUENCE_CLASSIFICATION")
    choices = 2 if made_for(model, "MULTIPLE_CHOICE") else 1
    # Not every class with choices folds positions as it folds tokens.
    offsets = offsets if "position_ids" in accepted and choices == 1 else (0,)
    # A classifier finds the last token by the padding behind it: without a padding token it takes single texts only.
    single = pools and text.pad_token_id is None
    rows = choices * (1 if single else _ROWS)
    sides = () if single else ("right", "left") if padded_left else ("right",)
    found = _lengths(model, text, lengths)
    for label, inputs in _texts(text, rows, found, longest(model, text), offsets, sides, crossed, generator):
        if model.main_input_name == "input_features":  # two frames of sound for every position
            sound = torch.randn(rows, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
            yield label, {"input_features": sound} | {f"decoder_{name}": value for name, value in inputs.items()}
        elif config.is_encoder_decoder and not pools:
            # Of another length, so that the mask of the one is not taken for that of the other.
            tokens = inputs["input_ids"]
            yield label, inputs | {"decoder_input_ids": tokens[:, : max(1, tokens.shape[1] - 1)].flip(1)}
        elif "pixel_values" in accepted:
            yield label, _illustrated(inputs, config) | next(_images(config.vision_config, False, generator))[1]
        else:
            yield label, {name: x.unflatten(0, (-1, choices)) if choices > 1 else x for name, x in inputs.items()}


def made_for(model: Any, task: str) -> bool:
    """Whether a model's class is the one that transformers has for a task, as in `"SEQUENCE_CLASSIFICATION"`."""
    from transformers.models.auto import modeling_auto

    found = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING").get(type(model.config), ())
    return type(model) in (found if isinstance(found, tuple) else (found,))


def _lengths(model: Any, config: Any, lengths: Iterable[int] | None) -> list[int]:
    """The lengths of texts, in ascending order."""
    wanted = set(LENGTHS if lengths is None else lengths)
    if lengths is None and (distance := farthest(config)):
        wanted.add(distance + 1)
    most = longest(model, config)
    return sorted({length if most is None else min(length, most) for length in wanted})


def farthest(config: Any) -> int | None:
    """From which distance on all positions share a bias, in models with a table of biases; None in others."""
    if not hasattr(config, "relative_attention_num_buckets"):
        return None
    return getattr(config, "relative_attention_max_distance", _FARTHEST)


def longest(model: Any, config: Any) -> int | None:
    """How many positions a model has, or None if any number.

    A table of positions with a row for padding has the positions after that row only.
    """
    names = ("max_position_embeddings", "max_target_positions")
    most: int | None = next((value for name in names if (value := getattr(config, name, None))), None)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            rows = module.num_embeddings - module.padding_idx - 1
            most = rows if most is None else min(most, rows)
    return most


def _texts(
    config: Any,
    rows: int,
    lengths: Sequence[int],
    most: int | None,
    offsets: Sequence[int],
    sides: Iterable[str],
    crossed: bool,
    generator: torch.Generator,
) -> Iterator[tuple[str, Inputs]]:
    """Random tokens of several lengths, at several first positions, with padding of the last row."""
    for length in lengths:
        tokens = torch.randint(0, config.vocab_size, (rows, length), generator=generator)
        mask = torch.ones_like(tokens)
        last = length == lengths[-1]
        fit = [offset for offset in offsets if most is None or offset + length <= most]
        for offset in fit if crossed else fit[-1:] if last else fit[:1]:
            positions = (torch.arange(length) + offset).expand_as(tokens)
            extra = {"position_ids": positions} if offset else {}
            yield f"length {length}, offset {offset}", {"input_ids": _ended(tokens, mask, config), **extra}
        for side in sides if length > 3 and (crossed or last) else ():
            hidden = mask.clone()
            hidden[-1, slice(length // 2, None) if side == "right" else slice(0, length // 2)] = 0
            padded = {"input_ids": _ended(tokens, hidden, config), "attention_mask": hidden}
            yield f"length {length}, padded {side}", padded


def _ended(tokens: Tensor, mask: Tensor, config: Any) -> Tensor:
    """The texts with padding where it is known, and one end each, last: where models pool that go by either."""
    pad, end = (
        value if isinstance(value, int) and 0 <= value < config.vocab_size else None
        for value in (getattr(config, name, None) for name in ("pad_token_id", "eos_token_id"))
    )
    # A text of one token is its end only where encoder-decoders pool: they refuse one without.
    if end is not None and (tokens.shape[1] > 1 or getattr(config, "is_encoder_decoder", False)):
        tokens = tokens.masked_fill(tokens == end, (end + 1) % config.vocab_size)
        last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(1)
        tokens[torch.arange(len(tokens)), last] = end
    return tokens if pad is None else tokens.masked_fill(mask == 0, pad)


def _illustrated(inputs: Inputs, config: Any) -> Inputs:
    """The same texts, each behind the tokens that stand for one image where the model wants those, and nowhere else."""
    count = getattr(config, "mm_tokens_per_image", 0)
    if not count:
        return inputs
    tokens, image = inputs["input_ids"], config.image_token_id
    others = tokens.masked_fill(tokens == image, (image + 1) % config.text_config.vocab_size)
    found = {"input_ids": functional.pad(others, (count, 0), value=image)}
    found["token_type_ids"] = found["input_ids"] == image
    if "attention_mask" in inputs:
        found["attention_mask"] = functional.pad(inputs["attention_mask"], (count, 0), value=1)
    if "position_ids" in inputs:
        found["position_ids"] = inputs["position_ids"][:, :1] + torch.arange(found["input_ids"].shape[1])
    return found


def _images(config: Any, interpolates: bool, generator: torch.Generator) -> Iterator[tuple[str, Inputs]]:
    """Random images of the model's own size, and of twice that where it can interpolate its positions."""
    height, width = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
    # transformers takes the positions for those of a square there, and divides by the one side that patches have.
    square = height == width and isinstance(config.patch_size, int)
    for scale in (1, 2) if interpolates and square else (1,):
        shape = (_ROWS, config.num_channels, scale * height, scale * width)
        inputs: Inputs = {"pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64)}
        yield f"images at scale {scale}", inputs | ({"interpolate_pos_encoding": True} if scale > 1 else {})


def padding_mask(inputs: Mapping[str, Any]) -> Tensor | None:
    """Which positions of a model's random inputs are no padding, or None if the inputs have no mask."""
    return inputs.get("attention_mask", inputs.get("decoder_attention_mask"))


def promised(output: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """An output without the positions that are padding."""
    mask = padding_mask(inputs)
    return output if mask is None or output.shape[: mask.ndim] != mask.shape else output[mask.bool()]


def named_outputs(returned: Any, without: tuple[str, ...] = (), of: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor that a model returns, through mappings, lists and tuples, each with a name.

    Args:
        returned: What a model's forward pass returned.
        without: Endings of names that are left out.
        of: What to put before the names.
    """
    if isinstance(returned, Tensor):
        if returned.is_floating_point():
            yield of, returned
        return
    if isinstance(returned, Mapping):
        items: Iterable[tuple[Any, Any]] = returned.items()
    elif isinstance(returned, (list, tuple)):
        items = enumerate(returned)
    else:
        return
    for name, value in items:
        if not str(name).endswith(without or ("\0",)):
            yield from named_outputs(value, without, f"{of} {name}".strip())
