"""Products of rows: matrices by the library that is quickest at them, and sums without whole tensors in between.

New memory is what large tensors cost most: the system clears every page of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Numbers that are looked at at once where sums are made: memory of this size is used again, not asked for.
_NUMBERS = 2**17


def with_rows(right: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """`left -> left right^T`, `(n, d)` and `(m, d)` to `(n, m)`, of factors in this type, whatever theirs are.

    In float32 on processors by oneDNN where torch has it: about as quick as MKL on Intel's, twice as quick on AMD's.
    Where torch has been told to multiply float32 less exactly (TF32), in float64: callers rely on its errors' bounds.
    """
    if dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest":
        dtype = torch.float64
    known = right.device.type == "cpu" and torch.backends.mkldnn.is_available()
    # It has no product with nothing.
    if known and dtype is not torch.float64 and right.numel():
        ready = right.to(dtype).contiguous().to_mkldnn()
        return lambda left: torch.nn.functional.linear(left.to(dtype).contiguous().to_mkldnn(), ready).to_dense()
    ready = right.to(dtype)
    return lambda left: left.to(dtype) @ ready.mT


def roughest(device: torch.device) -> torch.dtype:
    """The type of factors whose products are quickest, rough as they are: bfloat16 where a device multiplies it."""
    return torch.bfloat16 if multiplies_bfloat16(device.type) else torch.float32


def multiplies_bfloat16(device: str) -> bool:
    """Whether a kind of device multiplies bfloat16 itself."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return device == "cpu" and any(bool(able.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def dots(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of rows, `(n, d)` to `(n,)`."""
    return torch.cat([(one * other).sum(-1) for one, other in zip(pieces(x), pieces(y), strict=True)])


def squares(x: Tensor, y: Tensor | None = None) -> float:
    """`||x - y||²`; `||x||²` without y."""
    if y is None:
        return sum(float(part.square().sum()) for part in pieces(x))
    return sum(float((one - other).square().sum()) for one, other in zip(pieces(x), pieces(y), strict=True))


def pieces(x: Tensor) -> tuple[Tensor, ...]:
    """A tensor some rows at a time."""
    return x.split(max(1, _NUMBERS // max(1, x[:1].numel()))) if x.ndim else (x,)
