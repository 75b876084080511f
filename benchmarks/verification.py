"""What rounding explains: honest copies of checkpoints and edited ones, beside one more rounding of their values.

    python benchmarks/verification.py CHECKPOINT [CHECKPOINT …]

A line a copy: the differences over what one rounding changes (largest value, root mean square, distributions), how far
the copy's gauge amplifies rounding, and the verdict. Head removed: the fewest roundings of all heads, one at a time.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import isobasin
from isobasin.checkpoints import Checkpoint, write_checkpoint
from isobasin.model import open_model
from isobasin.verification import Verification

TYPES = (torch.float32, torch.float16, torch.bfloat16)


def copy(source: Path, target: Path, change: Callable[[str, Tensor], Tensor], dtype: torch.dtype | None = None) -> Path:
    """A copy of a checkpoint with its tensors changed, and stored in a type."""
    checkpoint = Checkpoint.open(source)
    changed = ({name: change(name, checkpoint.read([name])[name])} for name in checkpoint.tensors)
    write_checkpoint(checkpoint, target, changed, dtype=dtype, force=True)
    return target


def show(what: str, found: Verification) -> None:
    """One line."""
    rounding = found.rounding
    ratios = ["      –"] * 3
    if rounding is not None and rounding.rms and found.rms is not None:
        ratios = [f"{found.max_rel / rounding.max_rel:7.2f}", f"{found.rms / rounding.rms:7.2f}", "      –"]
        if rounding.kl and found.kl is not None:
            ratios[2] = f"{(found.kl / rounding.kl) ** 0.5:7.2f}"
    figures = f"{found.max_rel:.1e} {' '.join(ratios)} {found.amplification or 0:6.1f}"
    print(f"  {what:38} {figures}  {'equal' if found.equal else 'NOT EQUAL'}", flush=True)


def without_head(source: Path, target: Path, layer: int, head: int) -> Path:
    """A copy in which one head's output is zero."""
    with open_model(source) as model:
        block = model.specification.attention[layer]
        weights = block.read(model.stored(block))
        weights.output.flatten(0, 1)[head] = 0
        written = block.write(model.stored(block), weights)
    return copy(source, target, lambda name, tensor: written.get(name, tensor).to(tensor.dtype))


def noisy(size: float, seed: int) -> Callable[[str, Tensor], Tensor]:
    """All values moved by this much, up or down."""
    generator = torch.Generator().manual_seed(seed)
    return lambda name, x: (x.double() + size * torch.randn(x.shape, generator=generator).sign()).to(x.dtype)


def honest(source: Path, work: Path, dtype: torch.dtype) -> Path:
    """Copies in one type that compute what a checkpoint does, or did before it was rounded; the first of them."""
    name, scrambled, back = str(dtype).removeprefix("torch."), work / "scrambled", work / "back"
    cast = copy(source, work / name, lambda _, tensor: tensor, dtype)
    show(f"stored in {name}", isobasin.verify(source, cast))
    for seed in range(2):
        for scope in ("attention", "model"):
            isobasin.scramble(cast, scrambled, seed=seed, scope=scope, verify=False, force=True)
            show(f"{name}, scrambled ({scope}), seed {seed}", isobasin.verify(cast, scrambled))
    isobasin.align(cast, scrambled, back, scope="model", verify=False, force=True)
    show(f"{name}, scrambled and aligned back", isobasin.verify(cast, back))
    isobasin.scramble(source, scrambled, condition=1e3, dtype=dtype, verify=False, force=True)
    show(f"{name}, scrambled at condition 1e3", isobasin.verify(source, scrambled))
    return cast


def study(source: Path, work: Path) -> None:
    """Every copy of one checkpoint."""
    print(f"{source.name}\n  {'copy':38} differ  largest     rms      KL  amplif.")
    casts = [honest(source, work, dtype) for dtype in TYPES]
    cast = casts[-1]
    for size in (1e-4, 3e-4, 1e-3):
        show(
            f"bfloat16, all values moved by {size:g}", isobasin.verify(cast, copy(cast, work / "noisy", noisy(size, 0)))
        )
    with open_model(cast) as model:
        blocks = [(i, h) for i, s in enumerate(model.specification.attention) for h in range(s.group.heads)]
    found = [isobasin.verify(cast, without_head(cast, work / "cut", *block)) for block in blocks]
    least = min(found, key=lambda v: (v.rms or 0) / max(v.rounding.rms if v.rounding else 1e-9, 1e-9))
    show(f"bfloat16, head removed (of {len(blocks)})", least)
    print(f"  called equal: {sum(v.equal for v in found)} of {len(found)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for path in sys.argv[1:]:
            study(Path(path), Path(folder))
