"""The pure layer: attention weights as plain tensors in, a group element out; no files, no model names.

Runs as it is: `python examples/pure_layer.py`.
"""

from __future__ import annotations

import torch

import isobasin
from isobasin import AttentionGroup, AttentionWeights, BilinearGroup
from isobasin.symmetries.function import attend

generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Two key/value heads with three query heads each, rotary positions in half layout: feature j turns with j + 4.
group = AttentionGroup(
    kv_heads=2,
    queries_per_kv=3,
    query_key=BilinearGroup(8, planes=((0, 4), (1, 5), (2, 6), (3, 7))),
    value_output=BilinearGroup(8),
)
reference = AttentionWeights(query=normal(2, 3, 48, 8), key=normal(2, 48, 8), value=normal(2, 48, 8),
                             output=normal(2, 3, 48, 8))  # fmt: skip
print(f"group: {group}, dimension {group.dimension}")

# A disguised copy: heads permuted, every head turned by maps of condition number 1000.
disguise = group.sample(generator, condition=1e3)
copy = group.act(disguise, reference)

found = isobasin.match(group, reference, copy)
print("head permutation undone:", found.element.head_permutation().tolist())
for name, tensor in found.moved.tensors().items():
    print(f"{name}: largest difference from the reference {(tensor - getattr(reference, name)).abs().max():.1e}")

# The function, written plainly, is the same for both.
hidden, angles = normal(1, 10, 48), torch.arange(10.0, dtype=torch.float64)[:, None] * torch.logspace(0, -3, 4).double()
gap = attend(reference, group, hidden, angles) - attend(copy, group, hidden, angles)
print(f"largest difference of the two functions: {gap.abs().max():.1e}")
