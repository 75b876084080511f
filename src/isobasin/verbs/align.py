"""From two models to an alignment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from isobasin.alignment import (
    ATTENTION,
    FEEDFORWARD,
    Alignment,
    AttentionMove,
    FeedForwardMove,
    Move,
    Statistics,
    condition_of,
    named,
)
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.resolve import check_comparable
from isobasin.architectures.schema import Specification
from isobasin.checkpoints import check_output
from isobasin.choices import HeadCost, Method, Objective, Scope
from isobasin.errors import VerificationError
from isobasin.matching import circuits, feedforward
from isobasin.matching.attention import Match, distance, head_permutation, match
from isobasin.matching.feedforward import match_feedforward
from isobasin.matching.heads import assign, head_costs
from isobasin.matching.inputs import Moments, weighted
from isobasin.model import Blocks, Digest, Source, TensorBlocks, batches, open_model, read_blocks
from isobasin.symmetries import attention
from isobasin.symmetries.feedforward import FeedForwardWeights
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.verbs.apply import write_moved
from isobasin.verbs.inputs import ByName, at, fold_inputs, inputs_of
from isobasin.verbs.settings import Calibration, Matching, Progress, Running, silent
from isobasin.verbs.whole import match_whole
from isobasin.verification import Verification, compare_blocks, compare_feedforward


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
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    max_condition: float | None = None,
    verify: bool = True,
    force: bool = False,
    allow_pickle: bool = False,
    calibration: Calibration | None = None,
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
        output: Folder to write the moved model to, with `alignment.safetensors`; None writes nothing.
        method: How each head is brought onto its partner; this and the other choices are `isobasin.choices`.
        head_cost: What two heads are compared by.
        scope: What is moved. With "model" it is the residual stream as well, by all maps that its normalisations let
            pass once their gains are folded into what reads them. The moved model then has the reference's gains, so
            that a straight line between the two is one between the folded models.
        keep_gains: With scope "model": fold nothing, which leaves permutations of the residual stream.
        objective: What is brought near. With "activations" readers are compared by what they make of `calibration`'s
            data, `E ||x (A - B)||²` with the reference's inputs x.
        device: Where the work is done.
        dtype: Type of the moved weights; None keeps each tensor's.
        max_condition: Largest condition number of a map on GL(n); None: 1e8 for float64, 1e4 for float32, 100 for
            16-bit types.
        verify: Compare the outputs of the moved model with the model's (without `output`: block by block).
        force: Replace an existing output folder.
        allow_pickle: Load pickled weights, with `weights_only`.
        calibration: Data (`isobasin.refinement.calibration.DataCalibration`), which objective "activations" needs;
            with scope "model" they give the residual stream a further start and choose among several.
        progress: Called as the work goes on.

    Returns:
        The alignment, with statistics for every layer, and `verified` if it was.

    Raises:
        IsobasinError: A subclass says what is wrong with the input or the output, in one line.
        VerificationError: The moved model computes something else; nothing was written.
    """
    matching = Matching(
        Method(method), HeadCost(head_cost), max_condition, Scope(scope), keep_gains, Objective(objective)
    )
    running = Running(device, dtype, verify, force, progress)
    with ExitStack() as stack:
        a, b = (stack.enter_context(open_model(s, allow_pickle=allow_pickle)) for s in (reference, model))
        check_comparable(a.specification, b.specification, feedforward=matching.feedforward)
        if output is None:
            return match_models(a, b, matching, running, calibration)
        check_output(output, [a.checkpoint.folder, b.checkpoint.folder], force)
        # The written model is verified as a whole: its blocks need no check of their own.
        alignment = match_models(a, b, matching, replace(running, verify=False), calibration)
        return write_moved(alignment, b, Path(output), running, [a.checkpoint.folder])


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
        verify: Compare the blocks' functions before and after, as `attend` computes them.
        calibration: With scope "model", a loss that chooses among several starts and ends
            (`isobasin.refinement.tensors.TensorCalibration`).

    Returns:
        The alignment; `Alignment.moved_tensors` makes the move.

    Raises:
        TensorError: A tensor is missing, misshapen or not finite.
        ArchitectureError: Feed-forward blocks are asked for, and the specification names none.
    """
    matching = Matching(Method(method), HeadCost(head_cost), max_condition, Scope(scope))
    blocks = [TensorBlocks(n, t, specification) for n, t in (("reference", reference), ("model", model))]
    return match_models(blocks[0], blocks[1], matching, Running(device, verify=verify), calibration)


def match_models(
    a: Blocks, b: Blocks, matching: Matching, running: Running, calibration: Calibration | None = None
) -> Alignment:
    """Match two models; arguments as `align`."""
    inputs = inputs_of(a, matching, calibration)
    if matching.scope is not Scope.model:
        digests = Digest(), Digest()
        found = match_blocks(a, b, matching, running, digests, inputs)
        return replace(found, provenance=_facts(a, b, matching, [digest.hexdigest() for digest in digests]))
    # Folded models are in float64, whatever the result is stored in.
    dtype = running.dtype or max(b.dtype(feedforward=True), a.dtype(feedforward=True), key=lambda k: torch.finfo(k).eps)
    inside = replace(matching, scope=Scope.block, keep_gains=False, max_condition=matching.limit(dtype))
    within = replace(running, verify=False, dtype=dtype, progress=silent)
    # Sweeps begin with the closed form where the method only refines it.
    quick = replace(inside, method=Method.balanced) if matching.method is Method.gauss_newton else inside
    if inputs is not None:
        stream = a.stream(keep_gains=matching.keep_gains)
        inputs = fold_inputs(inputs, stream, a.double(stream.normalising()))
    solvers = [
        lambda x, y, how=how: match_blocks(x, y, how, within, inputs=inputs) for how in dict.fromkeys((quick, inside))
    ]
    found = match_whole(a, b, solvers, matching, running, calibration)
    facts = _facts(a, b, matching, [_contents(blocks, matching) for blocks in (a, b)])
    return replace(found, provenance={**facts, "scope": str(matching.scope)})


def _facts(a: Blocks, b: Blocks, matching: Matching, digests: Sequence[str]) -> dict[str, str]:
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
    }


def _contents(blocks: Blocks, matching: Matching) -> str:
    """SHA-256 of what is matched of a whole model."""
    digest = Digest()
    inside: set[str] = set()
    for site in blocks.sites():
        digest.update(site, blocks.stored(site))
        inside |= site.shapes().keys()
    outer = [name for name in blocks.stream(keep_gains=matching.keep_gains).ordered() if name not in inside]
    for index, name in enumerate(outer):
        digest.add(f"stream.{index}", blocks.checked([name])[name])
    return digest.hexdigest()


# Of reference and model; None where nobody asks.
Digests = tuple[Digest | None, Digest | None]


def match_blocks(
    a: Blocks,
    b: Blocks,
    matching: Matching,
    running: Running,
    digests: Digests = (None, None),
    inputs: ByName | None = None,
) -> Alignment:
    """Match all blocks of two models as they are, as many at a time as fit in memory.

    Args:
        a: The reference.
        b: The model.
        matching: How.
        running: Where.
        digests: Fed with the tensors of either as they are read.
        inputs: Moments of the reference's inputs, where distances are weighted by them.
    """
    theirs = named(FEEDFORWARD, b.feedforwards() if matching.feedforward else ())
    pairs = list(zip(a.feedforwards() if matching.feedforward else (), theirs, strict=True))
    steps = len(b.specification.sites) + len(pairs)
    running.progress("matching", 0, steps)
    layers, checks = _match_attention(a, b, matching, running, digests, steps, inputs)
    moved: list[FeedForwardMove] = []
    for ours, (block, site) in pairs:
        move, check = _match_feedforward(a, ours, b, site, block, running, digests, inputs)
        moved.append(move)
        checks += check
        running.progress("matching", len(layers) + len(moved), steps)
    verified = max(checks, key=lambda check: check.max_rel, default=None)
    return Alignment(b.specification.model_type, (*layers, *moved), {}, verified)


def _match_attention(
    a: Blocks,
    b: Blocks,
    matching: Matching,
    running: Running,
    digests: Digests,
    steps: int,
    inputs: ByName | None,
) -> tuple[list[AttentionMove], list[Verification]]:
    """Match the attention blocks, those that are alike together."""
    sites, dtype = b.specification.sites, running.dtype or b.dtype()
    eps = max(torch.finfo(model.dtype()).eps for model in (a, b))
    # What is kept is allocated before the large temporaries, which could not be returned to the system around it.
    elements = [attention.identity(site.group) for site in sites]
    blocks = [block for block, _ in named(ATTENTION, sites)]
    layers: list[AttentionMove] = []
    checks: list[Verification] = []
    heads = _tied_heads(a, b, matching, running, inputs)
    for batch in batches(sites):
        reference, moving = (read_blocks(m, batch, running.device, f) for m, f in zip((a, b), digests, strict=True))
        group = sites[batch[0]].group
        moments = at(inputs, [a.specification.sites[index] for index in batch], running.device)
        found = match(
            group,
            reference,
            moving,
            order=_order(group, reference, moving, moments, [heads.get(i) for i in batch], matching.head_cost),
            moments=moments,
            method=matching.method,
            head_cost=matching.head_cost,
            max_condition=matching.limit(dtype),
        )
        statistics = _statistics(found, reference, moving, group, dtype, eps)
        for position, index in enumerate(batch):
            elements[index].copy_(found.element[position])
            layers.append(Move(blocks[index], group, elements[index], statistics[position]))
            if running.verify:
                check = compare_blocks(group, moving[position], found.moved[position])
                checks.append(_accepted(sites[index].name, check))
        running.progress("matching", len(layers), steps)
    for first, *others in b.specification.ties:
        for other in others:
            # They are the same but for rounding, and the table is written once.
            elements[other].parts["table_shift"].copy_(elements[first].parts["table_shift"])
    return layers, checks


Heads = tuple[Tensor, Tensor]


def _tied_heads(a: Blocks, b: Blocks, matching: Matching, running: Running, inputs: ByName | None) -> dict[int, Heads]:
    """The head permutation of blocks that share theirs, by index: that of least cost over all of them.

    They are read one by one, and once more to be matched: together they may not fit in memory.
    """
    sites = b.specification.sites
    found: dict[int, Heads] = {}
    for indices in b.specification.ties:
        if not sites[indices[0]].group.permuted:
            continue
        costs = torch.zeros((), dtype=torch.float64)
        for index in indices:
            reference, moving = (read_blocks(blocks, [index], running.device) for blocks in (a, b))
            moments = at(inputs, [a.specification.sites[index]], running.device)
            if moments is not None:
                reference, moving = (weighted(weights, moments) for weights in (reference, moving))
            costs = costs.to(running.device) + head_costs(sites[index].group, reference, moving, matching.head_cost)
        outer, inner = assign(costs)
        found |= dict.fromkeys(indices, (outer[0], inner[0]))
    return found


def _order(
    group: AttentionGroup,
    reference: AttentionWeights,
    model: AttentionWeights,
    moments: Moments | None,
    tied: Sequence[Heads | None],
    head_cost: HeadCost,
) -> Heads | None:
    """The head permutations of a batch in which some blocks share theirs with others; None where none does."""
    if not any(tied):
        return None
    a, b = (reference, model) if moments is None else (weighted(w, moments) for w in (reference, model))
    outer, inner = head_permutation(group, a, b, head_cost)
    for position, known in enumerate(tied):
        if known is not None:
            outer[position], inner[position] = known
    return outer, inner


def _match_feedforward(
    a: Blocks,
    ours: FeedForward,
    b: Blocks,
    theirs: FeedForward,
    block: str,
    running: Running,
    digests: Digests,
    inputs: ByName | None,
) -> tuple[FeedForwardMove, list[Verification]]:
    """Match one feed-forward block, which moves call `block`."""
    weights: list[FeedForwardWeights] = []
    for blocks, site, digest in ((a, ours, digests[0]), (b, theirs, digests[1])):
        stored = blocks.stored(site)
        if digest is not None:
            digest.update(site, stored)
        weights.append(site.read(stored, running.device))
    reference, model = weights
    moments = at(inputs, [ours], running.device)
    own = None if moments is None else {role: moment[0] for role, moment in moments.items()}
    found = match_feedforward(theirs.group, reference, model, own)
    size = math.sqrt(sum(float(t.square().sum()) for t in reference.tensors().values()))
    eps = max(torch.finfo(blocks.dtype(feedforward=True)).eps for blocks in (a, b))
    after = feedforward.distance(reference, found.moved)
    status = "exact" if after <= size * min(max(1e-9, 20 * eps), 1e-3) else "optimal"
    statistics = Statistics(feedforward.distance(reference, model), after, status=status)
    move = Move(block, theirs.group, found.element.to("cpu"), statistics)
    if not running.verify:
        return move, []
    return move, [_accepted(theirs.name, compare_feedforward(theirs, model, found.moved))]


def _accepted(name: str, check: Verification) -> Verification:
    """How one block's function compares before and after; a move that changes it is refused."""
    if not check.equal:
        raise VerificationError(
            f"{name}: the moved block's outputs differ by {check.max_rel:.2g} relative: lower --max-condition"
        )
    return check


def _statistics(
    found: Match, a: AttentionWeights, b: AttentionWeights, group: AttentionGroup, dtype: torch.dtype, eps: float
) -> list[Statistics]:
    """What is reported of every block of a stack."""
    before, after = distance(a, b).tolist(), distance(a, found.moved).tolist()
    size = distance(a, a.map(torch.zeros_like)).tolist()
    rounding = circuits.rounding(group, found.moved, dtype).tolist()
    rows: list[Statistics] = []
    for i in range(len(before)):
        bound = condition_of(group, found.element[i])
        exact = after[i] <= size[i] * min(max(1e-9, 20 * eps * bound), 1e-3)
        status = "exact" if exact else "converged" if found.converged[i] else "max-iterations"
        status = "capped" if found.capped[i] else status
        rows.append(Statistics(before[i], after[i], bound, int(found.iterations[i]), status, rounding[i]))
    return rows
