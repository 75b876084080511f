"""Tables of relative position biases: what softmax lets pass.

A query sees the entries of one number only, and softmax cancels what is added to all of them. One constant is free for
most tables; where special tokens have entries of their own (BEiT), two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isobasin.symmetries.groups import AttentionGroup


def means(group: AttentionGroup, table: Tensor) -> Tensor:
    """The mean of the entries of every number, `(..., constants)`."""
    member = torch.nn.functional.one_hot(torch.tensor(group.table, device=table.device)).to(table)
    return table @ (member / member.sum(0))


def centred(group: AttentionGroup, table: Tensor) -> Tensor:
    """A table less those means: what no shift changes."""
    return table - means(group, table)[..., list(group.table)]
