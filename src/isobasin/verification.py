"""Do two checkpoints compute the same? Their outputs on random inputs, as transformers computes them.

The whole models run one after the other, in float64 where that fits in memory (transformers itself keeps some
steps in float32: RMSNorm, rotary tables, a few softmaxes and GPT-J's scores; two equal Llamas then agree to a few
1e-6 only). Where a model doesn't fit, attention and feed-forward blocks are compared one by one on random hidden
states, and all other tensors value by value.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from isobasin.architectures.activations import activation_functions
from isobasin.architectures.feedforwards import FeedForward
from isobasin.checkpoints import check_finite
from isobasin.errors import ArchitectureError, CheckpointError, TensorError, VerificationError
from isobasin.model import EXPERTS, Blocks, Model, quiet_transformers
from isobasin.symmetries.attention import attend
from isobasin.symmetries.feedforward import FeedForwardWeights, feed_forward
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights

_LENGTHS = (1, 7, 24)
_OFFSETS = (0, 11)
# Larger models run in float32: float64 costs twice the memory and more than twice the time.
_DOUBLE_LIMIT = 400_000_000

# Relative difference of the outputs that rounding the weights to a type explains, at well-conditioned moves. The
# float64 figure is what transformers' own float32 steps leave; the others allow for errors growing with depth.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Verification:
    """How far two models' outputs differ.

    Attributes:
        max_abs: Largest absolute difference of any output value.
        max_rel: The same over the largest absolute value of that output, worst output.
        tolerance: What counts as equal, relative.
        how: What was compared, in words.
    """

    max_abs: float
    max_rel: float
    tolerance: float
    how: str

    @property
    def equal(self) -> bool:
        """Whether the difference is within the tolerance; never for values that are not numbers."""
        return self.max_rel <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "max_abs": self.max_abs,
            "max_rel": self.max_rel,
            "equal": self.equal,
            "tolerance": self.tolerance,
            "how": self.how,
        }


def tolerance_of(*models: Model, feedforward: bool = False) -> float:
    """The default tolerance: that of the coarsest type of the models' attention, or feed-forward blocks as well."""
    types = [model.dtype(feedforward=feedforward) for model in models]
    return max(TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16]) for dtype in types)


def verify_models(
    a: Model, b: Model, *, tolerance: float | None = None, seed: int = 0, device: str = "cpu"
) -> Verification:
    """Compare two open models on the same random inputs: several lengths, position offsets, padding.

    Args:
        a: The original.
        b: The other one, of the same architecture.
        tolerance: Relative difference that counts as equal; by default from the stored types.
        seed: Of the inputs, and of weights that a checkpoint lacks.
        device: Where the models run.
    """
    tolerance = tolerance_of(a, b) if tolerance is None else tolerance
    dtype = _run_dtype(a, b)
    if dtype is None:
        max_abs, max_rel = _compare_by_layer(a, b, seed, device)
        _explain(max_rel, a, b)
        how = "blocks one by one on random hidden states, other tensors by value (too large to run whole)"
        return Verification(max_abs, max_rel, tolerance, how)
    outputs = [_outputs(model.checkpoint.folder, dtype, seed, device) for model in (a, b)]
    if outputs[0].keys() != outputs[1].keys():
        raise ArchitectureError(f"{a.name} and {b.name} have different outputs: load both with the same head")
    max_abs, max_rel = _differences(outputs[0], outputs[1])
    _explain(max_rel, a, b)
    how = f"whole models in {str(dtype).removeprefix('torch.')}, {len(outputs[0])} outputs on random inputs"
    return Verification(max_abs, max_rel, tolerance, how)


def check_runs(model: Model, *, seed: int = 0, device: str = "cpu") -> str | None:
    """Check that an open model loads and that its outputs on random inputs are finite.

    Args:
        model: The model.
        seed: Of the inputs, and of weights that the checkpoint lacks.
        device: Where it runs.

    Returns:
        What was run, in words; None if the model is too large to run.

    Raises:
        VerificationError: An output is not finite.
    """
    dtype = _run_dtype(model, model)
    if dtype is None:
        return None
    outputs = _outputs(model.checkpoint.folder, dtype, seed, device)
    for name, value in outputs.items():
        if not value.isfinite().all():
            raise VerificationError(f"{model.name}: {name} has values that are NaN or infinite: it was not written")
    return f"whole model in {str(dtype).removeprefix('torch.')}, {len(outputs)} outputs on random inputs"


def _explain(max_rel: float, *models: Model) -> None:
    """Name the tensor from which outputs that are not finite come, if it is one.

    Raises:
        TensorError: A stored tensor has values that are NaN or infinite.
    """
    if math.isfinite(max_rel):
        return
    for model in models:
        for name in model.checkpoint.tensors:
            check_finite(model.checkpoint.read([name]), model.name)


def _differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[float, float]:
    """Largest absolute and relative difference over named tensors; infinite where one is not a number."""
    max_abs = max_rel = 0.0
    for name, x in a.items():
        if x.shape != b[name].shape:
            return float("inf"), float("inf")
        if not x.numel():
            continue
        gap = float((x - b[name]).abs().nan_to_num(torch.inf, torch.inf).max())
        size = float(x.abs().max())
        # An infinite gap can come with a size that is no number, which no comparison would see.
        ratio = gap / size if size and math.isfinite(gap) else (torch.inf if gap else 0.0)
        max_abs, max_rel = max(max_abs, gap), max(max_rel, ratio)
    return max_abs, max_rel


def _run_dtype(a: Model, b: Model) -> torch.dtype | None:
    """The type in which both models can run, one at a time; None if in none."""
    parameters = max(a.parameters(), b.parameters())
    free = psutil.virtual_memory().available * 0.6
    if parameters <= _DOUBLE_LIMIT and parameters * 8 * 1.2 < free:
        return torch.float64
    return torch.float32 if parameters * 4 * 1.2 < free else None


def _outputs(folder: Path, dtype: torch.dtype, seed: int, device: str) -> dict[str, Tensor]:
    """Every floating-point output of the model on every input, on the CPU."""
    results: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = load(folder, dtype, seed).to(device)
        for label, inputs in _inputs(model, seed):
            for name, value in model(**{k: _placed(v, device, dtype) for k, v in inputs.items()}).items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    results[f"{name} at {label}"] = value.cpu()
    return results


def _placed(value: Any, device: str, dtype: torch.dtype) -> Any:
    """An input on the device; floating-point ones in the model's type."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def load(folder: Path, dtype: torch.dtype, seed: int = 0) -> Any:
    """The transformers model of a checkpoint, in evaluation mode, under the head its configuration names.

    Weights that the checkpoint lacks (an unused pooler, say) are initialised from `seed`, so that two loads agree.
    """
    import transformers

    from isobasin import models

    torch.manual_seed(seed)
    with quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
            name = (config.architectures or ["AutoModel"])[0]
            head = getattr(transformers, name, None) or getattr(models, name, transformers.AutoModel)
            return head.from_pretrained(folder, dtype=dtype, **EXPERTS).eval()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{folder}: transformers can't load it ({reason}): check the checkpoint") from error


def _inputs(model: Any, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Random inputs for a model, each with a label."""
    generator = torch.Generator().manual_seed(seed)
    accepted, config = inspect.signature(model.forward).parameters, model.config
    if model.main_input_name == "pixel_values":
        yield from _images(config, "interpolate_pos_encoding" in accepted, generator)
        return
    for label, inputs in _texts(getattr(config, "text_config", config), "position_ids" in accepted, generator):
        if model.main_input_name == "input_features":  # two frames of sound for every position
            sound = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
            yield label, {"input_features": sound} | {f"decoder_{name}": value for name, value in inputs.items()}
        elif config.is_encoder_decoder:
            yield label, _ended(inputs, config) | {"decoder_input_ids": inputs["input_ids"].flip(1)}
        elif "pixel_values" in accepted:
            _, images = next(_images(config.vision_config, False, generator))
            yield label, illustrated(inputs, config) | images
        else:
            yield label, inputs


def illustrated(inputs: dict[str, Any], config: Any) -> dict[str, Any]:
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


def _ended(inputs: dict[str, Any], config: Any) -> dict[str, Any]:
    """The same texts, each with one end: a classifier reads what is there, and wants equally many in all."""
    end = getattr(config, "eos_token_id", None)
    if not isinstance(end, int):
        return inputs
    tokens = inputs["input_ids"].masked_fill(inputs["input_ids"] == end, (end + 1) % config.vocab_size)
    tokens[:, -1] = end
    return inputs | {"input_ids": tokens}


def _texts(config: Any, offsets: bool, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    """Random tokens of several lengths, with padding, and at several positions where these can be given."""
    # RoBERTa numbers positions from padding_idx + 1, OPT's table has its own two spare rows.
    tables = (getattr(config, name, None) for name in ("max_position_embeddings", "max_target_positions"))
    lengths = (*_LENGTHS, *_farthest(config))
    longest = next((length for length in tables if length), max(lengths) + max(_OFFSETS))
    if config.model_type in ("roberta", "xlm-roberta", "mpnet"):
        longest -= 2 + (getattr(config, "pad_token_id", None) or 0)
    for length in sorted({min(n, longest) for n in lengths}):
        tokens = torch.randint(0, config.vocab_size, (2, length), generator=generator)
        mask = torch.ones_like(tokens)
        for offset in _OFFSETS if offsets else (0,):
            if offset + length <= longest:
                extra = {"position_ids": torch.arange(length) + offset} if offset else {}
                extra = {k: v.expand_as(tokens) for k, v in extra.items()}
                yield f"length {length}, offset {offset}", {"input_ids": tokens, "attention_mask": mask, **extra}
        if length > 3:
            mask = mask.clone()
            mask[1, length // 2 :] = 0
            yield f"length {length}, padded", {"input_ids": tokens, "attention_mask": mask}


def _farthest(config: Any) -> tuple[int, ...]:
    """A length at which every entry of a table of relative positions is read, if there is one."""
    if not hasattr(config, "relative_attention_num_buckets"):
        return ()
    return (getattr(config, "relative_attention_max_distance", 128) + 1,)  # MPNet has no entry for it


def _images(config: Any, interpolates: bool, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    """Random images of the model's own size, and of twice that where it can interpolate its positions."""
    height, width = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
    for scale in (1, 2) if interpolates else (1,):
        shape = (2, config.num_channels, scale * height, scale * width)
        inputs: dict[str, Any] = {"pixel_values": torch.randn(shape, generator=generator)}
        yield f"{shape}", inputs | ({"interpolate_pos_encoding": True} if scale > 1 else {})


def compare_tensors(a: dict[str, Tensor], b: dict[str, Tensor], *, tolerance: float = 1e-6) -> Verification:
    """Compare named tensors value by value."""
    return Verification(*_differences(a, b), tolerance, "blocks and all tensors along the residual stream")


def compare_blocks(
    group: AttentionGroup, a: AttentionWeights, b: AttentionWeights, *, tolerance: float = 1e-6, seed: int = 0
) -> Verification:
    """Compare the functions of two blocks in float64 on random hidden states, as plainly as `attend` writes them.

    Args:
        group: Group of both.
        a: The original, without leading dimensions.
        b: The other one.
        tolerance: Relative difference that counts as equal.
        seed: Of the hidden states and of the rotary frequencies, random and distinct: the group must hold for any.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, device = max(_LENGTHS), a.key.device
    hidden = torch.randn(2, tokens, a.width, generator=generator, dtype=torch.float64).to(device)
    frequencies = torch.rand(len(group.rotary.planes), generator=generator, dtype=torch.float64)
    angles = (torch.arange(tokens, dtype=torch.float64).unsqueeze(-1) * frequencies).to(device)
    outputs = [{"block": attend(weights, group, hidden, angles)} for weights in (a, b)]
    return Verification(*_differences(*outputs), tolerance, "attention blocks one by one on random hidden states")


def compare_feedforward(
    site: FeedForward, a: FeedForwardWeights, b: FeedForwardWeights, *, tolerance: float = 1e-6, seed: int = 0
) -> Verification:
    """Compare the functions of two feed-forward blocks in float64 on random hidden states, experts as `feed_forward`.

    Args:
        site: What is known of both.
        a: The original, without leading dimensions.
        b: The other one.
        tolerance: Relative difference that counts as equal.
        seed: Of the hidden states.
    """
    activation, multiplied = activation_functions(site.activation)
    scores = None if site.group.shift else torch.sigmoid
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2 * max(_LENGTHS), a.up.shape[-1], generator=generator, dtype=torch.float64).to(a.up.device)
    outputs = [{"block": feed_forward(weights, activation, hidden, multiplied, scores)} for weights in (a, b)]
    return Verification(*_differences(*outputs), tolerance, "feed-forward blocks one by one on random hidden states")


def _compare_by_layer(a: Model, b: Model, seed: int, device: str) -> tuple[float, float]:
    """Every block of either kind on random hidden states, and every other tensor by value."""
    pairs = list(zip(known_feedforwards(a), known_feedforwards(b), strict=False))
    max_abs, max_rel = _compare_rest(a, b, [one for one, _ in pairs], [other for _, other in pairs])
    for one, other in zip(a.specification.sites, b.specification.sites, strict=True):
        blocks = [site.read(model.stored(site), device) for model, site in ((a, one), (b, other))]
        found = compare_blocks(one.group, *blocks, seed=seed)
        max_abs, max_rel = max(max_abs, found.max_abs), max(max_rel, found.max_rel)
    for one, other in pairs:
        if one.activation != other.activation:
            return float("inf"), float("inf")
        blocks = [site.read(model.stored(site), device) for model, site in ((a, one), (b, other))]
        found = compare_feedforward(one, *blocks, seed=seed)
        max_abs, max_rel = max(max_abs, found.max_abs), max(max_rel, found.max_rel)
    return max_abs, max_rel


def known_feedforwards(model: Blocks) -> Sequence[FeedForward]:
    """The feed-forward blocks of a model; none where anything about them is not understood."""
    try:
        return model.feedforwards()
    except (ArchitectureError, TensorError):
        return ()


def rest_of(model: Model, feedforwards: Sequence[FeedForward] = ()) -> dict[str, tuple[int, ...]]:
    """Canonical name and shape of every tensor outside the attention blocks and these feed-forward blocks."""
    known = {model.view.canonical[n] for site in (*model.specification.sites, *feedforwards) for n in site.shapes()}
    return {name: shape for name, shape in model.canonical.shapes().items() if name not in known}


def _compare_rest(
    a: Model, b: Model, ours: Sequence[FeedForward], theirs: Sequence[FeedForward]
) -> tuple[float, float]:
    """Differences of all tensors outside the blocks; infinite where one is only in one model."""
    names = rest_of(a, ours)
    if names != rest_of(b, theirs):
        return float("inf"), float("inf")
    max_abs = max_rel = 0.0
    for name in names:
        pair = [{name: model.canonical.read([name])[name].to(torch.float64)} for model in (a, b)]
        gap, ratio = _differences(*pair)
        max_abs, max_rel = max(max_abs, gap), max(max_rel, ratio)
    return max_abs, max_rel
