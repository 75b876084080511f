"""Do two models compute the same?"""

from __future__ import annotations

from dataclasses import replace

from isobasin.architectures.meaning import differences
from isobasin.bounds import check_number, check_seed
from isobasin.checkpoints import unlike_modules
from isobasin.model import Source, open_pair
from isobasin.verbs.settings import chosen_device
from isobasin.verification import Verification, verify_models


def verify(
    a: Source,
    b: Source,
    *,
    tolerance: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    allow_pickle: bool = False,
) -> Verification:
    """Do two models compute the same? Their outputs on random inputs of several lengths and offsets.

    Where their configurations mean something else, as windows of attention that these inputs don't fill, the result
    says so. Of models in memory weights and configuration are compared, as `save_pretrained` writes them: no hooks.

    Args:
        a: The original: folder, hub id, or transformers model.
        b: The other one.
        tolerance: Relative difference that counts as equal; by default what rounding does to them.
        seed: Of the inputs.
        device: Where the models run.
        allow_pickle: Load pickled weights, with `weights_only`.
    """
    device = chosen_device(device)
    check_seed(seed)
    if tolerance is not None:
        check_number("tolerance", tolerance, 0)
    with open_pair(a, b, allow_pickle=allow_pickle) as (one, other):
        found = verify_models(one, other, tolerance=tolerance, seed=seed, device=device)
        modules = unlike_modules(one.checkpoint.folder, other.checkpoint.folder)
        unlike = differences(*(model.canonical.description for model in (one, other)))
    entries = tuple(difference.entry for difference in unlike)
    return replace(found, configuration=entries, unequal=(*found.unequal, *modules))
