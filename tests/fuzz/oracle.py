"""Do two folders compute the same? By transformers' own outputs in float64, and by nothing of this project."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .subjects import Subject

# Relative difference that rounding to a stored type explains after well-conditioned maps; numbers of extreme sizes
# are refused by the program, or rounded no worse.
_TOLERANCES = {"F64": 1e-4, "F32": 1e-3, "F16": 0.03, "BF16": 0.15}


def outputs(subject: Subject, folder: Path, pristine: Path) -> dict[str, Tensor] | None:
    """Every floating-point output on fixed inputs; None if transformers can't load or run the folder.

    Args:
        subject: Says of which class the model is.
        folder: What to load, with its own configuration, or else with the undamaged one.
        pristine: The undamaged checkpoint.
    """
    architecture = subject.architecture
    own: dict[str, Any] = {}
    for config in (None, pristine):
        try:
            torch.manual_seed(0)
            if config is not None:
                own = {"config": architecture.config_class.from_pretrained(config)}
            options = {"attn_implementation": "eager", "experts_implementation": "eager", "trust_remote_code": False}
            model = architecture.from_pretrained(folder, dtype=torch.float64, **options, **own).eval()
            with torch.no_grad():
                found = model(**_inputs(model))
            return {name: x for name, x in found.items() if isinstance(x, Tensor) and x.is_floating_point()}
        except Exception:  # whatever transformers does with a damaged folder
            continue
    return None


def _inputs(model: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": images}
    tokens = torch.randint(3, 50, (3, 9), generator=generator)
    accepted = inspect.signature(model.forward).parameters
    found = {"input_ids": tokens}
    found |= {"decoder_input_ids": tokens.flip(1)} if "decoder_input_ids" in accepted else {}
    return found | ({"pixel_values": images} if "pixel_values" in accepted else {})


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest relative difference of any output; 0 where the first one isn't finite, which nothing can equal."""
    worst = 0.0
    for name, x in one.items():
        if not x.isfinite().all():
            return 0.0
        y = other.get(name)
        if y is None or y.shape != x.shape:
            return float("inf")
        gap = (x - y).abs().nan_to_num(torch.inf).max()
        worst = max(worst, float(gap / x.abs().max().clamp(min=1e-30)))
    return worst


def tolerance(folder: Path) -> float:
    """What counts as one function, by the coarsest type that a tensor of a folder is stored in."""
    kinds: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return max(_TOLERANCES.get(kind, 0.0) for kind in kinds)


def unlike(subject: Subject, one: Path, other: Path, pristine: Path) -> str:
    """How two folders differ that should compute the same; empty if they don't, or can't be run."""
    before, after = (outputs(subject, folder, pristine) for folder in (one, other))
    if before is None:
        return ""
    if after is None:
        return "transformers runs the one and not the other"
    gap = difference(before, after)
    return f"outputs differ by {gap:.2g}" if gap > max(map(tolerance, (one, other))) else ""


def incomplete(folder: Path) -> str:
    """What is missing of a checkpoint that was written; empty if it is whole."""
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return "OUT has no config.json"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return "OUT has no weights"
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            return f"OUT has a broken {file.name}: {error}"
    return ""
