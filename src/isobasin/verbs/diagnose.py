"""Is a conversion exact, and if not, which known defect explains it, and where?"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobasin.alignment import STREAM, Move
from isobasin.alignment.stream import Turned, gains_of
from isobasin.canonical import Source
from isobasin.checkpoints import check_output, unlike_modules, write_checkpoint
from isobasin.choices import Choice
from isobasin.diagnosis import layers
from isobasin.diagnosis.findings import Defect, Finding, merged
from isobasin.diagnosis.layers import Order
from isobasin.diagnosis.pair import Pair, opened_pair
from isobasin.diagnosis.places import Whole, configuration, places
from isobasin.errors import ArchitectureError, IsobasinError, TensorError, VerificationError
from isobasin.matching.tokens import alike
from isobasin.memory import give_memory_back
from isobasin.model import Blocks, Model, opened
from isobasin.plain import Plain, finite
from isobasin.recipes import recorded
from isobasin.verbs.equivalent import equivalent_models
from isobasin.verbs.fingerprint import fingerprint_of
from isobasin.verbs.kinship import fitted
from isobasin.verbs.leaving import leave
from isobasin.verbs.scan import KINDS
from isobasin.verbs.settings import Progress, Running, silent
from isobasin.verbs.turned import may_be_turned
from isobasin.verification import Verification, check_alike, verify_models


class Judgement(Choice):
    """What a diagnosis says of a conversion."""

    exact = "exact", "the same values and configuration"
    equivalent = "equivalent", "other values, and a move that changes no function carries B to A"
    rounded = "rounded", "the same but for rounding to a narrower type"
    defects = "defects", "known defects explain all of the difference"
    partly = "partly", "known defects explain a part of the difference; the rest is training or noise"
    unexplained = "unexplained", "no known defect explains the difference: training, noise or another model"


@dataclass(frozen=True)
class Diagnosis(Plain):
    """What is wrong with a conversion.

    Attributes:
        judgement: In one word.
        findings: Defects, those of the same words together.
        moved: Layers whose blocks differ by a move of their group, which is no defect.
        stream: The group whose map carries B's residual stream to A's; None where it is the same without.
        left: Tensors that differ by something else, as A stores them, and by how much, relative; infinite for those
            that only one has, or that have other shapes.
        before: The norm of all differences over that of A's tensors.
        after: The same once the defects are undone; blocks that are moved aren't counted.
        verified: How the mended model's outputs compare with A's; None where nothing was written.
        path: Where it is.
    """

    judgement: Judgement
    findings: tuple[Finding, ...]
    moved: tuple[int, ...]
    stream: str | None
    left: dict[str, float]
    before: float
    after: float
    verified: Verification | None = None
    path: Path | None = None
    _also = ("sound",)

    @property
    def sound(self) -> bool:
        """Whether B computes what A does, but for rounding."""
        return self.judgement in (Judgement.exact, Judgement.equivalent, Judgement.rounded)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = super().to_json()
        path = found.pop("path")
        return finite({**found, "output": path})


@recorded
def diagnose(
    a: Source,
    b: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    device: str = "cpu",
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> Diagnosis:
    """Find out what is wrong with a conversion: every known defect, layer by layer, alone or two at once.

    B's tensors are read as A's configuration says. Weights are compared as they are stored first; where a block differs
    by a move of its symmetry group as well, what no move changes is compared.

    Args:
        a: The original: folder, hub id, or transformers model.
        b: The conversion that is judged.
        output: Folder to write B to without its defects; None writes nothing. What B has lost is A's.
        device: Where models run that are verified.
        force: Replace an existing output folder.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.

    Raises:
        IsobasinError: A subclass says what is wrong with the input or the output, in one line; or there is no defect to
            mend.
        VerificationError: All of the difference is explained, and the mended model computes something else; nothing was
            written.
    """
    running = Running(device, force=force, progress=progress)
    with opened_pair(a, b, allow_pickle=allow_pickle) as pair:
        if output is not None:
            check_output(output, force=force)
        whole = Whole.of(pair)
        turned = _turned(pair, whole, running)
        if turned is None:
            whole.look(progress)
        pair, found = turned or (pair, _judged(whole))
        found = _with_modules(pair, found)
        if found.sound and pair.a.checkpoint.config != pair.b.checkpoint.config:
            check_alike(pair.a, pair.model_b())
        if output is None:
            return found
        if not found.findings or found.judgement is Judgement.rounded:
            raise IsobasinError(f"{pair.b.name}: there is no known defect to mend: {found.judgement.meaning}")
        verified = _write(pair, whole, found, Path(output), running)
        return replace(found, verified=verified, path=Path(output))


def _with_modules(pair: Pair, found: Diagnosis) -> Diagnosis:
    """The diagnosis, with what sentence-transformers puts behind both models where that isn't the same."""
    unlike = dict.fromkeys(unlike_modules(pair.a.checkpoint.folder, pair.b.checkpoint.folder), math.inf)
    if not unlike:
        return found
    judgement = Judgement.partly if found.findings else Judgement.unexplained
    return replace(found, judgement=judgement, left={**found.left, **unlike})


def _judged(whole: Whole) -> Diagnosis:
    """The diagnosis of all places together."""
    findings, left = whole.findings(), whole.left
    wrong = [one for one in findings if one.defect is not Defect.rounding]
    judgement = (
        (Judgement.partly if wrong else Judgement.unexplained)
        if left
        else Judgement.defects
        if wrong
        else Judgement.rounded
        if findings
        else Judgement.equivalent
        if whole.moved
        else Judgement.exact
    )
    return Diagnosis(judgement, findings, tuple(sorted(whole.moved)), None, left, whole.before, whole.after)


def _turned(pair: Pair, whole: Whole, running: Running) -> tuple[Pair, Diagnosis] | None:
    """The diagnosis where a map of the residual stream carries all of B to A, and B with its layers in A's order.

    That is seen before any defect is looked for in a basis in which nothing is where it was.
    """
    embedding = pair.embedding
    if embedding is None:
        return None
    first = whole.examined(embedding)
    # In a permuted stream the rows of what writes into it lie in another order: a defect elsewhere.
    if not (first.left or first.findings):
        return None
    how = Running(running.device, verify=False, progress=running.progress)
    try:
        model = pair.model_b()
        if not may_be_turned(pair.a, model):
            return None
        order = _order(pair, model)
        findings = merged((*order.findings, *configuration(pair, order)))
        if findings:
            pair = pair.ordered(order, _lost(pair.a, model))
        found = equivalent_models(pair.a, pair.model_b(), how)
    except (ArchitectureError, TensorError):
        return None  # B is no model that could be matched
    if not found.equivalent:
        return None
    judgement = Judgement.defects if findings else Judgement.equivalent
    return pair, Diagnosis(judgement, findings, found.feedforward, found.stream, {}, whole.distance(), 0.0)


def _order(pair: Pair, b: Model) -> Order:
    """Which layer is which, by what tokens see of them, which no map of the stream changes."""
    numbers = layers.beginnings(pair.blocks)
    theirs = layers.beginnings(b.canonical.description.specification.attention)
    scores = alike(fingerprint_of(b, "cpu").layers(), fingerprint_of(pair.a, "cpu").layers(), KINDS)
    seen = {start: {start: 1.0} for start in theirs}
    if scores:
        # Of layers that are equal but for rounding each is the one in its place.
        means = torch.stack([*scores.values()]).nanmean(0).nan_to_num(0).round(decimals=3)
        ends = [sorted(found, key=found.__getitem__) for found in (theirs, numbers)]
        if means.shape == tuple(map(len, ends)):
            rows = zip(ends[0], means.tolist(), strict=True)
            seen = {start: dict(zip(ends[1], row, strict=True)) for start, row in rows}
    return layers.order(seen, {}, numbers)


def _lost(a: Model, b: Model) -> Blocks:
    """The original in the basis of a conversion's residual stream, as tokens and readouts say it."""
    found = fitted(a, b, "cpu")
    if found is None:
        raise ArchitectureError(f"{b.name}: nothing says which basis its residual stream has")
    group = found.a.plan.group
    there = replace(group.identity(*gains_of(a, found.a.plan)), matrix=found.matrix)
    return Turned(a, found.a.plan, Move(STREAM, group, group.inverse(there)))


def _write(pair: Pair, whole: Whole, found: Diagnosis, output: Path, running: Running) -> Verification:
    """Write B without its defects, in its own form, or in A's where it lacks a place for something."""
    own = whole.fits and not any(one.defect in (Defect.configuration, Defect.layers) for one in found.findings)
    form = pair.b if own else pair.a.canonical
    kinds = [{end.checkpoint.tensors[name].dtype for name in end.view.tensors.values()} for end in (pair.b, form)]
    kind = max((k for k in kinds[0] if k.is_floating_point), key=lambda k: torch.finfo(k).eps, default=torch.float32)

    exact = found.judgement is Judgement.defects and not any(x.defect is Defect.rounding for x in found.findings)

    def mended() -> Iterator[Mapping[str, Tensor]]:
        for place in places(pair, whole.order, running.progress, "writing"):
            names = [place] if isinstance(place, str) else place.shapes()
            values = pair.b.read(names) if found.stream else whole.examined(place).tensors
            yield {name: x for name, x in values.items() if name in form.shapes}
            give_memory_back()

    def check(folder: Path) -> Verification:
        result = verify_models(pair.a, opened(os.fspath(output), folder), device=running.device)
        if exact and not result.equal:
            raise VerificationError(f"{output}: the mended model is not A: {result.reason}: it was not written")
        return result

    def say(folder: Path) -> None:
        if exact:
            leave(folder, [pair.a.canonical], [pair.b])

    dtype = None if kinds[0] == kinds[1] else kind
    verified = write_checkpoint(
        form.checkpoint,
        output,
        form.written(mended()),
        dtype=dtype,
        force=running.force,
        extra=say,
        check=check,
    )
    assert verified is not None
    return verified
