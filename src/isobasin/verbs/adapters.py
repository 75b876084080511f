"""LoRA adapters after a move of their base: new factors, so that moved base and moved adapter do what the two did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from isobasin.alignment import Alignment, Moved
from isobasin.beside import ALIGNMENT
from isobasin.canonical import base_of, write_merged
from isobasin.checkpoints import Adapter, check_output, temporary_folder
from isobasin.checkpoints.adapters import Factors
from isobasin.errors import AlignmentError, VerificationError, about
from isobasin.model import Model, Revalued, opened
from isobasin.verbs.leaving import leave
from isobasin.verbs.settings import Running
from isobasin.verification import Verification, verify_models

# How far a tensor that no factor adds to may change with the adapter, beside its size: by rounding in float64.
_SAME = 1e-10


@dataclass(frozen=True, eq=False)
class Adapted(Revalued):
    """An adapter's base with what it adds, in float64, tensor by tensor as they are asked for.

    Attributes:
        added: What is added, by stored name.
    """

    added: Mapping[str, Tensor]

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names."""
        found = self.model.read(names)
        return {name: x.double() + self.added[name] if name in self.added else x for name, x in found.items()}


def move_adapter(
    alignment: Alignment,
    adapter: Adapter,
    output: Path,
    running: Running,
    *,
    moved_base: str | None,
    allow_pickle: bool = False,
) -> Moved:
    """Write what an adapter is after a move of its base; arguments and errors as `apply`, which calls this.

    Args:
        alignment: The move.
        adapter: The adapter; what its configuration names as its base is read.
        output: Folder to write to.
        running: Where, and whether it is verified.
        moved_base: What the new configuration names as its base; None: what the old one does.
        allow_pickle: Load pickled weights of the base, with `weights_only`.
    """
    with base_of(adapter, allow_pickle=allow_pickle, untie=alignment.untied) as canonical:
        base = Model.of(canonical)
        check_output(output, [adapter.folder], running.force)
        with about(str(adapter.folder)):
            new = adapter.having(factors_after(alignment, base, adapter, running.device), moved_base or adapter.base)
        called = replace(canonical, name=str(adapter.folder))

        def extra(staging: Path) -> None:
            alignment.save(staging / ALIGNMENT, force=True)
            leave(staging, [called], library="peft")

        def check(staging: Path) -> Verification | None:
            if not running.verify:
                return None
            running.progress("verifying", 0, 1)
            found = verify_adapters(alignment, base, adapter, Adapter.open(staging), running.device)
            running.progress("verifying", 1, 1)
            if not found.equal:
                reason = f"{found.reason}; {output} was not written: lower --max-condition"
                raise VerificationError(f"the moved adapter isn't the same function: {reason}")
            return found

        verified = new.write(output, force=running.force, extra=extra, check=check)
    return Moved(output, None, verified, alignment)


def factors_after(alignment: Alignment, base: Model, adapter: Adapter, device: str) -> dict[str, Factors]:
    """The factors that a move changes, by module.

    A weight moves linearly, and so does what is added to it: the difference of the moved weights with and without.

    Raises:
        AlignmentError: With the adapter another tensor moves otherwise, a bias say, which no adapter adds to.
        TensorError: A factor fits no weight of the base.
    """
    targets = base.canonical.targets(adapter)
    added = {name: adapter.factors[module].product(base.shape(name)) for name, module in targets.items()}
    found: dict[str, Factors] = {}
    moves = zip(alignment.moved(base, device), alignment.moved(Adapted(base, added), device), strict=True)
    for before, after in moves:
        for name, x in before.items():
            change = (after[name] - x).cpu()
            if name in targets:
                found[targets[name]] = adapter.factors[targets[name]].adding(change)
            elif float(change.norm()) > _SAME * float(x.norm()):
                raise AlignmentError(
                    f"{adapter.folder}: changes {name!r} of its moved base too, which factors can't: merge it into its "
                    "base first, and move that"
                )
    return found


def verify_adapters(alignment: Alignment, base: Model, adapter: Adapter, moved: Adapter, device: str) -> Verification:
    """How the moved base with the moved adapter compares with what the two were, both merged in float32 or finer."""
    dtype = torch.promote_types(base.dtype(), torch.float32)
    with temporary_folder() as folder:
        models = [
            opened(str(which.folder), write_merged(base.canonical, which, folder / place, pieces, dtype=dtype))
            for place, which, pieces in (("0", adapter, ()), ("1", moved, alignment.moved(base, device)))
        ]
        return verify_models(*models, device=device)
