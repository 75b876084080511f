"""`gauge`: the same function in the gauge of its group where rounding its weights costs least."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobasin.alignment import Alignment, untied_note
from isobasin.bounds import MANY, check_number
from isobasin.checkpoints import check_output
from isobasin.choices import Costs, Rounding, Scope
from isobasin.errors import IsobasinError
from isobasin.model import Source, open_model, opened
from isobasin.plain import Plain, plain
from isobasin.quantisation.objectives import Batch, Cost, Nothing, RoundingCost
from isobasin.quantisation.quantiser import Quantiser
from isobasin.quantisation.recipe import LEARNING, stretching
from isobasin.quantisation.starts import at_random, still
from isobasin.recipes import recorded
from isobasin.refinement.descent import Descent, Refined, descend, split
from isobasin.refinement.line import MovingLine, Sample
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import learned
from isobasin.tasks.data import Data, examples_in, keeping_data
from isobasin.verbs.apply import deliver, write_moved
from isobasin.verbs.settings import Matching, Running
from isobasin.verbs.whole import advise, widest
from isobasin.verification import Verification

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AS_TRAINED = "as trained"


@dataclass(frozen=True)
class Gauged(Plain):
    """A model in the gauge where rounding costs it least, of those that were seen.

    Attributes:
        path: The folder, if one was asked for.
        model: The new transformers model otherwise.
        alignment: The move.
        verified: How the written model's outputs, not rounded, compare with the original's; None if that wasn't asked.
        rounding: The quantiser, in words.
        by: What was made small.
        starts: That, as trained and at every random start.
        learned: How learning went on from the least of them.
        loss: Of the model as it is, on data that nothing was learned from; NaN without.
        before: What rounding costs it as trained.
        after: What rounding costs the written model.
    """

    path: Path | None
    model: PreTrainedModel | None
    alignment: Alignment
    verified: Verification | None
    rounding: str
    by: Costs
    starts: Mapping[str, float]
    learned: Refined
    loss: float
    before: RoundingCost
    after: RoundingCost

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return plain({name: value for name, value in vars(self).items() if name not in ("path", "model")})


@recorded
def gauge(
    model: Source,
    rounding: Rounding | str,
    output: str | os.PathLike[str] | None = None,
    *,
    group: int | None = None,
    data: Data | None = None,
    by: Costs | str | None = None,
    tries: int = 4,
    scope: Scope | str | None = None,
    untie: bool = False,
    how: Refining = LEARNING,
    running: Running | None = None,
    allow_pickle: bool = False,
) -> Gauged:
    """Move a model inside its group so that rounding the weights of its blocks costs least.

    The result is an ordinary checkpoint of the same shapes and configuration, which computes what the model does. Its
    weights aren't rounded: that is left to the tool that it is for. From the least of the gauges as trained and a few
    drawn at random, coordinates of the group are learned by what rounding costs; codes count as constant there, so
    that what is between two of them passes straight through. What comes out is never worse than the model as trained by
    what it was learned from, measured on examples that were held out.

    Args:
        model: Folder, hub id, or transformers model.
        rounding: What weights will be rounded to.
        output: Folder to write to; None returns a model like the one in memory.
        group: Inputs that share a scale, for integers; 0: all of an output; None: as `Quantiser.of` says.
        data: Of the model's task, as `refine` takes them; a share is held out to choose by, and as large a one to
            report on.
        by: What is made small; None: what the model predicts if there are examples, or else the weights' own error.
        tries: Random starts.
        scope: What is moved; None: all that is known of the model.
        untie: Take tied tensors apart, as in `align`: it frees rotations of the residual stream.
        how: The recipe of learning.
        running: Where, and what is written.
        allow_pickle: Load pickled weights, with `weights_only`.

    Raises:
        IsobasinError: A subclass says what is wrong with the input or the output, in one line.
        VerificationError: The moved model computes something else; nothing was written.
    """
    running, rounds = running or Running(), Quantiser.of(rounding, group)
    by = (Costs.weights if data is None else Costs.predictions) if by is None else Costs(by)
    check_number("tries", tries, 0, MANY)
    if by is not Costs.weights and data is None:
        raise IsobasinError(f"by {by} is measured on data: give --data, or choose weights")
    with open_model(model, allow_pickle=allow_pickle, untie=untie) as found, keeping_data(data):
        if output is not None:
            check_output(output, force=running.force, needed=found.checkpoint.size(running.dtype))
        examples = None
        if data is not None:
            place, told = running.device, running.progress
            examples = examples_in(data, found.name, found.checkpoint, device=place, progress=told)
        within = widest([found]) if scope is None else Scope(scope)
        advise(found, Matching(scope=within))
        rest, test = (None, None) if examples is None else split(examples, how)
        cost = Cost(found, rounds, by, running.device, rest, None if examples is None else examples.kind)
        starts, went, alignment = search(cost, within, tries, how, running)
        facts = {"rounding": str(rounds), "by": str(by), "seed": str(how.seed), **untied_note(found)}
        alignment = replace(alignment, provenance={"operation": "gauge", "model": found.name, **facts})

        def write(folder: Path) -> tuple[Alignment, RoundingCost]:
            written = write_moved(alignment, found, folder, running)
            moved = opened(found.name, folder)
            return written, cost.measured(cost.end(moved, still(moved, Scope.attention)), test)

        before = cost.measured(cost.end(found, still(found, Scope.attention)), test)
        loss = float("nan") if test is None else cost.loss(test)
        path, made, (written, after) = deliver(model, output, write, running.dtype)
        return Gauged(path, made, written, written.verified, str(rounds), by, starts, went, loss, before, after)


def search(
    cost: Cost, scope: Scope, tries: int, how: Refining, running: Running
) -> tuple[dict[str, float], Refined, Alignment]:
    """What every start costs, how learning went from the least, and the move that it found."""
    sample: Sample[Batch] = Nothing() if cost.examples is None else cost.examples
    starts = {AS_TRAINED: still(cost.model, scope)}
    starts |= {f"seed {how.seed + i}": at_random(cost.model, scope, how.seed + i) for i in range(tries)}
    costs: dict[str, float] = {}

    def tried(name: str) -> tuple[str, MovingLine[Batch]]:
        """The line from a start, whose cost is noted."""
        running.progress("trying", len(costs), len(starts))
        descent = Descent(cost.line(starts[name], stretching(how)), sample, how)
        descent.look()
        costs[name] = descent.state.best
        return name, descent.line

    # Of all lines the best until then and the next one are there at once.
    best, line = min(map(tried, starts), key=lambda found: costs[found[0]])
    if not math.isfinite(costs[best]):
        raise IsobasinError(
            f"{cost.model.name}: what rounding costs by {cost.by} is no finite number: choose another --by"
        )
    went = descend(line, sample, how, progress=running.progress)
    return costs, went, learned(line, starts[best], {})[0]
