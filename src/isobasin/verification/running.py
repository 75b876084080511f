"""One model, run on random inputs: its outputs, and what rounding its stored values changes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import psutil
import torch
from torch import Tensor

from isobasin.errors import ArchitectureError, IsobasinError, VerificationError, refusing
from isobasin.inputs import Inputs, model_inputs, named_outputs, promised
from isobasin.loading import Held, Plan, Streamed, layers, made
from isobasin.model import Model
from isobasin.verification.abreast import Abreast
from isobasin.verification.distance import OPENED, Distances, Label
from isobasin.verification.opened import Opened
from isobasin.verification.parts import Parts, changes
from isobasin.verification.rounding import HIDDEN, compact, differing, dither, kinds, stays_by_rounding

# Larger models are run a layer at a time.
_HELD_LIMIT = 32_000_000
# Where 16 bits are stored, rounding may flip what saturated heads attend to, of a few texts in many: more are tried.
_MORE_SEEDS = 3
# Of the inputs, the share on which rounding is measured.
_SHARE = 0.25
# What a model returns beside its outputs: inner values, which moves change, and what it keeps for the next token.
_INNER = ("hidden_states", "attentions", "past_key_values", "router_logits")

Sensitivity = tuple[dict[str, Tensor], Distances]
"""A model's values, compact or deferred, and what one rounding of them changes."""


def streams(model: Model) -> bool:
    """Whether a model is run a layer at a time."""
    return model.parameters() > _HELD_LIMIT


def fits(values: int, dtype: torch.dtype) -> bool:
    """Whether so many values of a type fit in memory, with room for what is computed."""
    return values * dtype.itemsize * 1.2 < psutil.virtual_memory().available * 0.6


@dataclass(frozen=True)
class How:
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
        """Random inputs, each with a label; of more seeds the longest, and for the opened model the first's or half."""
        yield from model_inputs(model, self.seed, crossed=False)
        for seed in range(self.seed, self.seed + 1 + _MORE_SEEDS * self.more):
            label, longest = max(model_inputs(model, seed, crossed=False), key=lambda pair: _size(pair[1]))
            if seed > self.seed:
                yield f"{label}, seed {seed}", longest
            elif self.more:
                yield f"{label}{OPENED}", longest
            else:  # one text shows enough where no rounding is measured on it
                yield f"{label}{OPENED}", {n: x[:1] if isinstance(x, Tensor) else x for n, x in longest.items()}

    def described(self, run: Run, unread: tuple[str, ...] = (), what: str = "whole models") -> str:
        """What was compared, in words."""
        plan, dtype = run.plan, str(self.dtype).removeprefix("torch.")
        kind, shown = plan.kind.__name__, len(run.shown)
        opened = len(run.outputs) - shown
        text = f"{what} ({kind}) in {dtype}, {shown} output{'s' * (shown != 1)} on random inputs"
        text += f" and {opened} with all rows of tables, experts and units taking part" if opened else ""
        one_by_one = sum(len(part.products) for part in run.parts)
        text += f", and {one_by_one} heads, routers, experts, blocks and layers one by one" if one_by_one else ""
        for name in plan.missing[:1]:
            text += f"; outputs that depend on {name!r}, which is not stored, were not compared"
        for name in unread[:1]:
            count = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
            text += f"; {name!r}{count}, which {kind} doesn't read, by value"
        return text


class Run:
    """A model and its outputs. It is loaded when it is needed, until it is unloaded.

    A large model is loaded without its layers, if it runs that way.

    Attributes:
        plan: What is run.
        how: How it was run.
        outputs: Every floating-point output on every input, on the CPU, without the positions that are padding.
        chooses: Whether it chooses experts.
        parts: What each part of the opened model makes of tokens, where 16 bits are stored.
        rounded: The most that any rounding so far changed of these, as `parts.changes` has it.
    """

    def __init__(self, model: Model, plan: Plan, how: How) -> None:
        self._name, self.plan, self.how = model.name, plan, how
        self._stored = kinds(info.dtype for info in model.checkpoint.tensors.values())
        self._streamed = streams(model)
        self._looked_up, self.chooses = set[int](), False
        self._mean = _subtracts_mean(model)
        self._parts: list[Parts] = []
        self.rounded: list[Tensor] = []
        try:
            self._inputs, self.outputs = self._first()
        except IsobasinError:
            # Layers that aren't called, or tensors that are converted in place; whatever else is wrong is said again.
            if not self._streamed or not fits(model.parameters(), how.dtype):
                raise
            self._streamed = False
            self.unload()
            self._inputs, self.outputs = self._first()
        self.parts = self._parts
        if plan.missing:
            self._leave_out_random()
        # What the files compute may be finite where what the opened model does is not.
        self.outputs = {k: x for k, x in self.outputs.items() if k in self.shown or not _no_number(x)}
        if not self.outputs:
            why = "".join(f": all depend on {name!r}, which the file lacks" for name in plan.missing[:1])
            raise VerificationError(f"{model.name}: {self._kind} gives no output that can be compared{why}")

    def _first(self) -> tuple[dict[str, Inputs], dict[Label, Tensor]]:
        inputs = dict(self.how.inputs(self._loaded.module))
        return inputs, self._outputs(inputs)

    @cached_property
    def _loaded(self) -> Held:
        """The model in memory."""
        module = self.plan.load(self.how.dtype, self.how.seed, deferred=self._streamed)
        for config in _configurations(module.config):
            for entry in (name for name in vars(config) if name.startswith("output_")):
                setattr(config, entry, False)
            config.use_cache, config.return_dict = False, True
        return (Streamed if self._streamed else Held)(module, self.how.device)

    def unload(self) -> None:
        """Leave the outputs in memory only."""
        self.__dict__.pop("_loaded", None)

    def tables(self) -> list[dict[str, Tensor]]:
        """Tables that inputs look up some rows of, as they are in memory, those together that are added up; and heads.

        A head has a row of its own for every token, whose share in the outputs is as small.
        """
        found: dict[tuple[str, int], dict[str, Tensor]] = {}
        head = getattr(self._loaded.module.get_output_embeddings(), "weight", None)
        for name, x in self._loaded.module.named_parameters(remove_duplicate=False):
            if (id(x) in self._looked_up or x is head) and not x.is_meta:
                found.setdefault((name.rsplit(".", 2)[0], x.shape[-1]), {})[name] = x.detach()
        ids = [{x.data_ptr() for x in tables.values()} for tables in found.values()]
        # A tied table has a name wherever it is used.
        return [t for i, t in enumerate(found.values()) if not any(ids[i] < other for other in ids)]

    @property
    def shown(self) -> dict[Label, Tensor]:
        """The outputs of the model as it is, without those of the opened one."""
        return {key: x for key, x in self.outputs.items() if not key[0].endswith(OPENED)}

    def not_finite(self) -> str | None:
        """The first output with NaN, or with an infinity other than the score of what is ruled out."""
        found = (key for key, x in self.outputs.items() if _no_number(x))
        return next((f"{name} at {label}" for name, label in found), None)

    @property
    def _kind(self) -> str:
        return self.plan.kind.__name__

    def _outputs(self, inputs: dict[str, Inputs]) -> dict[Label, Tensor]:
        found = self._loaded.each(self._run, list(inputs.items()))
        return {(name, label): x for label, outputs in zip(inputs, found, strict=True) for name, x in outputs.items()}

    @torch.no_grad()
    def _run(self, labelled: tuple[str, Inputs]) -> dict[str, Tensor]:
        """The outputs on one input, by name."""
        label, given = labelled
        opened = label.endswith(OPENED)
        what = f"{self._name}: {self._kind} can't be run on random inputs"
        with refusing(VerificationError, lambda reason: f"{what} ({reason}): --no-verify goes without"):
            returned = self._all_taking_part(given) if opened else self._loaded.module(**given)
            end = OPENED if opened else ""
            return {f"{name}{end}": promised(value, given).cpu() for name, value in named_outputs(returned, _INNER)}

    def _all_taking_part(self, given: Inputs) -> Any:
        """What the opened model returns, its layers side by side where 16 bits are stored; nothing if none opened."""
        module = self._loaded.module
        abreast = Abreast(dict(layers(module)) if self.how.more else {}, mean=self._mean)
        with Opened(self.how.seed) as mode, abreast:
            returned = module(**given)
        self._looked_up |= mode.tables
        self.chooses |= mode.chooses
        self._parts = abreast.parts
        return returned if mode.differs else {}

    @torch.no_grad()
    def _leave_out_random(self) -> None:
        """Leave out the outputs that depend on parameters which the file lacks: they say nothing of it."""
        label, given = next(iter(self._inputs.items()))
        before = self._outputs({label: given})
        generator = torch.Generator().manual_seed(self.how.seed)
        kept: dict[str, Tensor] = {}
        parameters = dict(self._loaded.module.named_parameters())
        for name in self.plan.missing:
            kept[name] = parameters[name].clone()
            parameters[name] += torch.randn(parameters[name].shape, generator=generator).to(parameters[name])
        after = self._outputs({label: given})
        for name, value in kept.items():
            parameters[name].copy_(value)
        random = {name for (name, _), x in before.items() if not torch.equal(x, after[name, label])}
        self.outputs = {key: x for key, x in self.outputs.items() if key[0].removesuffix(OPENED) not in random}

    def rounding(
        self,
        others: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        draw: int = 0,
        *,
        only_opened: bool = False,
    ) -> Distances:
        """What one more rounding of those stored values changes that aren't another model's; they stay changed.

        Args:
            others: The other model's values.
            dtype: The type that they are rounded to; by default each to the type that it is stored in.
            draw: Which of several roundings; the first is measured on a share of the inputs, others on all.
            only_opened: Whether on those of the opened model alone.
        """
        changed = False

        def round_again(name: str, value: Tensor) -> None:
            nonlocal changed
            other = made(others[name]) if name in others else None
            where = differing(value, other)
            if where is not None:
                # Of each tensor by itself, in whatever order they come.
                generator = torch.Generator().manual_seed(crc32(f"{self.how.seed + draw} {name}".encode()))
                stored = dtype or compact(value, self._stored).dtype
                stays = stays_by_rounding(value, other, stored, where)
                dither(value, stored, where, generator, HIDDEN if stays else 0.0)
                changed = True

        self._loaded.change(round_again)
        found = self._changed(0.0 if only_opened else 1.0 if draw else _SHARE)
        return found if changed else Distances()

    def sensitivity(self, dtype: torch.dtype) -> Sensitivity:
        """The stored values, and what one rounding of all of them to a type changes; they stay changed."""
        return self._loaded.values(lambda value: compact(value, self._stored)), self.rounding({}, dtype)

    def _changed(self, of_inputs: float) -> Distances:
        """How far a share of the outputs is from what it was: the longest inputs."""
        labels = sorted(self._inputs, key=lambda label: (label.endswith(OPENED), -_size(self._inputs[label])))
        share = math.ceil(of_inputs * len(labels))
        some = {x: self._inputs[x] for i, x in enumerate(labels) if i < share or x.endswith(OPENED)}
        after = {key: x for key, x in self._outputs(some).items() if key in self.outputs}
        found = [changes(x.products, y.products) for x, y in zip(self.parts, self._parts, strict=True)]
        self.rounded = [torch.maximum(*each) for each in zip(self.rounded or found, found, strict=True)]
        return Distances.between({key: self.outputs[key] for key in after}, after)


def _subtracts_mean(model: Model) -> bool:
    """Whether normalisations take the mean off the residual stream, or may: where that isn't known nothing turns it."""
    description = model.canonical.description
    try:
        return description.family.stream is None or description.family.stream(description.config).mean
    except ArchitectureError:  # such streams aren't moved
        return True


def _no_number(x: Tensor) -> bool:
    """Whether an output has NaN, or an infinity other than the score of what is ruled out."""
    return bool(x.isnan().any() or x.isposinf().any())


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
