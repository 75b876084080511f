"""Whole models: their outputs on random inputs, as transformers computes them.

They run one after the other, in float64 unless they are very large or float32 shows plainly enough how far they differ,
and large ones a layer at a time. transformers itself keeps some steps in float32: RMSNorm, rotary tables, a few
softmaxes and scores; two equal models may then agree to a few 1e-6 only. Where not even one layer fits in memory,
blocks are compared one by one (`isobasin.verification.blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from isobasin.checkpoints import check_finite
from isobasin.errors import ArchitectureError, VerificationError
from isobasin.loading import Plan, made, plans
from isobasin.model import Model
from isobasin.verification.blocks import compare_by_layer
from isobasin.verification.distance import FACTOR_OF_LARGEST, FLOORS, Distances, Verification, judged, misshapen
from isobasin.verification.explaining import Explained, explained
from isobasin.verification.rows import unlike_rows
from isobasin.verification.running import How, Run, Sensitivity, fits, streams

# Larger models run in float32: float64 costs more than twice the time.
_DOUBLE_LIMIT = 400_000_000
# What single precision adds to a difference is small beside one of this size, and beside what bfloat16's rounding does.
_PLAIN = 1e-3


def verify_models(
    a: Model, b: Model, *, tolerance: float | None = None, seed: int = 0, device: str = "cpu"
) -> Verification:
    """Compare two open models on the same random inputs: several lengths, position offsets, padding.

    What counts as equal is what arithmetic leaves, or what rounding does to these models. That is measured where it can
    matter: of one of them, or of both if one doesn't explain the difference, the stored values that differ between the
    two are rounded once more.

    Args:
        a: The original.
        b: The other one, of the same architecture.
        tolerance: Relative difference that counts as equal instead.
        seed: Of the inputs, and of weights that a checkpoint lacks.
        device: Where the models run.

    Raises:
        VerificationError: A model can't be run on random inputs, its own outputs are no numbers, or there is no output
            that could be compared.
        ArchitectureError: Only one of them has a tensor that their outputs depend on.
    """
    ours, theirs = _plans(a.original, b.original)
    dtype = _run_dtype((a.original, ours), (b.original, theirs))
    if dtype is None:
        return compare_by_layer(a, b, tolerance, seed, device)
    a, b = a.original, b.original
    _check_missing(a, b, ours, theirs)
    unread, unequal = _unread(a, b, ours, theirs)
    coarsest = max((_coarsest(model) for model in (a, b)), key=lambda dtype: torch.finfo(dtype).eps)
    how = How(dtype, seed, device, more=coarsest.itemsize == 2)
    quick = dtype == torch.float64 and coarsest == torch.bfloat16 and tolerance is None
    run = partial(_both, (a, ours), (b, theirs), coarsest=coarsest)
    one, other, known, found = run(replace(how, dtype=torch.float32) if quick else how)
    floor = FLOORS[torch.float64 if quick else one.how.dtype]
    if quick and not _is_plain(found, floor):
        del one, other, known
        one, other, known, found = run(how)
        floor = FLOORS[one.how.dtype]
    finite = all(math.isfinite(each.max_rel) for each in (found.shown, found.opened))
    if not finite:
        _check_stored(a, b)
    rows = _unlike_rows(known[0], other, coarsest) if known else ()
    told = Explained(found)
    if finite and not told.explaining.explains(found, floor):
        told = explained(one, other, known, coarsest, found, floor, everywhere=tolerance is not None)
    return judged(
        one.how.described(one, unread) + told.where,
        told.found,
        told.explaining,
        (told.rounding, told.plain),
        floor,
        tolerance,
        unread=unread,
        unequal=unequal,
        device=device,
        misshapen=misshapen(one.outputs, other.outputs),
        rows=rows,
        parts=told.parts,
    )


def _both(
    a: tuple[Model, Plan], b: tuple[Model, Plan], how: How, coarsest: torch.dtype
) -> tuple[Run, Run, Sensitivity | None, Distances]:
    """Both models, run; the first one's sensitivity where 16 bits are stored; and how far apart they are.

    Raises:
        VerificationError: The first one's outputs are no numbers.
    """
    one = _started(*a, how)
    _check_numbers(one, a[0], b[0])
    # Of 16 bits rounding matters nearly always; of more, the model would rather be loaded again.
    known = one.sensitivity(coarsest) if coarsest.itemsize == 2 else None
    one.unload()
    other = Run(*b, one.how)
    return one, other, known, Distances.between(one.outputs, other.outputs)


def _is_plain(found: Distances, floor: float) -> bool:
    """Whether what single precision adds to differences can't matter: they are below the floor, or far above it."""
    figures = [each.max_rel for each in (found.shown, found.opened)]
    return all(x <= floor or _PLAIN <= x < math.inf for x in figures)


def _unlike_rows(values: Mapping[str, Tensor], other: Run, coarsest: torch.dtype) -> tuple[str, ...]:
    """`Verification.rows` of a model, given by its values, and another one, as it is loaded."""
    found: list[str] = []
    for tables in other.tables():
        if tables.keys() <= values.keys():
            pairs = [(made(values[name]).to(x.device), x) for name, x in tables.items()]
            off = unlike_rows(pairs, FACTOR_OF_LARGEST * torch.finfo(coarsest).eps)
            found += [f"{row} of {name!r}" for name, rows in zip(tables, off, strict=True) for row in rows]
    return tuple(found)


def check_alike(a: Model, b: Model) -> None:
    """Check that two models with the same tensors are the same to who loads them under their configurations.

    Raises:
        CheckpointError: The tensors don't fit one of the configurations.
        ArchitectureError: Only one of them has all that its class computes with: a tied head may be stored nowhere.
    """
    a, b = a.original, b.original
    _check_missing(a, b, *_plans(a, b))


def check_runs(model: Model, device: str = "cpu") -> str | None:
    """Check that an open model loads and that its outputs on random inputs are finite.

    Returns:
        What was run, in words; None if the model is too large to run.

    Raises:
        VerificationError: It can't be run, or an output is not finite.
    """
    (plan,) = _plans(model)
    dtype = _run_dtype((model, plan))
    if dtype is None:
        return None
    run = _started(model, plan, How(dtype, 0, device))
    name = run.not_finite()
    if name is not None:
        raise VerificationError(f"{model.name}: {name} has values that are NaN or infinite: it was not written")
    return run.how.described(run, what="whole model")


def _started(model: Model, plan: Plan, how: How) -> Run:
    """The model, run; in float32 where float64 makes no numbers.

    Some softmaxes are float32 in transformers whatever the model's type, and overflow at float64's lowest number, which
    stands for what a mask hides.
    """
    run = Run(model, plan, how)
    if run.not_finite() is None or how.dtype != torch.float64:
        return run
    del run
    return Run(model, plan, replace(how, dtype=torch.float32))


def _coarsest(model: Model) -> torch.dtype:
    """The coarsest type that any tensor is stored in."""
    kinds = {k for k in model.dtypes().values() if k.is_floating_point and k.itemsize > 1}
    return max(kinds, key=lambda k: torch.finfo(k).eps, default=torch.float32)


def _run_dtype(*models: tuple[Model, Plan]) -> torch.dtype | None:
    """The type in which all of some models can run, one at a time; None if in none."""
    most = max(plan.at_once if streams(model) else model.parameters() for model, plan in models)
    if all(model.parameters() <= _DOUBLE_LIMIT for model, _ in models) and fits(most, torch.float64):
        return torch.float64
    return torch.float32 if fits(most, torch.float32) else None


def _plans(*models: Model) -> list[Plan]:
    """How each is run: under one class, or under each one's own where two model types are one architecture."""
    ends = [(model.checkpoint, model.canonical.description.config) for model in models]
    alike = len({model.specification.model_type for model in models}) == 1
    return plans(ends) if alike else [plan for end in ends for plan in plans([end])]


def _check_missing(a: Model, b: Model, ours: Plan, theirs: Plan) -> None:
    """Refuse models of which only one has all that its class computes with."""
    for model, has, other, lacks in ((a, ours, b, theirs), (b, theirs, a, ours)):
        for name in lacks.missing:
            if name not in has.missing:
                raise ArchitectureError(
                    f"{model.name} has {name!r} and {other.name} has not: give two models with the same "
                    "tensors, heads included"
                )


def _unread(a: Model, b: Model, ours: Plan, theirs: Plan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tensors that the class doesn't read of either file, and those of them that differ in value.

    Causal masks, rotary tables and position numbers that older files keep are left out: they are no parameters.
    """
    pair = [_unread_names(model, plan) for model, plan in ((a, ours), (b, theirs))]
    names = tuple(sorted(pair[0].keys() | pair[1].keys()))
    unequal: list[str] = []
    for name in names:
        # One that only the other's class reads is there nevertheless.
        stored = [found.get(name) or model.view.find(name) for model, found in zip((a, b), pair, strict=True)]
        there = [model.checkpoint.read([n])[n] for model, n in zip((a, b), stored, strict=True) if n is not None]
        if len(there) < 2 or not _same(*there):
            unequal.append(name)
    return names, tuple(unequal)


def _unread_names(model: Model, plan: Plan) -> dict[str, str]:
    """Canonical and stored names of the parameters that a class doesn't read."""
    names = (name for name in plan.unread if name not in model.view.buffers)
    return {model.view.canonical.get(name, name): name for name in names}


def _same(x: Tensor, y: Tensor) -> bool:
    """Whether two stored tensors have the same values, up to the rounding of one to the other's type."""
    if x.shape != y.shape or x.is_floating_point() != y.is_floating_point():
        return False
    coarser = x.dtype if not x.is_floating_point() or torch.finfo(x.dtype).eps > torch.finfo(y.dtype).eps else y.dtype
    return torch.equal(x.to(coarser), y.to(coarser))


def _check_numbers(run: Run, a: Model, b: Model) -> None:
    """Refuse an original whose own outputs are no numbers.

    Raises:
        TensorError: A stored tensor of either model has values that are NaN or infinite.
        VerificationError: The original makes NaN of finite values.
    """
    name = run.not_finite()
    if name is not None:
        _check_stored(a, b)
        raise VerificationError(f"{a.name}: its own outputs are NaN or infinite ({name}): nothing can be compared")


def _check_stored(*models: Model) -> None:
    """Name the tensor from which outputs that are not finite come, if it is one.

    Raises:
        TensorError: A stored tensor has values that are NaN or infinite.
    """
    for model in models:
        for name in model.checkpoint.tensors:
            check_finite(model.checkpoint.read([name]), model.name)
