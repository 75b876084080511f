"""From two models to an alignment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from isobasin.alignment import Alignment, untied_note
from isobasin.architectures.described import check_described
from isobasin.architectures.schema import Specification
from isobasin.checkpoints import check_output
from isobasin.choices import HeadCost, Method, Objective, Scope
from isobasin.digest import Digest
from isobasin.errors import IsobasinError
from isobasin.execution.tasks import Engine
from isobasin.matching.whole.descent import Match
from isobasin.model import Blocks, Model, Source, open_pair
from isobasin.recipes import recorded
from isobasin.tensor_blocks import TensorBlocks
from isobasin.verbs.apply import Moving, acting, write_moving
from isobasin.verbs.blocks import BlockMatching, contents
from isobasin.verbs.inputs import fold_inputs, inputs_of
from isobasin.verbs.settings import Calibration, Matching, Progress, Running, silent
from isobasin.verbs.spread import match_on
from isobasin.verbs.whole import advise, match_whole


@recorded
def align(
    reference: Source,
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    method: Method | str = Method.gauss_newton,
    head_cost: HeadCost | str = HeadCost.rotary,
    scope: Scope | str = Scope.attention,
    keep_gains: bool = False,
    objective: Objective | str = Objective.weights,
    untie: bool = False,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    max_condition: float | None = None,
    verify: bool = True,
    force: bool = False,
    allow_pickle: bool = False,
    calibration: Calibration | None = None,
    engine: Engine | None = None,
    progress: Progress = silent,
) -> Alignment:
    """Find the move that brings `model` nearest to `reference` without changing what it computes.

    Stage 1 assigns heads, stage 2 aligns each of them in its group: GL(d_h) on V-O and, without rotary positions,
    on Q-K; plane-wise complex scalings on Q-K with them (arXiv 2606.17830, Theorems 2.1, 4.1, 4.2 and section 3).

    While the basis of the residual stream is fixed, no tensor belongs to two blocks, and each block's element moves its
    own tensors only. So the distance is a sum over blocks, and one sweep over attention and feed-forward blocks already
    is the optimum of coordinate descent: a second would change nothing.

    Args:
        reference: Folder, hub id, or transformers model; it is not moved.
        model: The one to move, of the same architecture.
        output: Folder to write the moved model to, with the alignment beside it; None writes nothing.
        method: How each head is brought onto its partner; this and the other choices are `isobasin.choices`.
        head_cost: What two heads are compared by.
        scope: What is moved. With "model" it is the residual stream as well, by all maps that its normalisations let
            pass once their gains are folded into what reads them. The moved model then has the reference's gains, so
            that a straight line between the two is one between the folded models.
        keep_gains: With scope "model": fold nothing, which leaves permutations of the residual stream.
        objective: What is brought near. With "activations" readers are compared by what they make of `calibration`'s
            data, `E ||x (A - B)||²` with the reference's inputs x.
        untie: Take tied tensors apart: the moved model is of the same class with `tie_word_embeddings` false. With
            scope "model" that frees rotations of the residual stream where a tied head leaves permutations alone.
        device: Where the work is done.
        dtype: Type of the moved weights; None keeps each tensor's.
        max_condition: Largest condition number of a map on GL(n); None: 1e8 for float64, 1e4 for float32, 100 for
            16-bit types.
        verify: Compare the outputs of the moved model with the model's (without `output`: block by block).
        force: Replace an existing output folder.
        allow_pickle: Load pickled weights, with `weights_only`.
        calibration: Data (`isobasin.refinement.calibration.DataCalibration`), which objective "activations" needs;
            with scope "model" they give the residual stream a further start and choose among several.
        engine: Matches blocks as tasks, in several processes (`isobasin.Processes`) or on a cluster of machines that
            share the files (`isobasin.Cluster`); not with scope "model". None matches them in this process. What is
            found is the same to the bit where tasks have as many threads, and the machines the same processors.
        progress: Called as the work goes on.

    Returns:
        The alignment, with statistics for every layer, and `verified` if it was.

    Raises:
        IsobasinError: A subclass says what is wrong with the input or the output, in one line.
        VerificationError: The moved model computes something else; nothing was written.
    """
    matching = Matching(
        Method(method), HeadCost(head_cost), max_condition, Scope(scope), keep_gains, Objective(objective), untie
    )
    running = Running(device, dtype, verify, force, progress)
    if engine is not None and matching.scope is Scope.model:
        problem = "matches every block by what the others became, in one process"
        raise IsobasinError(f"--scope model {problem}: leave out --engine and --workers")
    opening = {"feedforward": matching.feedforward, "allow_pickle": allow_pickle, "untie": untie}
    with open_pair(reference, model, **opening) as (a, b):
        advise(b, matching)
        if output is None:
            return _matched(a, b, matching, running, calibration, engine)
        check_output(output, force=force, needed=b.checkpoint.size(dtype))
        # The written model is verified as a whole: its blocks need no check of their own.
        unchecked = replace(running, verify=False)
        if engine is None and matching.scope is not Scope.model:
            moving = _moving(a, b, matching, unchecked, calibration)
        else:
            moving = acting(_matched(a, b, matching, unchecked, calibration, engine), b, running)
        return write_moving(moving, b, Path(output), running, [a])


def _moving(a: Model, b: Model, matching: Matching, running: Running, calibration: Calibration | None) -> Moving:
    """Match the blocks of two models, and hand out those of the second as they are moved: each is read once."""
    digests = Digest(), Digest()
    blocks = BlockMatching(a, b, matching, running, inputs_of(a, matching, calibration), digests)
    found = yield from blocks.moving()
    return replace(found, provenance=_facts(a, b, matching, running, [digest.hexdigest() for digest in digests]))


def _matched(
    a: Model, b: Model, matching: Matching, running: Running, calibration: Calibration | None, engine: Engine | None
) -> Alignment:
    """Match two models, in this process or as tasks of an engine."""
    if engine is None:
        return match_models(a, b, matching, running, calibration)
    found, digests = match_on(engine, a, b, matching, running, inputs_of(a, matching, calibration))
    return replace(found, provenance=_facts(a, b, matching, running, digests))


def align_tensors(
    reference: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    specification: Specification,
    *,
    method: Method | str = Method.gauss_newton,
    head_cost: HeadCost | str = HeadCost.rotary,
    scope: Scope | str = Scope.attention,
    device: str = "cpu",
    max_condition: float | None = None,
    verify: bool = True,
    calibration: Calibration | None = None,
) -> Alignment:
    """`align` for tensors in memory and an architecture of your own; arguments as there.

    Args:
        reference: Tensors by name.
        model: Tensors of the same names and shapes.
        specification: Where the blocks' projections lie and which group each block has.
        method: Stage-2 solver.
        head_cost: What stage 1 compares.
        scope: What is moved; the specification must name feed-forward blocks for "block" and the residual stream, too,
            for "model".
        device: Where the work is done.
        max_condition: Largest condition number of a map on GL(n).
        verify: Compare the blocks' functions before and after, as `attend` computes them. Whether your model computes
            that, and all that the stream runs through is named, only its own outputs say.
        calibration: With scope "model", a loss that chooses among several starts and ends
            (`isobasin.refinement.tensors.TensorCalibration`).

    Returns:
        The alignment; `Alignment.moved_tensors` makes the move.

    Raises:
        TensorError: A tensor is missing, misshapen or not finite, or a bias isn't named.
        ArchitectureError: What is to be moved isn't in the specification, or that contradicts itself.
    """
    matching = Matching(Method(method), HeadCost(head_cost), max_condition, Scope(scope))
    a, b = described(reference, model, specification, matching.scope)
    return match_models(a, b, matching, Running(device, verify=verify), calibration)


def described(
    reference: Mapping[str, Tensor], model: Mapping[str, Tensor], specification: Specification, scope: Scope
) -> tuple[TensorBlocks, TensorBlocks]:
    """Tensors in memory as what their owner's specification says, which is refused where it can't be that.

    Raises:
        TensorError: As `align_tensors`.
        ArchitectureError: Likewise.
    """
    ends = TensorBlocks("reference", reference, specification), TensorBlocks("model", model, specification)
    for end in ends:
        stream = end.stream() if scope is Scope.model else None
        check_described(end.name, end.tensors, end.blocks(feedforward=scope.feedforward), stream)
    return ends


def match_models(
    a: Blocks, b: Blocks, matching: Matching, running: Running, calibration: Calibration | None = None
) -> Alignment:
    """Match two models; arguments as `align`."""
    inputs = inputs_of(a, matching, calibration)
    if matching.scope is not Scope.model:
        digests = Digest(), Digest()
        found = BlockMatching(a, b, matching, running, inputs, digests).alignment()
        return replace(found, provenance=_facts(a, b, matching, running, [digest.hexdigest() for digest in digests]))
    # Folded models are in float64, whatever the result is stored in.
    dtype = running.dtype or max(b.dtype(feedforward=True), a.dtype(feedforward=True), key=lambda k: torch.finfo(k).eps)
    inside = replace(matching, scope=Scope.block, keep_gains=False, max_condition=matching.limit(dtype))
    within = replace(running, verify=False, dtype=dtype, progress=silent)
    # Sweeps begin with the closed form where the method only refines it, and with units that are matched roughly.
    quick = replace(inside, method=Method.balanced) if matching.method is Method.gauss_newton else inside
    if inputs is not None:
        stream = a.stream(keep_gains=matching.keep_gains)
        inputs = fold_inputs(inputs, stream, a.double(stream.normalising()))

    def solver(how: Matching, *, rough: bool) -> Match[Alignment]:
        return lambda x, y, known: BlockMatching(x, y, how, within, inputs, known=known, rough=rough).moving()

    solvers = [solver(inside, rough=False)]
    if quick != inside:
        solvers.insert(0, solver(quick, rough=True))
    found = match_whole(a, b, solvers, matching, running, calibration)
    facts = _facts(a, b, matching, running, [contents(blocks, matching) for blocks in (a, b)])
    return replace(found, provenance={**facts, "scope": str(matching.scope)})


def _facts(a: Blocks, b: Blocks, matching: Matching, running: Running, digests: Sequence[str]) -> dict[str, str]:
    """What was matched, and how."""
    return {
        "operation": "align",
        "reference": a.name,
        "reference_sha256": digests[0],
        "model": b.name,
        "model_sha256": digests[1],
        "method": str(matching.method),
        "head_cost": str(matching.head_cost),
        "objective": str(matching.objective),
        "device": running.device,
        **untied_note(b),
    }
