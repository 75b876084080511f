"""What fine-tuning changed in one base, carried to another base of the same architecture."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.architectures.resolve import check_comparable
from isobasin.beside import ALIGNMENT
from isobasin.bounds import check_number
from isobasin.canonical import (
    Canonical,
    Source,
    adapter_in,
    base_of,
    evened,
    merged,
    name_of,
    open_canonical,
    write_merged,
)
from isobasin.checkpoints import Adapter, calling, check_output, temporary_folder, write_checkpoint
from isobasin.choices import HeadCost, Method, Objective, Scope
from isobasin.errors import ArchitectureError, IsobasinError, TensorError, about, warn
from isobasin.model import Model
from isobasin.plain import Plain, plain
from isobasin.recipes import recorded
from isobasin.verbs.adapters import factors_after
from isobasin.verbs.align import match_models
from isobasin.verbs.apply import counted, deliver, verify_move
from isobasin.verbs.centring import moved_tensors
from isobasin.verbs.conflicts import Taking, refuse_conflicts
from isobasin.verbs.interpolate import same, tensors_of
from isobasin.verbs.leaving import leave
from isobasin.verbs.merge import runs
from isobasin.verbs.settings import Calibration, Matching, Progress, Running, silent
from isobasin.verbs.whole import advise, widest
from isobasin.verification import Verification

if TYPE_CHECKING:
    from collections.abc import Generator

    from transformers import PreTrainedModel

SCALES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5)
"""The scales among which data choose; with 0 the target stays as it is."""

LossesAlong = Callable[[Path, Path, Sequence[float]], Sequence[float]]
"""The losses at places of the line between the models in two folders, 0 being the first and 1 the second."""


@dataclass(frozen=True)
class Transported(Plain):
    """A fine-tune that was carried to another base.

    Attributes:
        path: The folder, if one was asked for.
        model: The new transformers model otherwise.
        alignment: What moved the base, and its fine-tune with it, into the target's gauge.
        verified: How the moved base and the moved fine-tune compare with what they were; empty if that wasn't asked.
        scale: What the change was multiplied by.
        losses: On held-out data, for every scale that was tried; empty without data.
        distance: Of the target to the moved base, in all tensors that both have.
        change: Size of what was added to the target; both are Frobenius norms.
        new: Tensors, by canonical names, that were taken from the moved fine-tune as they are.
        checked: On what the result's outputs were found finite, in words; None if it was not run.
    """

    path: Path | None
    model: PreTrainedModel | None
    alignment: Alignment
    verified: tuple[Verification, ...]
    scale: float
    losses: dict[float, float]
    distance: float
    change: float
    new: tuple[str, ...]
    checked: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON: the result is new and can't be verified, what was moved for it is."""
        found = {name: value for name, value in vars(self).items() if name not in ("path", "model")}
        also = {"verified_moves": found.pop("verified"), "distance_to_target": found.pop("distance")}
        return plain({**found, "verified": None, **also})


@recorded
def transport(
    base: Source,
    tuned: Source,
    target: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    scale: float | None = None,
    alignment: Alignment | None = None,
    method: Method | str = Method.gauss_newton,
    head_cost: HeadCost | str = HeadCost.rotary,
    scope: Scope | str | None = None,
    keep_gains: bool = False,
    objective: Objective | str = Objective.weights,
    untie: bool = False,
    device: str = "cpu",
    max_condition: float | None = None,
    verify: bool = True,
    force: bool = False,
    allow_pickle: bool = False,
    calibration: Calibration | None = None,
    losses: LossesAlong | None = None,
    progress: Progress = silent,
) -> Transported:
    """Carry a fine-tune of one base to another: `target + scale * (g tuned - g base)`.

    The move g is the alignment of the base to the target. It acts on base and fine-tune alike, without changing what
    either computes; the sum is a new model, of which nothing can be verified but that it loads and that its outputs are
    finite. Where the target is a moved copy of the base, the result computes what the fine-tune does. Between bases
    that were trained apart a fifth to three quarters of a fine-tune's gain arrived: fine-tune the target itself if you
    can.

    Args:
        base: Folder, hub id, or transformers model: what was fine-tuned.
        tuned: Its fine-tune. Where it has tensors that the other two don't have, as a new head, the result has them as
            the moved fine-tune does, and its form and configuration. Or a LoRA adapter of the base, as peft writes it:
            then the result is one of the target.
        target: The other base, of the same architecture.
        output: Folder to write to; None returns a model like the target, which must then be in memory.
        scale: What the change is multiplied by; None: 1, or what the losses choose.
        alignment: A move of the base to the target that was found before; None finds one.
        method: Stage-2 solver of the alignment, as in `align`.
        head_cost: What its stage 1 compares, as in `align`.
        scope: What is matched, as in `align`; None is all that is known of these models.
        keep_gains: With scope "model": fold nothing, as in `align`.
        objective: What is brought near, as in `align`.
        untie: Take tied tensors of all three apart, as in `align`; so they are in the result.
        device: Where the work is done.
        max_condition: Largest condition number of a map on GL(n), as in `align`.
        verify: Compare what base and fine-tune compute before and after the move, and run the result.
        force: Replace an existing output folder.
        allow_pickle: Load pickled weights, with `weights_only`.
        calibration: Data for the alignment, as in `align`.
        losses: On held-out data (`isobasin.lines.ends.Losses.means`): the scale of least loss is chosen from `SCALES`.
        progress: Called as the work goes on.

    Raises:
        IsobasinError: A subclass says what is wrong with the input or the output, in one line.
        VerificationError: A move changes a function, or the result's outputs are not finite; nothing was written.
    """
    if scale is not None:
        check_number("scale", scale)
        if losses is not None:
            raise IsobasinError(f"scale is {scale:g}, and data would choose another: give one of the two")
    if alignment is not None and scope is not None:
        raise IsobasinError(f"an alignment that is there has its scope: leave out --scope {scope}")
    running = Running(device, verify=verify, force=force, progress=progress)
    untie = untie or (alignment is not None and alignment.untied)
    adapter = _adapter(tuned, output)
    with _opened((target, base, tuned), adapter, allow_pickle=allow_pickle, untie=untie) as models:
        onto, start, end = models
        if output is not None:
            check_output(output, force=force, needed=0 if adapter else onto.checkpoint.size())
        if alignment is None:
            within = widest(models, keep_gains=keep_gains) if scope is None else Scope(scope)
            how = Method(method), HeadCost(head_cost), max_condition, within, keep_gains, Objective(objective), untie
            advise(start, Matching(*how))
            # What is moved is verified as a whole: its blocks need no check of their own.
            unchecked = replace(running, verify=False)
            alignment = match_models(onto, start, Matching(*how), unchecked, calibration)
        name = "the result" if output is None else os.fspath(output)
        verified = tuple(verify_move(alignment, model, name, running) for model in (start, end) if verify)
        carried = _Carried(onto, start, end, alignment, running)
        if carried.form.untied and not untie and adapter is None:
            warn(f"{onto.name}: the result has its tied tensors by themselves, as another model isn't tied")
        tried = {} if losses is None else carried.losses(losses)
        chosen = min(tried, key=tried.__getitem__) if tried else 1.0 if scale is None else scale

        def write(folder: Path) -> str | None:
            if adapter is not None:
                return carried.write_adapter(adapter, folder, chosen, name_of(target))
            return carried.write(folder, chosen, check=partial(runs, folder, running))

        path, made, checked = deliver(tuned if carried.form is end else target, output, write)
        sizes = math.sqrt(carried.sizes.distance), math.sqrt(carried.sizes.change)
        new = tuple(sorted(carried.new))
        return Transported(path, made, alignment, verified, chosen, tried, *sizes, new, checked)


def _adapter(tuned: Source, output: str | os.PathLike[str] | None) -> Adapter | None:
    """The adapter that a fine-tune is, if it is one.

    Raises:
        IsobasinError: No folder is named to write another one to.
    """
    adapter = adapter_in(tuned)
    if adapter is not None and output is None:
        raise IsobasinError(f"{adapter.folder}: an adapter is written to a folder: name that")
    return adapter


def _check_base(adapter: Adapter, base: Canonical, allow_pickle: bool) -> None:
    """An adapter adds to the base that is given; what it names as its own has to be the same, wherever that lies.

    Raises:
        IsobasinError: It is another model.
    """
    if os.path.realpath(adapter.base) == os.path.realpath(base.name):
        return
    if not os.path.isdir(adapter.base):
        named = f"names {adapter.base} as its base, which is no folder here"
        warn(f"{adapter.folder}: {named}: it is taken for one of {base.name}")
        return
    with base_of(adapter, allow_pickle=allow_pickle) as own:
        names = own.view.tensors
        if own.shapes.items() <= base.shapes.items() and all(
            same(one[name], other[name]) for one, other in tensors_of([own, base], names) for name in one
        ):
            return
    raise IsobasinError(
        f"{adapter.folder}: is of {adapter.base}, which is another model than {base.name}: give its own"
    )


@contextmanager
def _opened(
    sources: Sequence[Source], adapter: Adapter | None, *, allow_pickle: bool, untie: bool
) -> Generator[list[Model]]:
    """Open target, base and fine-tune, in one form as to what is tied; refused where they are no three of a kind.

    Raises:
        CheckpointError: One can't be found or read, or their tensors disagree in more than a head.
        ArchitectureError: An architecture is not supported, or theirs disagree.
    """
    with ExitStack() as stack:
        how = {"allow_pickle": allow_pickle, "untie": untie}
        whole = sources if adapter is None else sources[:-1]
        ends = [stack.enter_context(open_canonical(source, **how)) for source in whole]
        if adapter is not None:
            _check_base(adapter, ends[1], allow_pickle)
            tuned = name_of(sources[-1])
            ends.append(Canonical.of(tuned, stack.enter_context(merged(tuned, adapter, ends[1]))))
        for other in (ends[2], ends[0]):
            refuse_conflicts(ends[1], other, Taking(head=True, untie=True), ())
        even = evened(ends)
        if any(end.view.ties.keys() != even[-1].view.ties.keys() for end in even):
            # A fine-tune with another head isn't held by what ties the base's. Some families are always tied.
            with suppress(ArchitectureError):
                even = [end.untied() for end in even]
        models = [Model.of(end) for end in even]
        for other in (models[2], models[0]):
            with about(f"{models[1].name} and {other.name}"):
                check_comparable(models[1].specification, other.specification)
        yield models


@dataclass
class _Sizes:
    """Sums of squares over all tensors: of what the move leaves between base and target, and of what is added."""

    distance: float = 0.0
    change: float = 0.0


@dataclass(frozen=True, eq=False)
class _Carried:
    """The models on the line from the target on, along the moved change of a fine-tune.

    Attributes:
        target: Where the line begins, at scale 0.
        base: What was fine-tuned.
        tuned: Its fine-tune.
        alignment: What moves the latter two.
        running: Where, and who is told.
        sizes: Of the model that was written last.
    """

    target: Model
    base: Model
    tuned: Model
    alignment: Alignment
    running: Running
    sizes: _Sizes = field(default_factory=_Sizes)

    @cached_property
    def new(self) -> frozenset[str]:
        """Tensors of the fine-tune of which the base or the target has none of that shape."""
        others = [end.canonical.shapes for end in (self.base, self.target)]
        shapes = self.tuned.canonical.shapes
        return frozenset(name for name, shape in shapes.items() if any(end.get(name) != shape for end in others))

    @cached_property
    def form(self) -> Model:
        """Whose keys, shards and configuration the result has: the target's, unless that has no place for a tensor."""
        shapes = self.tuned.canonical.shapes
        fits = all(self.target.canonical.shapes.get(name) == shapes[name] for name in self.new)
        return self.target if fits else self.tuned

    def losses(self, losses: LossesAlong) -> dict[float, float]:
        """The loss at each of the scales; one that is no number counts as infinite."""
        with temporary_folder() as folder:
            ends = folder / "0", folder / "1"
            for scale, end in enumerate(ends):
                self.write(end, scale, dtype=torch.promote_types(self.target.dtype(), torch.float32))
            self.running.progress("choosing the scale", 0, 1)
            found = losses(*ends, SCALES)
        return {scale: math.inf if math.isnan(loss) else loss for scale, loss in zip(SCALES, found, strict=True)}

    def write(
        self,
        folder: Path,
        scale: float,
        *,
        dtype: torch.dtype | None = None,
        check: Callable[[Path], str | None] | None = None,
    ) -> str | None:
        """Write the model at a scale, in the target's types unless another is given; result as `write_checkpoint`."""
        types = self.form.dtypes().values(), self.target.dtypes().values()
        if dtype is None and set(types[0]) != set(types[1]):
            dtype = self.target.dtype()
        points = counted(self._points(scale), len(self.tuned.view.tensors), self.running.progress)
        written = self.form.canonical.written(points)
        kept, force = self.form.checkpoint, self.running.force
        return write_checkpoint(kept, folder, written, dtype=dtype, force=force, extra=self._leave, check=check)

    def write_adapter(self, adapter: Adapter, folder: Path, scale: float, target: str) -> str | None:
        """Write the adapter of the target that adds what the one of the base does, at a scale; result as `write`."""
        for _ in counted(self._points(scale), len(self.tuned.view.tensors), self.running.progress):
            pass  # what sizes are, and that no value is too large
        factors = {**adapter.factors, **factors_after(self.alignment, self.base, adapter, self.running.device)}
        found = adapter.having({name: replace(x, b=scale * x.b) for name, x in factors.items()}, target)

        def check(staging: Path) -> str | None:
            with temporary_folder() as merged, calling(merged, folder):
                place = write_merged(self.target.canonical, Adapter.open(staging), merged / "merged")
                return runs(folder, self.running, place)

        extra = partial(self._leave, library="peft")
        return found.write(folder, force=self.running.force, extra=extra, check=check)

    def _leave(self, folder: Path, library: str = "transformers") -> None:
        """Write into the result's folder how it was made."""
        self.alignment.save(folder / ALIGNMENT)
        leave(folder, [model.canonical for model in (self.tuned, self.base, self.target)], library=library)

    def _points(self, scale: float) -> Iterator[dict[str, Tensor]]:
        """Every tensor that the fine-tune has, carried; what it lacks stays as the form has it."""
        self.sizes.distance = self.sizes.change = 0.0
        for name, before, after in self._moved():
            if before is None:
                yield {name: after}
                continue
            own = next(tensors_of([self.target.canonical], [name]))[0][name]
            yield {name: self._point(name, own, before, after, scale)}

    def _point(self, name: str, own: Tensor, before: Tensor, after: Tensor, scale: float) -> Tensor:
        """One tensor of the target with the change added, in float64; the very same where nothing is."""
        counts = own.is_floating_point() and own.dtype.itemsize > 1
        unchanged = same(before, after)
        if not counts and not unchanged:
            raise TensorError(f"tensor {name!r} is {own.dtype} and fine-tuning changed it: it can't be carried")
        if counts:
            self.sizes.distance += float((own.double() - before.double()).square().sum())
        if unchanged or not scale:
            return own
        change = scale * (after.double() - before.double())
        self.sizes.change += float(change.square().sum())
        point = own.double() + change
        if not (point.abs() <= torch.finfo(own.dtype).max).all():
            raise TensorError(f"tensor {name!r} at scale {scale:g} has values beyond {own.dtype}: give a smaller scale")
        return point

    def _moved(self) -> Iterator[tuple[str, Tensor | None, Tensor]]:
        """Every tensor of the moved fine-tune, with the moved base's; None for the new ones.

        The two may have other tensors besides, so that pieces of one may come earlier than those of the other.
        """
        kept = self.tuned.canonical.shapes.keys() - self.new
        waiting: dict[str, Tensor] = {}
        bases = moved_tensors([self.base], [self.alignment])
        for (piece,) in moved_tensors([self.tuned], [self.alignment]):
            for name, after in piece.items():
                while name in kept and name not in waiting:
                    waiting |= {key: x for key, x in next(bases)[0].items() if key in kept}
                yield name, waiting.pop(name, None), after
