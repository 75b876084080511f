"""What calibration data say of the inputs of a model's blocks, where distances are weighted by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from isobasin.architectures.blocks import Block
from isobasin.architectures.feedforwards import ExpertsBlock
from isobasin.choices import Objective
from isobasin.errors import IsobasinError
from isobasin.matching.inputs import Moments, folded
from isobasin.model import Blocks
from isobasin.symmetries.along import Stream
from isobasin.verbs.settings import Calibration, Matching

ByName = Mapping[str, Tensor]
"""Second moments of what a model's weights multiply, by the weight's name."""


def inputs_of(reference: Blocks, matching: Matching, calibration: Calibration | None) -> ByName | None:
    """The moments of everything that is matched, of the reference's inputs; None where weights are compared alone.

    Raises:
        IsobasinError: There are no data, or there are experts, which see some tokens only.
    """
    if matching.objective is Objective.weights:
        return None
    if calibration is None:
        raise IsobasinError("objective activations needs data to weigh by: give --data")
    blocks = reference.blocks(feedforward=matching.feedforward)
    if experts := [block.name for block in blocks if isinstance(block, ExpertsBlock)]:
        raise IsobasinError(f"{experts[0]}: objective activations can't weigh experts: use --scope attention")
    return calibration.moments(reference, {reader.weight for block in blocks for reader in block.readers.values()})


def at(inputs: ByName | None, blocks: Sequence[Block], device: str) -> Moments | None:
    """The moments of alike blocks' readers, stacked along a leading dimension."""
    if inputs is None:
        return None
    roles = blocks[0].readers
    return {role: torch.stack([inputs[s.readers[role].weight] for s in blocks]).to(device) for role in roles}


def fold_inputs(inputs: ByName, stream: Stream, tensors: Mapping[str, Tensor]) -> ByName:
    """The moments where normalisations are folded into their readers; `tensors` has their gains and biases."""
    found = dict(inputs)
    for norm in stream.norms:
        bias = tensors[norm.bias] if norm.bias is not None and norm.absorbed else None
        for reader in norm.readers:
            if reader.weight in found:
                found[reader.weight] = folded(inputs[reader.weight], norm.gains(tensors), bias)
    return found
