"""Do two checkpoints compute the same? Their outputs on random inputs, as transformers computes them."""

from isobasin.verification.blocks import (
    compare_blocks,
    compare_feedforward,
    compare_tensors,
    known_feedforwards,
    rest_of,
)
from isobasin.verification.distance import Distance, Verification
from isobasin.verification.models import check_alike, check_runs, verify_models

__all__ = [
    "Distance",
    "Verification",
    "check_alike",
    "check_runs",
    "compare_blocks",
    "compare_feedforward",
    "compare_tensors",
    "known_feedforwards",
    "rest_of",
    "verify_models",
]
