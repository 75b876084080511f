"""One model from several: aligned, then averaged, as weights or as circuits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.architectures.resolve import check_comparable
from isobasin.beside import alignment_name
from isobasin.bounds import check_number, check_several
from isobasin.canonical import Canonical, Source
from isobasin.checkpoints import check_output, write_checkpoint
from isobasin.choices import HeadCost, MergeMethod, Method, Objective, Readout, Scope, Space
from isobasin.errors import IsobasinError
from isobasin.matching.averaging import circuit_mean
from isobasin.model import Model, batches, open_model, opened
from isobasin.plain import Plain, plain
from isobasin.recipes import recorded
from isobasin.symmetries.weights import stack
from isobasin.verbs.apply import counted, deliver, verify_move
from isobasin.verbs.centring import bring_together, moved_tensors
from isobasin.verbs.conflicts import Option, Taking, refuse_conflicts
from isobasin.verbs.fitting import Fit, fit, in_form, keeping
from isobasin.verbs.handing import check_mergekit, handed_over
from isobasin.verbs.interpolate import means, only, say_if_beyond
from isobasin.verbs.leaving import leave
from isobasin.verbs.relatedness import Relation, refuse_unrelated, relations
from isobasin.verbs.settings import MAX_CONDITION, Evaluating, Matching, Progress, Running, silent
from isobasin.verbs.whole import advise
from isobasin.verification import check_runs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Of the maps that bring mean circuits into the first model's gauge: they are no worse than that model's own gauge.
_LIMIT = MAX_CONDITION[torch.float64]


@dataclass(frozen=True)
class Truncation(Plain):
    """What cutting the mean circuits of one layer to the width of its heads lost.

    Attributes:
        layer: Index of the layer.
        query_key: `||M - M'|| / ||M||` of the mean Q-K circuits of all its heads.
        value_output: Likewise of V-O.
    """

    layer: int
    query_key: float
    value_output: float


@dataclass(frozen=True)
class Merged(Plain):
    """A model that was merged from several.

    Attributes:
        path: The folder, if one was asked for.
        model: The new transformers model otherwise.
        weights: Of each model, of sum 1; of each but the first where their changes are added.
        alignments: What moved every model but the first, which stays.
        distances: Of three or more models to their centre, round by round.
        truncation: What the circuits of each layer lost; empty if weights were averaged.
        checked: On what its outputs were found finite, in words; None if it was not run.
        relations: What every model but the first has in common with that.
        losses: Of every model and of the result on the calibration's data; empty without.
    """

    path: Path | None
    model: PreTrainedModel | None
    weights: tuple[float, ...]
    alignments: tuple[Alignment, ...]
    distances: tuple[float, ...]
    truncation: tuple[Truncation, ...]
    checked: str | None
    relations: tuple[Relation, ...] = ()
    losses: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; it is new and can't be verified."""
        found = {name: value for name, value in vars(self).items() if name not in ("path", "model")}
        return plain({**found, "verified": None})


@recorded
def merge(
    models: Sequence[Source],
    output: str | os.PathLike[str] | None = None,
    *,
    t: float | Sequence[float] | None = None,
    space: Space | str = Space.weights,
    merge_method: MergeMethod | str = MergeMethod.mean,
    density: float | None = None,
    alignments: Sequence[Alignment] | None = None,
    method: Method | str = Method.gauss_newton,
    head_cost: HeadCost | str = HeadCost.rotary,
    scope: Scope | str = Scope.attention,
    keep_gains: bool = False,
    objective: Objective | str = Objective.weights,
    force_unrelated: bool = False,
    take_config: bool = False,
    by_name: bool = False,
    common_rows: bool = False,
    head: Readout | str | None = None,
    untie: bool = False,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    max_condition: float | None = None,
    verify: bool = True,
    force: bool = False,
    allow_pickle: bool = False,
    calibration: Evaluating | None = None,
    progress: Progress = silent,
) -> Merged:
    """Align models to the first, and write their weighted mean, in the first one's types.

    Two models are aligned to each other, more to a common centre (`bring_together`). With all weight on one model the
    result computes what that one does; anywhere between it computes something new, so that nothing can be verified but
    that it loads and that its outputs are finite, and with `calibration` what its loss is. Models that have nothing in
    common are refused unless their residual streams are matched too: their mean computes what neither does. Models
    whose configurations, labels, tokenizers or tensors disagree are refused unless an option says what to do
    (`isobasin.check` lists it all); with all weight on one of them the result is that one as it is.

    Args:
        models: Folders, hub ids, or transformers models, two or more of the same kind; the first one's gauge is kept.
        output: Folder to write to; None returns a model like the first, which must then be in memory.
        t: Place on the line between two models, 0 is the first; or one weight for each model, of which only the
            ratios count. None is the plain mean.
        space: What is averaged.
        merge_method: How the aligned models are combined: as their mean, or by mergekit. Where it adds what the others
            are beyond the first model, `t` has a weight for each of those; None is 1 for all.
        density: With merge method "ties": the share of the largest changes that are kept; None keeps all.
        alignments: Moves of every model but the first that were found before, as by `refine`; None finds them.
        method: Stage-2 solver of the alignment, as in `align`.
        head_cost: What its stage 1 compares, as in `align`.
        scope: What is matched, as in `align`.
        keep_gains: With scope "model": fold no normalisation, as in `align`.
        objective: What is brought near, as in `align`.
        force_unrelated: Write the mean of models that have nothing in common.
        take_config: Take the first model's configuration, labels and tokenizer where others mean something else.
        by_name: Reorder the others' rows of tokens and labels where names say how.
        common_rows: Average the leading rows that tables have in common; the first model's further ones stay its own.
        head: Whose head the result gets where heads differ; None refuses such models.
        untie: Take tied tensors of all models apart, as in `align`; so they are in the result.
        device: Where the work is done.
        dtype: Type of the result's weights; None keeps the first model's.
        max_condition: Largest condition number of a map on GL(n), as in `align`.
        verify: Verify every move block by block, and run the result.
        force: Replace an existing output folder.
        allow_pickle: Load pickled weights, with `weights_only`.
        calibration: Data (`isobasin.refinement.calibration.DataCalibration`), used as in `align`; the losses of the
            models and of the result are measured on them.
        progress: Called as the work goes on.

    Raises:
        IsobasinError: A subclass says what is wrong with the input or the output, in one line.
        ArchitectureError: Models are unrelated, and nothing says to average them nevertheless.
        VerificationError: A move changes a block's function, or the result's outputs are not finite.
    """
    check_several("models", models)
    way, space = MergeMethod(merge_method), Space(space)
    check_mergekit(way, len(models), density)
    if way is not MergeMethod.mean and space is Space.circuit:
        raise IsobasinError(f"--merge-method {way} combines weights: leave out --space circuit")
    if alignments is not None and len(alignments) != len(models) - 1:
        raise IsobasinError(f"{len(alignments)} alignments for {len(models)} models: give one for each but the first")
    weights = _task_weights(t, len(models)) if way.of_tasks else _weights(t, len(models))
    place = 0.0 if way.of_tasks else weights[-1]
    matching = Matching(
        Method(method), HeadCost(head_cost), max_condition, Scope(scope), keep_gains, Objective(objective), untie
    )
    running = Running(device, dtype, verify, force, progress)
    taking = Taking(take_config, by_name, common_rows, head is not None, untie)
    with ExitStack() as opening:
        how = {"allow_pickle": allow_pickle, "untie": untie}
        opened = [opening.enter_context(open_model(source, **how)) for source in models]
        if head is not None and Readout(head) is Readout.own:
            models, opened, weights = _own(models), opened[::-1], weights[::-1]
        whole = () if way.of_tasks else weights  # of which one may be all
        alone = only(whole, partial(_check_alike, opened, matching, taking))
        if output is not None:
            check_output(output, force=force, needed=opened[0].checkpoint.size(dtype))
        brought, truncation, points = _Brought(), list[Truncation](), iter(())
        if alone is None:
            forced = force_unrelated or 1 in whole
            brought = _bring(opening, opened, taking, matching, running, calibration, alignments, forced=forced)
            points = brought.mean(weights, space, running, truncation)
            if way is not MergeMethod.mean:
                points = brought.handed_over(way, weights, density, running)

        def write(folder: Path) -> tuple[str | None, tuple[float, ...]] | None:
            kept, check = opened[alone or 0].checkpoint, partial(_checked, folder, running, calibration)
            told = partial(brought.leave, models=[model.canonical for model in opened])
            return write_checkpoint(kept, folder, points, dtype=dtype, force=force, extra=told, check=check)

        path, made, found = deliver(models[alone or 0], output, write, dtype)
    say_if_beyond(place)
    checked, loss = found or (None, ())
    known = brought.alignments, brought.distances, tuple(truncation)
    return Merged(path, made, weights, *known, checked, brought.relations, (*brought.losses, *loss))


@dataclass(frozen=True)
class _Brought:
    """Models that were brought together; nothing of each where all weight is on a model that can't be.

    Attributes:
        models: They, in the first one's form.
        fits: How every other one was brought into that.
        alignments: What moves every other one.
        distances: To their centre, if there are three or more.
        relations: What every other one has in common with the first.
        losses: Of each, where there are data.
    """

    models: Sequence[Model] = ()
    fits: Sequence[Fit] = ()
    alignments: tuple[Alignment, ...] = ()
    distances: tuple[float, ...] = ()
    relations: tuple[Relation, ...] = ()
    losses: tuple[float, ...] = ()

    def leave(self, folder: Path, models: Sequence[Canonical]) -> None:
        """Write into the result's folder how it was made from these models: their alignments, recipe and card."""
        for index, alignment in enumerate(self.alignments):
            alignment.save(folder / alignment_name(index))
        leave(folder, models)

    def mean(
        self, weights: Sequence[float], space: Space, running: Running, truncation: list[Truncation]
    ) -> Iterator[dict[str, Tensor]]:
        """The tensors of their weighted mean; what cutting circuits lost is added to `truncation`."""
        pieces = moved_tensors(self.models, (None, *self.alignments))
        if space is Space.circuit:
            points = _circuits(self.models, pieces, weights, running.device, truncation)
        else:
            points = means(pieces, weights)
        return self._written(points, running)

    def handed_over(
        self, way: MergeMethod, weights: Sequence[float], density: float | None, running: Running
    ) -> Iterator[dict[str, Tensor]]:
        """The tensors of what mergekit makes of them."""
        moves = (None, *self.alignments)
        return self._written(handed_over(self.models, moves, way, weights, density), running)

    def _written(self, points: Iterator[dict[str, Tensor]], running: Running) -> Iterator[dict[str, Tensor]]:
        """New tensors under the first model's names, with its own rows where others lack them."""
        first = self.models[0].canonical
        return counted(first.written(keeping(points, first, self.fits)), len(first.view.tensors), running.progress)


def _bring(
    opening: ExitStack,
    models: Sequence[Model],
    taking: Taking,
    matching: Matching,
    running: Running,
    calibration: Evaluating | None,
    known: Sequence[Alignment] | None,
    *,
    forced: bool,
) -> _Brought:
    """Bring models together, while `opening` is open, and see what they have in common before anything is written."""
    first, *others = models
    fits = [fit(first.canonical, other.canonical, taking) for other in others]
    ends = [first, *(_fitted(opening, first, other, found) for other, found in zip(others, fits, strict=True))]
    if known is None:
        advise(first, matching)
        alignments, distances = bring_together(ends, matching, running, calibration)
    else:
        alignments, distances = tuple(known), ()
        for end, alignment in zip(ends[1:], known, strict=True):
            if running.verify:
                verify_move(alignment, end, "the result", running)
    found = relations(ends, alignments, running.device)
    if not forced:
        refuse_unrelated(found)
    losses = () if calibration is None else tuple(map(calibration.loss, ends))
    return _Brought(ends, fits, alignments, distances, found, losses)


def _own(models: Sequence[Source]) -> Sequence[Source]:
    """Two models in the order in which the second one's head is kept."""
    if len(models) != 2:
        raise IsobasinError(f"head own is about two models, not {len(models)}: use reference")
    return models[::-1]


def _fitted(opening: ExitStack, reference: Model, model: Model, found: Fit) -> Model:
    """A model in the reference's form, while `opening` is open; rows that it lacks are 0, which matches nothing."""
    checkpoint = opening.enter_context(in_form(reference.canonical, model.canonical, found, empty=True))
    return model if checkpoint is model.checkpoint else Model.of(Canonical.of(model.name, checkpoint))


def runs(folder: Path, running: Running, staging: Path) -> str | None:
    """Run a new model before it gets its name, if that is wanted."""
    if not running.verify:
        return None
    running.progress("running", 0, 1)
    checked = check_runs(opened(str(folder), staging), device=running.device)
    running.progress("running", 1, 1)
    return checked


def _checked(
    folder: Path, running: Running, calibration: Evaluating | None, staging: Path
) -> tuple[str | None, tuple[float, ...]]:
    """Run a new model, and measure its loss, if there are data."""
    checked = runs(folder, running, staging)
    return checked, () if calibration is None else (calibration.loss(opened(str(folder), staging)),)


def _circuits(
    models: Sequence[Model],
    pieces: Iterator[tuple[dict[str, Tensor], ...]],
    weights: Sequence[float],
    device: str,
    truncation: list[Truncation],
) -> Iterator[dict[str, Tensor]]:
    """Mean circuits of the attention blocks, those that are alike together, and the mean of all other tensors.

    Args:
        models: The models, of which the first one's gauge is kept.
        pieces: Their tensors after their moves, by canonical names.
        weights: One for each model.
        device: Where circuits are averaged.
        truncation: What cutting them lost is added to this, a layer at a time.
    """
    view = models[0].view
    blocks = [block.named(lambda name: view.canonical.get(name, name)) for block in models[0].specification.attention]
    # Blocks may read one table: it comes with the first of them, and is written with it.
    tables: tuple[dict[str, Tensor], ...] = tuple({} for _ in models)
    for batch in batches(blocks):
        needed = {name for index in batch for name in blocks[index].shapes()}
        held = tuple({name: known[name] for name in needed & known.keys()} for known in tables)
        while not needed <= held[0].keys():
            for tensors, piece in zip(held, next(pieces), strict=True):
                tensors.update(piece)
        stacks = [stack([blocks[index].read(tensors, device) for index in batch]) for tensors in held]
        found = circuit_mean(blocks[batch[0]].group, stacks, weights, _LIMIT)
        for position, index in enumerate(batch):
            lost = float(found.query_key[position]), float(found.value_output[position])
            truncation.append(Truncation(blocks[index].layer, *lost))
            written = blocks[index].write(held[0], found.weights[position])
            yield from ({name: tensor} for name, tensor in written.items() if name not in tables[0])
            table = blocks[index].table
            if table is not None:
                for known, tensors in zip(tables, held, strict=True):
                    known[table.weight] = tensors[table.weight]
        rest = [{name: x for name, x in tensors.items() if name not in needed} for tensors in held]
        yield from means([rest], weights)
    yield from means(pieces, weights)


def _weights(t: float | Sequence[float] | None, count: int) -> tuple[float, ...]:
    """One weight for each model, of sum 1."""
    if count < 2:
        raise IsobasinError(f"merge takes two or more models, not {count}")
    given = _numbers(t, count)
    for number in given:
        check_number("t", number)
    if len(given) == 1 and count == 2:
        return 1 - given[0], given[0]
    if len(given) != count:
        raise IsobasinError(f"t has {len(given)} weights for {count} models: give one for each")
    if min(given) < 0 or max(given) == 0:
        raise IsobasinError(f"weights are {', '.join(f'{w:g}' for w in given)}: none may be negative, nor all zero")
    # The sum of large ones could be infinite.
    shares = [w / max(given) for w in given]
    return tuple(share / sum(shares) for share in shares)


def _numbers(t: float | Sequence[float] | None, count: int) -> list[float]:
    """What was given, one number or several; ones if nothing was."""
    if t is None:
        return [1.0] * count
    return [float(t)] if isinstance(t, (int, float, Real)) else [float(w) for w in t]


def _task_weights(t: float | Sequence[float] | None, count: int) -> tuple[float, ...]:
    """One weight for each model but the first, which the others come from."""
    given = _numbers(t, count - 1)
    for number in given:
        check_number("t", number)
    if len(given) != count - 1 or count < 2:
        raise IsobasinError(f"t has {len(given)} weights for {count - 1} models beyond the first: give one for each")
    return tuple(given)


def _check_alike(models: Sequence[Model], matching: Matching, taking: Taking) -> None:
    """Refuse models between whose tensors there is no line."""
    for other in models[1:]:
        check_comparable(models[0].specification, other.specification, feedforward=matching.feedforward)
        refuse_conflicts(models[0].canonical, other.canonical, taking, tuple(Option))
