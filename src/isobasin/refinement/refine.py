"""`refine`: from two models and data to an alignment that is learned from the matched one."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from isobasin.alignment import Alignment, untied_note
from isobasin.beside import REFERENCE
from isobasin.checkpoints import check_output
from isobasin.choices import GENERATED, Scope
from isobasin.errors import warn
from isobasin.model import Model, Source, open_pair
from isobasin.plain import Plain
from isobasin.recipes import recorded
from isobasin.records.provenance import model_sha256
from isobasin.refinement.calibration import DataCalibration
from isobasin.refinement.descent import Refined, descend
from isobasin.refinement.line import ModuleLine, MovingLine
from isobasin.refinement.recipe import Refining
from isobasin.refinement.unfinished import Unfinished
from isobasin.tasks.data import Data, Examples, examples_in, keeping_data
from isobasin.tasks.processes import Group
from isobasin.verbs.align import match_models
from isobasin.verbs.apply import write_moved
from isobasin.verbs.conflicts import Option, Taking, refuse_conflicts
from isobasin.verbs.settings import Matching, Running
from isobasin.verbs.whole import advise
from isobasin.verification import Verification

# Minutes in which nothing is learned: none would be no limit.
_HARDLY = 1e-3


@dataclass(frozen=True)
class Refinement(Plain):
    """What `refine` found.

    Attributes:
        alignment: Moves the model.
        reference: Moves the reference; None if it stays.
        refined: How the descent went.
        verified: How the written models' outputs compare with the originals': model, and reference if it moves.
    """

    alignment: Alignment
    reference: Alignment | None
    refined: Refined
    verified: tuple[Verification | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = [None if verified is None else verified.to_json() for verified in self.verified]
        return {
            "refined": self.refined.to_json(),
            "verified": found[0],
            "alignment": self.alignment.to_json(),
            "reference": None if self.reference is None else {**self.reference.to_json(), "verified": found[-1]},
        }

    def _repr_html_(self) -> str:
        moves = [end._repr_html_() for end in (self.alignment, self.reference) if end is not None]  # pyright: ignore[reportPrivateUsage]
        return "".join([self.refined._repr_html_(), *moves])  # pyright: ignore[reportPrivateUsage]


@recorded
def refine(
    reference: Source,
    model: Source,
    data: Data,
    output: str | os.PathLike[str],
    *,
    how: Refining | None = None,
    matching: Matching | None = None,
    running: Running | None = None,
    start: Alignment | None = None,
    take_config: bool = False,
    allow_pickle: bool = False,
    accelerator: Any = None,
) -> Refinement:
    """Learn the continuous factors of an alignment so that the straight line between two models has a low loss.

    From the matched start, with coordinates θ of the group around it, minimises over points t of the line, by Adam,
    what `Targets` says: how far the model at `(1 - t) A(θ) + t B(θ)` is from what both ends predict, or its loss.
    At every θ both models compute what they did, so only the line between them changes. Permutations stay as matched.

    Args:
        reference: Folder, hub id, or transformers model.
        model: The other one, of the same architecture.
        data: Training data of the task: a hub id or path, the same with more said of it (`DataOptions`), or examples
            that are prepared for the reference.
        output: Folder for the moved model, with its alignment; the moved reference goes to its `reference/`.
        how: The recipe.
        matching: How the start is matched, and which factors are learned.
        running: Where, and what is written.
        start: An alignment to start from instead.
        take_config: Learn with the reference's configuration where the model's means something else.
        allow_pickle: Load pickled weights, with `weights_only`.
        accelerator: An `accelerate.Accelerator` whose processes share every batch; its device is used. The first of
            them writes, and the others return what was found without a verification.

    Raises:
        IsobasinError: A subclass says what is wrong with the input or the output, in one line.
        VerificationError: A moved model computes something else; nothing was written.
    """
    group, how, running = Group(accelerator), how or Refining(), running or Running()
    running = replace(running, device=group.device(running.device))
    matching = matching or Matching(scope=Scope.model)
    out = Path(output)
    opening = {"feedforward": matching.feedforward, "allow_pickle": allow_pickle, "untie": matching.untie}
    with open_pair(reference, model, **opening) as (a, b), keeping_data(data):
        refuse_conflicts(
            a.canonical, b.canonical, Taking(take_config, untie=matching.untie), (Option.config, Option.untie)
        )
        written = [b.checkpoint, a.checkpoint][: 1 + how.both]
        check_output(out, force=running.force, needed=sum(each.size(running.dtype) for each in written))
        advise(b, matching)
        began = time.perf_counter()
        # Other processes write the same texts, by the same seed.
        examples = examples_in(
            data, a.name, a.checkpoint, b.checkpoint, device=running.device, progress=running.progress
        )
        within = how if examples.facts.source != GENERATED else _left(how, time.perf_counter() - began)
        unfinished = Unfinished(out)
        if start is None:
            calibration = DataCalibration(examples, running.device)
            start = group.once(lambda: match_models(a, b, matching, replace(running, verify=False), calibration))
        line = ModuleLine.between(
            a,
            b,
            start,
            examples.kind,
            moves=(how.both, True),
            device=running.device,
            mixed_precision=how.mixed_precision,
            group=group,
        )
        unfinished.key = _key(how, examples, start, a, b)
        saving = {"save": unfinished.save} if group.first else {}
        found = descend(line, examples, within, progress=running.progress, resume=unfinished.load(), **saving)
        total, other = learned(line, start, {"data": examples.facts.source, "seed": str(how.seed)})
        other = other and replace(other, provenance={**other.provenance, **untied_note(a)})
        if not group.first:
            return Refinement(total, other, found, ())
        verified = _write(total, other, b, a, out, running)
        unfinished.remove()
        return Refinement(total, other, found, verified)


def _left(how: Refining, seconds: float) -> Refining:
    """The recipe with the minutes that are left to learn in once texts were written."""
    minutes = seconds / 60
    if how.minutes and minutes > how.minutes / 2:
        advice = "give more --minutes, fewer texts (--max-examples), or --data that are there"
        warn(f"writing texts took {minutes:.2g} of {how.minutes:g} minutes that there are to learn: {advice}")
    return replace(how, minutes=max(how.minutes - minutes, _HARDLY)) if how.minutes else how


def learned(line: MovingLine[Any], start: Alignment, facts: Mapping[str, str]) -> tuple[Alignment, Alignment | None]:
    """What moves the model, the start included, and what moves the reference, if it moves, after a descent."""
    other, own = (None if end.chart is None else end.chart.element() for end in line.ends)
    assert own is not None
    provenance = {**start.provenance, "operation": "refine", **facts}
    return replace(own.compose(start), provenance=provenance), other


def _write(
    moved: Alignment, other: Alignment | None, model: Model, reference: Model, out: Path, running: Running
) -> tuple[Verification | None, ...]:
    """Write the moved model and the moved reference in it: both get their place at once."""
    if other is None:
        return (write_moved(moved, model, out, running, [reference]).verified,)
    written: list[Verification | None] = []

    def add_reference(staging: Path) -> None:
        written.append(write_moved(other, reference, staging / REFERENCE, running, [model]).verified)

    first = write_moved(moved, model, out, running, [reference], extra=add_reference)
    return first.verified, written[0]


def _key(how: Refining, examples: Examples, start: Alignment, *models: Model) -> str:
    """What is the same for two descents if and only if the second may go on where the first one stopped."""
    weights = [model_sha256(model.checkpoint) for model in models]
    facts = {**asdict(how), "examples": examples.facts.sha256, "models": weights, **start.provenance}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
