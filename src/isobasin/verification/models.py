"""Whole models: their outputs on random inputs, as transformers computes them.

They run one after the other, in float64 where that fits in memory. transformers itself keeps some steps in float32:
RMSNorm, rotary tables, a few softmaxes and scores; two equal models may then agree to a few 1e-6 only. Where a model
doesn't fit, its blocks are compared one by one (`isobasin.verification.blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import psutil
import torch
from torch import Tensor

from isobasin.checkpoints import check_finite
from isobasin.errors import ArchitectureError, VerificationError, refusing
from isobasin.inputs import Inputs, model_inputs, named_outputs, promised
from isobasin.loading import Plan, plans
from isobasin.model import Model
from isobasin.verification.blocks import compare_by_layer
from isobasin.verification.distance import AMPLIFICATION, FLOORS, Distance, Label, Verification
from isobasin.verification.rounding import compact, differing, dither, kinds

# Larger models run in float32: float64 costs twice the memory and more than twice the time.
_DOUBLE_LIMIT = 400_000_000
# Where 16 bits are stored, rounding may flip what saturated heads attend to, of a few texts in many: more are tried.
_MORE_SEEDS = 3
# Of the inputs, the share on which rounding is measured.
_SHARE = 0.25
# What a model returns beside its outputs: inner values, which moves change, and what it keeps for the next token.
_INNER = ("hidden_states", "attentions", "past_key_values", "router_logits")

# What a rounding without bound would change.
_ANY = Distance(math.inf, math.inf, math.inf, math.inf, math.inf)
Sensitivity = tuple[dict[str, Tensor], Distance]
"""A model's values in the types that they are stored in, and what one rounding of them changes."""


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
    dtype = _run_dtype(a, b)
    if dtype is None:
        return compare_by_layer(a, b, tolerance, seed, device)
    a, b = a.original, b.original
    ours, theirs = _plans(a, b)
    _check_missing(a, b, ours, theirs)
    unread, unequal = _unread(a, b, ours, theirs)
    coarsest = max((_coarsest(model) for model in (a, b)), key=lambda dtype: torch.finfo(dtype).eps)
    one = _started(a, ours, _Running(dtype, seed, device, more=coarsest.itemsize == 2))
    _check_numbers(one, a, b)
    # Of 16 bits rounding matters nearly always; of more, the model would rather be loaded again.
    known = one.sensitivity(coarsest) if coarsest.itemsize == 2 else None
    one.unload()
    other = _Run(b, theirs, one.how)
    found, floor = Distance.between(one.outputs, other.outputs), FLOORS[one.how.dtype]
    if not math.isfinite(found.max_rel):
        _check_stored(a, b)
    rounding = plain = None
    explaining = Distance()
    if math.isfinite(found.max_rel) and not explaining.explains(found, floor):
        rounding, plain = _rounding(one, other, known, coarsest, lambda most: most.explains(found, floor))
        explaining = _capped(rounding, plain)
    return Verification(
        found.max_abs,
        found.max_rel,
        explaining.allowed(floor) if tolerance is None else tolerance,
        one.how.described(len(one.outputs), ours, unread),
        found.rms,
        found.kl,
        rounding,
        plain,
        tolerance is not None or explaining.explains(found, floor),
        unread,
        unequal,
        device,
    )


def _capped(rounding: Distance, plain: Distance) -> Distance:
    """What rounding explains: not what a gauge amplifies in which the function is lost."""
    return rounding.better(plain, AMPLIFICATION)


def _rounding(
    one: _Run,
    other: _Run,
    known: Sensitivity | None,
    coarsest: torch.dtype,
    explained: Callable[[Distance], bool],
) -> tuple[Distance, Distance]:
    """`Verification.rounding` and `plain`, of both models if the second isn't enough; one at a time is loaded.

    Args:
        one: The first, unloaded.
        other: The second.
        known: The first one's values and sensitivity, if they are known.
        coarsest: The coarser of their types.
        explained: Whether rounding that changes outputs this far explains what was found.
    """
    if known is None:
        other.unload()
        known = one.sensitivity(coarsest)
        one.unload()
    values, plain = known
    rounding = other.rounding(values)
    # Of models that are too far apart for any rounding in the first one's gauge the rest needs no measuring.
    if explained(_capped(rounding, plain)) or not explained(_capped(_ANY, plain)):
        return rounding, plain
    other.unload()
    values, own = other.sensitivity(coarsest)
    other.unload()
    return rounding.worse(one.rounding(values)), plain.better(own, 1)


def check_runs(model: Model, device: str = "cpu") -> str | None:
    """Check that an open model loads and that its outputs on random inputs are finite.

    Returns:
        What was run, in words; None if the model is too large to run.

    Raises:
        VerificationError: It can't be run, or an output is not finite.
    """
    dtype = _run_dtype(model, model)
    if dtype is None:
        return None
    (plan,) = _plans(model)
    run = _started(model, plan, _Running(dtype, 0, device))
    name = run.not_finite()
    if name is not None:
        raise VerificationError(f"{model.name}: {name} has values that are NaN or infinite: it was not written")
    return run.how.described(len(run.outputs), plan, (), "whole model")


def _started(model: Model, plan: Plan, how: _Running) -> _Run:
    """The model, run; in float32 where float64 makes no numbers.

    Some softmaxes are float32 in transformers whatever the model's type, and overflow at float64's lowest number, which
    stands for what a mask hides.
    """
    run = _Run(model, plan, how)
    if run.not_finite() is None or how.dtype != torch.float64:
        return run
    del run
    return _Run(model, plan, replace(how, dtype=torch.float32))


@dataclass(frozen=True)
class _Running:
    """How models are run.

    Attributes:
        dtype: In which type.
        seed: Of the inputs, and of weights that a checkpoint lacks.
        device: Where.
        more: Whether there are inputs of more seeds.
    """

    dtype: torch.dtype
    seed: int
    device: str
    more: bool = False

    def inputs(self, model: Any) -> Iterator[tuple[str, Inputs]]:
        """Random inputs, each with a label; of more seeds the longest."""
        yield from model_inputs(model, self.seed)
        for seed in range(self.seed + 1, self.seed + 1 + _MORE_SEEDS * self.more):
            label, longest = max(model_inputs(model, seed), key=lambda pair: _size(pair[1]))
            yield f"{label}, seed {seed}", longest

    def described(self, outputs: int, plan: Plan, unread: tuple[str, ...], what: str = "whole models") -> str:
        """What was compared, in words."""
        kind, dtype = plan.kind.__name__, str(self.dtype).removeprefix("torch.")
        text = f"{what} ({kind}) in {dtype}, {outputs} outputs on random inputs"
        for name in plan.missing[:1]:
            text += f"; outputs that depend on {name!r}, which is not stored, were not compared"
        for name in unread[:1]:
            count = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
            text += f"; {name!r}{count}, which {kind} doesn't read, by value"
        return text


class _Run:
    """A model and its outputs. It is loaded when it is needed, until it is unloaded.

    Attributes:
        how: How it was run.
        outputs: Every floating-point output on every input, on the CPU, without the positions that are padding.
    """

    def __init__(self, model: Model, plan: Plan, how: _Running) -> None:
        self._name, self._plan, self.how = model.name, plan, how
        self._stored = kinds(info.dtype for info in model.checkpoint.tensors.values())
        self._inputs = dict(how.inputs(self._module))
        self.outputs = self._outputs(self._inputs)
        if plan.missing:
            self._leave_out_random()
        if not self.outputs:
            why = "".join(f": all depend on {name!r}, which the file lacks" for name in plan.missing[:1])
            raise VerificationError(f"{model.name}: {self._kind} gives no output that can be compared{why}")

    @cached_property
    def _module(self) -> Any:
        """The model in memory."""
        module = self._plan.load(self.how.dtype, self.how.seed).to(self.how.device)
        for config in _configurations(module.config):
            for entry in (name for name in vars(config) if name.startswith("output_")):
                setattr(config, entry, False)
            config.use_cache, config.return_dict = False, True
        return module

    def unload(self) -> None:
        """Leave the outputs in memory only."""
        self.__dict__.pop("_module", None)

    def not_finite(self) -> str | None:
        """The first output with NaN, or with an infinity other than the score of what is ruled out."""
        found = (key for key, x in self.outputs.items() if x.isnan().any() or x.isposinf().any())
        return next((f"{name} at {label}" for name, label in found), None)

    @property
    def _kind(self) -> str:
        return self._plan.kind.__name__

    @torch.no_grad()
    def _outputs(self, inputs: dict[str, Inputs]) -> dict[Label, Tensor]:
        results: dict[Label, Tensor] = {}
        for label, given in inputs.items():
            what = f"{self._name}: {self._kind} can't be run on random inputs"
            with refusing(VerificationError, lambda reason, what=what: f"{what} ({reason}): --no-verify goes without"):
                returned = self._module(**given)
            for name, value in named_outputs(returned, _INNER):
                results[name, label] = promised(value, given).cpu()
        return results

    @torch.no_grad()
    def _leave_out_random(self) -> None:
        """Leave out the outputs that depend on parameters which the file lacks: they say nothing of it."""
        label, given = next(iter(self._inputs.items()))
        before = self._outputs({label: given})
        generator = torch.Generator().manual_seed(self.how.seed)
        kept: dict[str, Tensor] = {}
        parameters = dict(self._module.named_parameters())
        for name in self._plan.missing:
            kept[name] = parameters[name].clone()
            parameters[name] += torch.randn(parameters[name].shape, generator=generator).to(parameters[name])
        after = self._outputs({label: given})
        for name, value in kept.items():
            parameters[name].copy_(value)
        random = {name for (name, _), x in before.items() if not torch.equal(x, after[name, label])}
        self.outputs = {key: x for key, x in self.outputs.items() if key[0] not in random}

    def rounding(self, others: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Distance:
        """What one more rounding of those stored values changes that aren't another model's; they stay changed.

        Args:
            others: The other model's values.
            dtype: The type that they are rounded to; by default each to the type that it is stored in.
        """
        generator = torch.Generator().manual_seed(self.how.seed)
        done = set[int]()
        for name, value in self._module.state_dict().items():
            where = None if value.data_ptr() in done else differing(value, others.get(name))
            if where is not None:
                dither(value, dtype or compact(value, self._stored).dtype, where, generator)
                done.add(value.data_ptr())
        return self._changed() if done else Distance()

    def sensitivity(self, dtype: torch.dtype) -> Sensitivity:
        """The stored values, and what one rounding of all of them to a type changes; they stay changed."""
        values = {name: compact(value, self._stored) for name, value in self._module.state_dict().items()}
        return values, self.rounding({}, dtype)

    def _changed(self) -> Distance:
        """How far a share of the outputs is from what it was: the longest inputs."""
        labels = sorted(self._inputs, key=lambda label: -_size(self._inputs[label]))
        some = {label: self._inputs[label] for label in labels[: math.ceil(_SHARE * len(labels))]}
        after = {key: x for key, x in self._outputs(some).items() if key in self.outputs}
        return Distance.between({key: self.outputs[key] for key in after}, after)


def _size(inputs: Inputs) -> int:
    """Number of values of the inputs."""
    return sum(value.numel() for value in inputs.values() if isinstance(value, Tensor))


def _configurations(config: Any) -> Iterator[Any]:
    """A configuration and those in it."""
    yield config
    for name in config.sub_configs:
        nested = getattr(config, name, None)
        if nested is not None:
            yield from _configurations(nested)


def _coarsest(model: Model) -> torch.dtype:
    """The coarsest type that any tensor is stored in."""
    kinds = {k for k in model.dtypes().values() if k.is_floating_point and k.itemsize > 1}
    return max(kinds, key=lambda k: torch.finfo(k).eps, default=torch.float32)


def _run_dtype(a: Model, b: Model) -> torch.dtype | None:
    """The type in which both models can run, one at a time beside the other's stored values; None if in none."""
    parameters = max(a.parameters(), b.parameters())
    stored = max(_coarsest(model).itemsize * model.parameters() for model in (a, b))
    free = psutil.virtual_memory().available * 0.6 - stored
    if parameters <= _DOUBLE_LIMIT and parameters * 8 * 1.2 < free:
        return torch.float64
    return torch.float32 if parameters * 4 * 1.2 < free else None


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
                    f"{model.name} has {name!r} and {other.name} has not: give two models with the same head"
                )


def _unread(a: Model, b: Model, ours: Plan, theirs: Plan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tensors that the class doesn't read of either file, and those of them that differ in value.

    Causal masks, rotary tables and position numbers that older files keep are left out: they are no parameters.
    """
    pair = [_unread_names(model, plan) for model, plan in ((a, ours), (b, theirs))]
    names = tuple(sorted(pair[0].keys() | pair[1].keys()))
    unequal: list[str] = []
    for name in names:
        stored = [(m, found[name]) for m, found in zip((a, b), pair, strict=True) if name in found]
        if len(stored) < 2 or not _same(*(model.checkpoint.read([n])[n] for model, n in stored)):
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


def _check_numbers(run: _Run, a: Model, b: Model) -> None:
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
