"""Align models of a home-made architecture: say where the projections lie, and the rest follows.

Two one-layer transformers without LayerNorm, in TransformerLens's names, learn to add modulo 23, each from its own
start. Both are also aligned in another layout, as other code might store them. Runs as it is, in some seconds:
`python examples/custom_architecture.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

import isobasin
from isobasin import AttentionBlock, AttentionGroup, BilinearGroup, Layout, Projection, Specification

MODULUS, WIDTH, HEADS, FEATURES, UNITS = 23, 32, 4, 8, 64

# --- The architecture: which tensors, how their axes run, which biases there are. -------------------------------

SIZES = (("head", HEADS), ("width", WIDTH), ("feature", FEATURES))


def architecture(axes: str, output_axes: str) -> Specification:
    """One attention block with absolute positions: GL(8) on Q-K and on V-O of every head."""

    def projection(letter: str, pattern: str) -> Projection:
        return Projection(f"blocks.0.attn.W_{letter}", f"blocks.0.attn.b_{letter}", Layout(pattern, SIZES))

    group = AttentionGroup(
        kv_heads=HEADS, queries_per_kv=1, query_key=BilinearGroup(FEATURES), value_output=BilinearGroup(FEATURES),
        key_shift=True, value_shift=True,
    )  # fmt: skip
    query, key, value = (projection(letter, axes) for letter in "QKV")
    block = AttentionBlock(0, "blocks.0.attn", query, key, value, projection("O", output_axes), group)
    return Specification("toy", (block,))


TRANSFORMER_LENS = architecture("head width feature", "head feature width")
OTHER_CODE = architecture("head feature width", "width (head feature)")


def stored_otherwise(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same model with the axes of `OTHER_CODE`."""
    turned = {f"blocks.0.attn.W_{c}": tensors[f"blocks.0.attn.W_{c}"].mT.contiguous() for c in "QKV"}
    output = tensors["blocks.0.attn.W_O"].permute(2, 0, 1).reshape(WIDTH, -1)
    return {**tensors, **turned, "blocks.0.attn.W_O": output}


# --- The model itself, which isobasin knows nothing of. ---------------------------------------------------------

SUMS = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
TOKENS = torch.cat([SUMS, torch.full((len(SUMS), 1), MODULUS)], dim=1)
ANSWERS = SUMS.sum(1) % MODULUS


def logits(w: dict[str, Tensor]) -> Tensor:
    """What a model says of all sums."""
    h = w["embed.W_E"][TOKENS] + w["pos_embed.W_pos"]
    q, k, v = (
        torch.einsum("btd,hdn->bhtn", h, w[f"blocks.0.attn.W_{c}"]) + w[f"blocks.0.attn.b_{c}"][:, None] for c in "QKV"
    )
    scores = (q @ k.mT / FEATURES**0.5).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    h = h + torch.einsum("bhtn,hnd->btd", scores.softmax(-1) @ v, w["blocks.0.attn.W_O"]) + w["blocks.0.attn.b_O"]
    h = h + (h @ w["blocks.0.mlp.W_in"]).relu() @ w["blocks.0.mlp.W_out"]
    return h[:, -1] @ w["unembed.W_U"]


def trained(seed: int, steps: int = 150) -> dict[str, Tensor]:
    """A model that learned all sums."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (MODULUS + 1, WIDTH), "pos_embed.W_pos": (3, WIDTH)}
    shapes |= {f"blocks.0.attn.W_{c}": (HEADS, WIDTH, FEATURES) for c in "QKV"}
    shapes |= {f"blocks.0.attn.b_{c}": (HEADS, FEATURES) for c in "QKV"}
    shapes |= {"blocks.0.attn.W_O": (HEADS, FEATURES, WIDTH), "blocks.0.attn.b_O": (WIDTH,)}
    shapes |= {
        "blocks.0.mlp.W_in": (WIDTH, UNITS),
        "blocks.0.mlp.W_out": (UNITS, WIDTH),
        "unembed.W_U": (WIDTH, MODULUS),
    }
    w = {name: torch.randn(shape, generator=generator) / WIDTH**0.5 for name, shape in shapes.items()}
    optimizer = torch.optim.AdamW([tensor.requires_grad_() for tensor in w.values()], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits(w), ANSWERS).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in w.items()}


def main() -> None:
    """Align, and see that the moved model computes what it did."""
    a, b = trained(0), trained(1)
    alignment = isobasin.align_tensors(a, b, TRANSFORMER_LENS)
    moved = alignment.moved_tensors(b, TRANSFORMER_LENS)
    print(alignment)
    right = [(logits(w).argmax(1) == ANSWERS).float().mean().item() for w in (b, moved)]
    print(f"right sums, before and after: {right[0]:.4f}, {right[1]:.4f}")
    print(f"largest difference of logits: {(logits(b) - logits(moved)).abs().max():.1e}")

    other = stored_otherwise(b)
    found = isobasin.align_tensors(stored_otherwise(a), other, OTHER_CODE).moved_tensors(other, OTHER_CODE)
    wanted = stored_otherwise(moved)
    gap = max((found[name] - wanted[name]).abs().max().item() for name in wanted)
    print(f"stored in another layout, the same move to {gap:.1e}")


if __name__ == "__main__":
    main()
