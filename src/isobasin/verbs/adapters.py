"""LoRA adapters after a move of their base: new factors, so that moved base and moved adapter do what the two did."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from isobasin.alignment import Alignment, Moved
from isobasin.beside import ALIGNMENT
from isobasin.canonical import base_of, open_canonical, write_merged
from isobasin.checkpoints import Adapter, check_output, temporary_folder
from isobasin.checkpoints.adapters import Factors
from isobasin.errors import AlignmentError, IsobasinError, VerificationError, about
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
    moved_base: str,
    allow_pickle: bool = False,
) -> Moved:
    """Write what an adapter is after a move of its base; arguments and errors as `apply`, which calls this.

    Args:
        alignment: The move.
        adapter: The adapter; what its configuration names as its base is read.
        output: Folder to write to.
        running: Where, and whether it is verified.
        moved_base: What the new configuration names as its base.
        allow_pickle: Load pickled weights of the base, with `weights_only`.
    """
    with base_of(adapter, allow_pickle=allow_pickle, untie=alignment.untied) as canonical:
        base = Model.of(canonical)
        check_output(output, [adapter.folder], running.force)
        with about(str(adapter.folder)):
            new = adapter.having(factors_after(alignment, base, adapter, running.device), moved_base)
        if running.verify:
            check_moved_base(alignment, base, moved_base, running.device, allow_pickle=allow_pickle)
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


def check_moved_base(alignment: Alignment, base: Model, named: str, device: str, *, allow_pickle: bool) -> None:
    """What the new adapter names has to hold what its base becomes, up to one rounding; unless nothing is there yet.

    Raises:
        IsobasinError: It holds another model, on which the adapter would do something else.
    """
    if not os.path.isdir(named):
        return
    wrong = f"{named}: isn't what {base.name} becomes by this move"
    advice = "name the folder that is (--moved-base)"
    with open_canonical(named, allow_pickle=allow_pickle, untie=alignment.untied) as there:
        if there.shapes != base.canonical.shapes:
            raise IsobasinError(f"{wrong}, which has other tensors: {advice}")
        left = dict.fromkeys(base.view.canonical)

        def wanted() -> Iterator[dict[str, Tensor]]:
            for piece in alignment.moved(base, device):
                yield {name: x for name, x in piece.items() if name in left}
            yield from (base.read([name]) for name in list(left))

        for piece in wanted():
            for name, x in piece.items():
                del left[name]
                (found,) = there.read([base.view.canonical[name]]).values()
                if not _rounded(x.cpu().double(), found):
                    raise IsobasinError(f"{wrong}: its {name!r} is another one: {advice}")


def _rounded(wanted: Tensor, found: Tensor) -> bool:
    """Whether values are others rounded once to their type, which were computed in float64 elsewhere."""
    kind = torch.finfo(found.dtype if found.is_floating_point() else torch.float64)
    allowed = kind.eps * (wanted.abs() + kind.smallest_normal) + 1e-9 * wanted.abs().max()
    return bool(((found.double() - wanted).abs() <= allowed).all())


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
