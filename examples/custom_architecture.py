"""Align models of a home-made architecture: say where the projections lie, and the rest follows.

Four one-layer transformers, trained apart on addition modulo 113, in TransformerLens's names (no LayerNorm), and two
trained on addition modulo 59, whose tensors lie the other way round. Usage:

    python examples/custom_architecture.py CHECKPOINTS

where CHECKPOINTS holds `group_composition_C113/seed*.pt` (github.com/bilal-chughtai/rep-theory-mech-interp) and
`modadd59/*.pt` (github.com/fjzzq2002/pizza).
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor

import isobasin
from isobasin import AttentionBlock, AttentionGroup, BilinearGroup, Layout, Projection, Specification

# --- The architecture: which tensors, how their axes run, which biases there are. -------------------------------

SIZES = (("head", 4), ("width", 128), ("feature", 32))


def architecture(axes: str, output_axes: str, biases: bool) -> Specification:
    """One attention block with absolute positions: GL(32) on Q-K and on V-O of every head."""

    def projection(letter: str, pattern: str) -> Projection:
        bias = f"blocks.0.attn.b_{letter}" if biases else None
        return Projection(f"blocks.0.attn.W_{letter}", bias, Layout(pattern, SIZES))

    group = AttentionGroup(
        kv_heads=4, queries_per_kv=1, query_key=BilinearGroup(32), value_output=BilinearGroup(32),
        key_shift=biases, value_shift=biases,
    )  # fmt: skip
    query, key, value = (projection(letter, axes) for letter in "QKV")
    block = AttentionBlock(0, "blocks.0.attn", query, key, value, projection("O", output_axes), group)
    return Specification("toy", (block,))


GROUP_COMPOSITION = architecture("head width feature", "head feature width", biases=True)
MODULAR_ADDITION = architecture("head feature width", "width (head feature)", biases=False)


# --- A check that knows nothing of isobasin: the model's own accuracy. ------------------------------------------


def accuracy(w: dict[str, Tensor], modulus: int = 113) -> float:
    """Share of all sums x + y mod 113 that a group-composition model gets right."""
    x, y = torch.meshgrid(torch.arange(modulus), torch.arange(modulus), indexing="ij")
    tokens = torch.stack([x.flatten(), y.flatten(), torch.full((modulus**2,), modulus)], dim=-1)
    h = w["embed.W_E"][tokens] + w["pos_embed.W_pos"]
    q, k, v = (
        torch.einsum("btd,hdn->bhtn", h, w[f"blocks.0.attn.W_{c}"]) + w[f"blocks.0.attn.b_{c}"][:, None] for c in "QKV"
    )
    scores = (q @ k.mT / 32**0.5).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    z = scores.softmax(-1) @ v
    h = h + torch.einsum("bhtn,hnd->btd", z, w["blocks.0.attn.W_O"]) + w["blocks.0.attn.b_O"]
    h = h + (h @ w["blocks.0.mlp.W_in"] + w["blocks.0.mlp.b_in"]).relu() @ w["blocks.0.mlp.W_out"]
    logits = (h + w["blocks.0.mlp.b_out"])[:, -1] @ w["unembed.W_U"] + w["unembed.b_U"]
    return float((logits.argmax(-1) == (x + y).flatten() % modulus).float().mean())


def main(folder: Path) -> None:
    def tensors(file: Path) -> dict[str, Tensor]:
        return dict(torch.load(file, map_location="cpu", weights_only=True))

    seeds = [tensors(folder / f"group_composition_C113/seed{i}.pt") for i in range(1, 5)]
    for (i, a), (j, b) in itertools.combinations(enumerate(seeds, start=1), 2):
        alignment = isobasin.align_tensors(a, b, GROUP_COMPOSITION)
        moved = alignment.moved_tensors(b, GROUP_COMPOSITION)
        print(
            f"C113 seeds {i}-{j}: {alignment}; accuracy of the moved model {accuracy(b):.4f} -> {accuracy(moved):.4f}"
        )
    one, other = (tensors(file) for file in sorted((folder / "modadd59").glob("*.pt")))
    print(f"modadd59: {isobasin.align_tensors(one, other, MODULAR_ADDITION)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
