"""One pair aligned in every way that this library knows, the published ones among them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isobasin.alignment import Alignment
from isobasin.architectures.feedforwards import ExpertsBlock
from isobasin.beside import REFERENCE
from isobasin.checkpoints import temporary_folder
from isobasin.choices import Method, Objective, Scope, Space
from isobasin.experiments.ablations import with_percent
from isobasin.lines.ends import OpenPair
from isobasin.matching import latents
from isobasin.records.curves import NAIVE
from isobasin.refinement.calibration import DataCalibration
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import refine
from isobasin.tasks.data import Examples
from isobasin.verbs.merge import merge
from isobasin.verbs.settings import Matching, Progress, Running, silent

REFINED, CIRCUITS = "refined", "circuits"


Way = tuple[Matching, bool]
"""One way to align a pair: what is matched and how, and whether training data take part."""

_ATTENTION: dict[str, Way] = {
    "heads": (Matching(Method.heads), False),
    "orthogonal": (Matching(Method.orthogonal), False),
    "paper": (Matching(Method.paper), False),
    "attention": (Matching(), False),
}
_ALIKE: dict[str, Way] = {**_ATTENTION, "activations": (Matching(objective=Objective.activations), True)}
_APART: dict[str, Way] = {
    **_ATTENTION,
    "permutations": (Matching(Method.heads, scope=Scope.model, keep_gains=True), False),
    "model": (Matching(scope=Scope.model), False),
    "model-data": (Matching(scope=Scope.model), True),
    "model-activations": (Matching(scope=Scope.model, objective=Objective.activations), True),
}


def ways(scope: Scope) -> dict[str, Way]:
    """What is tried on models that differ in attention, in blocks, or altogether; by name."""
    if scope is Scope.model:
        return _APART
    return {name: (replace(matching, scope=scope), data) for name, (matching, data) in _ALIKE.items()}


def alignments(
    pair: OpenPair, train: Examples, refining: Refining | None = None, merging: bool = True, progress: Progress = silent
) -> dict[str, Any]:
    """Barriers of one pair aligned in every way, on data that no alignment has seen.

    Every move is verified to keep the function and the shapes of B; where the learned one moves A too, of both.

    Args:
        pair: The models; the scope of its losses says what they differ in.
        train: What moves may be chosen, weighed and learned by.
        refining: How the best way is refined; None: it isn't.
        merging: Whether the mean of circuits after the best way is measured too.
        progress: Called as the work goes on.

    Returns:
        "ways": by name, from "none" on, a curve with its "percent" of the naive barrier and "middle", how far the loss
        half-way is above the mean of the ends'; for "circuits", a merged model without a line, "middle" alone. What
        can't be done with such models is not there: weighing experts, averaging circuits of latent attention.
        "seconds": what matching took, by name.
    """
    calibration = DataCalibration(train, pair.losses.device)
    found: dict[str, dict[str, Any]] = {NAIVE: pair.curve(None)}
    matches: dict[str, Alignment] = {}
    seconds: dict[str, float] = {}
    scope = pair.losses.how.scope
    tried = {name: way for name, way in ways(scope).items() if _known(pair, way[0])}
    for done, (name, (matching, data)) in enumerate(tried.items()):
        progress("aligning", done, len(tried))
        began = time.perf_counter()
        matches[name] = pair.match(matching, calibration if data else None)
        seconds[name] = time.perf_counter() - began
        found[name] = pair.curve(matches[name])
    # Chosen by training data alone: barriers on the tests must not choose.
    chosen = "model-data" if scope is Scope.model else "attention"
    start = matches[chosen]
    if refining is not None:
        began = time.perf_counter()
        found[REFINED] = _refined(pair, train, start, refining, progress)
        seconds[REFINED] = time.perf_counter() - began
    found = with_percent({name: {**row, "middle": _middle(row["losses"])} for name, row in found.items()})
    if merging and not any(latents.of(block.group) for block in pair.a.specification.attention):
        losses = found[chosen]["losses"]
        found[CIRCUITS] = {"middle": _merged_loss(pair, start) - (losses[0] + losses[-1]) / 2}
    return {"ways": found, "seconds": seconds}


def _known(pair: OpenPair, matching: Matching) -> bool:
    """Whether there is such a way for these models: activations don't weigh experts."""
    if matching.objective is not Objective.activations or not matching.scope.feedforward:
        return True
    return not any(isinstance(block, ExpertsBlock) for block in pair.a.feedforwards())


def _refined(pair: OpenPair, train: Examples, start: Alignment, how: Refining, progress: Progress) -> dict[str, Any]:
    with temporary_folder() as scratch:
        out = Path(scratch) / "refined"
        models = pair.a.checkpoint.folder, pair.b.checkpoint.folder
        running = Running(pair.losses.device, progress=progress)
        matching = Matching(scope=pair.losses.how.scope, untie=pair.losses.how.untie)
        done = refine(*models, train, out, how=how, matching=matching, start=start, running=running)
        first = out / REFERENCE if how.both else models[0]
        return pair.line(first, out) | {"steps": done.refined.steps, "best_step": done.refined.best_step}


def _middle(losses: Sequence[float]) -> float:
    """How far a line's middle lies above the mean of its ends."""
    return losses[len(losses) // 2] - (losses[0] + losses[-1]) / 2


def _merged_loss(pair: OpenPair, alignment: Alignment) -> float:
    """The loss of the mean of circuits after a move."""
    with pair.moved(alignment) as end, temporary_folder() as scratch:
        out = Path(scratch) / "merged"
        ends, device = [pair.a.checkpoint.folder, end], pair.losses.device
        merge(ends, out, space=Space.circuit, force_unrelated=True, device=device, untie=pair.losses.how.untie)
        return pair.loss(out)
