"""Conversions that went wrong on purpose: every known defect, planted in any family that has a place for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from isobasin.diagnosis.findings import Defect
from isobasin.model import open_model
from isobasin.testing import mistakes
from isobasin.testing.conversion import Conversion

Change = Callable[[Conversion], bool]


@dataclass(frozen=True)
class Plant:
    """A defect.

    Attributes:
        name: What it is called in tables.
        accepted: What may be said of it.
        change: Makes it; False where the model has no place for it, or where it changes nothing.
    """

    name: str
    accepted: frozenset[Defect]
    change: Change


def plant(original: Path, folder: Path, plants: tuple[Plant, ...], seed: int) -> Path | None:
    """Write a conversion with some defects; None where the model has no place for one of them."""
    with open_model(original) as model:
        conversion = Conversion.of(model, seed)
        if not all(one.change(conversion) for one in plants):
            return None
        return conversion.save(folder)


def _plant(name: str, defects: str, change: Change) -> Plant:
    return Plant(name, frozenset(Defect[one] for one in defects.split()), change)


PLANTS: Mapping[str, Plant] = {
    one.name: one
    for one in (
        _plant("half and interleaved", "rotary_order", lambda c: mistakes.rotary(c, back=False)),
        _plant("half and interleaved, once too often", "rotary_order", lambda c: mistakes.rotary(c, back=True)),
        _plant("keys as if of all heads", "rotary_order", lambda c: mistakes.rotary(c, back=True, key_alone=True)),
        _plant("[K | Q | V]", "fused_order", lambda c: mistakes.swapped_roles(c, "query", "key")),
        _plant("[Q | V | K]", "fused_order", lambda c: mistakes.swapped_roles(c, "key", "value")),
        _plant(
            "q, k, v fused otherwise",
            "fused_order",
            lambda c: mistakes.fused(c, ("(head part feature)", "(part head feature)")),
        ),
        _plant("gate and up swapped", "fused_order", lambda c: mistakes.swapped_roles(c, "gate", "up")),
        _plant(
            "gate and up interleaved",
            "fused_order",
            lambda c: mistakes.fused(c, ("(head feature part)", "(head part feature)"), ("gate", "up")),
        ),
        _plant("transposed", "transposed", mistakes.transposed),
        _plant("bias zero", "lost", lambda c: mistakes.lost(c, missing=False)),
        _plant("bias missing", "lost", lambda c: mistakes.lost(c, missing=True)),
        _plant("gains swapped", "swapped", mistakes.swapped),
        _plant("key/value heads reversed", "head_order", mistakes.key_value_heads),
        _plant("query heads interleaved", "head_order", mistakes.query_heads),
        _plant("folded twice", "folded", mistakes.folded),
        _plant("gain lost", "unfolded", mistakes.unfolded),
        _plant("gains one too high", "gain_offset", lambda c: mistakes.offset(c, 1.0)),
        _plant("gains one too low", "gain_offset", lambda c: mistakes.offset(c, -1.0)),
        _plant("query scale twice", "scale", lambda c: mistakes.query_scale(c, -0.5)),
        _plant("query scale taken out", "scale", lambda c: mistakes.query_scale(c, 0.5)),
        _plant("head", "head", mistakes.head),
        _plant(
            "rows in another order",
            "rows",
            lambda c: mistakes.embedding(c, lambda x: x.roll(7, 0)[torch.arange(len(x)).roll(3).flip(0)]),
        ),
        _plant("padded rows", "rows", mistakes.vocabulary),
        _plant("embedding scale", "scale", lambda c: mistakes.embedding(c, lambda x: x * x.shape[1] ** 0.5)),
        _plant("positions off by two", "positions", mistakes.positions),
        _plant(
            "rope base",
            "configuration",
            lambda c: mistakes.entry(c, ("rope_theta", "rotary_emb_base"), lambda x: x * 50),
        ),
        _plant(
            "epsilon",
            "configuration",
            lambda c: mistakes.entry(
                c, ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"), lambda x: x * 10
            ),
        ),
        _plant(
            "activation",
            "configuration",
            lambda c: mistakes.entry(
                c, ("hidden_act", "hidden_activation", "activation_function", "activation"), mistakes.activation
            ),
        ),
        _plant("bfloat16", "rounding", lambda c: mistakes.rounded(c, torch.bfloat16)),
        _plant("float16", "rounding", lambda c: mistakes.rounded(c, torch.float16)),
        _plant("layers swapped", "layers", lambda c: mistakes.ordered(c, twice=False)),
        _plant("layer twice", "layers", lambda c: mistakes.ordered(c, twice=True)),
    )
}
"""Every defect that is planted, by name."""
