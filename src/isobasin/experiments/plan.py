"""From an experiment's settings to its cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from isobasin.choices import Redrawn
from isobasin.experiments.cells import Cell, Store
from isobasin.experiments.settings import DataSettings, ExperimentSettings, SettingSettings

Seeds = tuple[int, int]


@dataclass(frozen=True)
class Group:
    """The models of one setting that had the same scope drawn anew, and their pairs.

    Attributes:
        scope: What was drawn anew.
        heads: How many heads the replaced attention has; None for as many as before.
        freeze: Whether the rest was frozen.
        finetunes: By seed.
        pairs: By the seeds of both.
        ablations: By kind, then by the seeds of both.
    """

    scope: Redrawn
    heads: int | None
    freeze: bool
    finetunes: dict[int, Cell]
    pairs: dict[Seeds, Cell]
    ablations: dict[str, dict[Seeds, Cell]] = field(default_factory=dict[str, dict[Seeds, Cell]])

    @property
    def title(self) -> str:
        """For people."""
        heads = "" if self.heads is None else f", {self.heads} heads"
        frozen = self.freeze or self.scope is Redrawn.entire_model
        return f"{self.scope}{heads}{'' if frozen else ', nothing frozen'}"

    def cells(self) -> Iterator[Cell]:
        """In the order in which they can be done, each pair as soon as both its models are there."""
        seen: list[int] = []
        for seed, cell in self.finetunes.items():
            yield cell
            for other in seen:
                if (other, seed) in self.pairs:
                    yield self.pairs[other, seed]
                    yield from (pairs[other, seed] for pairs in self.ablations.values())
            seen.append(seed)


@dataclass(frozen=True)
class SettingPlan:
    """The cells of one model on one set of data.

    Attributes:
        setting: What it is.
        pretrain: The model that all others are made from.
        reinitialise: Its loss with one layer drawn anew, if that was asked for.
        groups: Its fine-tuned models.
    """

    setting: SettingSettings
    pretrain: Cell
    reinitialise: Cell | None
    groups: tuple[Group, ...]

    def cells(self) -> Iterator[Cell]:
        """In the order in which they can be done."""
        yield self.pretrain
        if self.reinitialise is not None:
            yield self.reinitialise
        for group in self.groups:
            yield from group.cells()


def plans(settings: ExperimentSettings) -> list[SettingPlan]:
    """The cells of every setting. Equal cells of two settings have one key, and are done once."""
    return [_plan(settings, setting) for setting in settings.settings]


def all_cells(chosen: Iterable[SettingPlan]) -> list[Cell]:
    """The cells of some settings, each once, in the order in which they can be done."""
    found: dict[str, Cell] = {}
    for cell in chain.from_iterable(plan.cells() for plan in chosen):
        found.setdefault(cell.key, cell)
    return list(found.values())


def pending(cells: Sequence[Cell], store: Store) -> list[Cell]:
    """The cells that have to be done.

    What nothing else needs is to be done unless its record is there. What others need is to be done only if one of
    them is, so that records are enough: a model that is gone isn't trained again when all its pairs are measured.

    Args:
        cells: All of them, each after what it needs.
        store: Where they are.
    """
    needed = {need.key for cell in cells for need in cell.needs}
    wanted: set[str] = set()
    for cell in reversed(cells):
        if cell.key not in needed:
            missing = store.record(cell) is None
        else:
            missing = cell.key in wanted and not store.complete(cell)
        if missing:
            wanted.add(cell.key)
            wanted.update(need.key for need in cell.needs)
        else:
            wanted.discard(cell.key)
    return [cell for cell in cells if cell.key in wanted]


def _plan(settings: ExperimentSettings, setting: SettingSettings) -> SettingPlan:
    data = settings.data[setting.data]
    before = settings.data[setting.pretrain_data or setting.data]
    spec: dict[str, Any] = {
        "model": settings.models[setting.model].model_dump(mode="json"),
        "data": before.model_dump(mode="json"),
        "training": settings.training[setting.pretrain].model_dump(mode="json"),
        "seed": settings.pretrain_seed if setting.pretrain_seed is None else setting.pretrain_seed,
    }
    pretrain = Cell("pretrain", spec, label=f"{setting.title}: pretraining")
    reinitialise = None
    if setting.ablations.reinitialise:
        spec = _measuring(settings, data) | {"seeds": list(settings.seeds)}
        reinitialise = Cell("reinitialise", spec, (pretrain,), label=f"{setting.title}: one layer drawn anew")
    return SettingPlan(setting, pretrain, reinitialise, tuple(_groups(settings, setting, pretrain)))


def _groups(settings: ExperimentSettings, setting: SettingSettings, pretrain: Cell) -> Iterator[Group]:
    own = settings.models[setting.model].heads
    heads = [None if count == own else count for count in setting.heads or settings.heads]
    for scope in setting.scopes or settings.scopes:
        for count in dict.fromkeys(heads):
            # Of a model that is drawn anew as a whole nothing is left to freeze.
            freezes = (False,) if scope is Redrawn.entire_model else setting.freeze or settings.freeze
            for freeze in freezes:
                yield _group(settings, setting, pretrain, Group(scope, count, freeze, {}, {}))


def _group(settings: ExperimentSettings, setting: SettingSettings, pretrain: Cell, empty: Group) -> Group:
    """The group with its cells."""
    data, where = settings.data[setting.data], f"{setting.title}: {empty.title}"
    fresh = setting.from_scratch if empty.scope is Redrawn.entire_model else None
    training = settings.training[fresh or setting.finetune]
    spec: dict[str, Any] = {
        "data": data.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "scope": empty.scope.value,
        "heads": empty.heads,
        "freeze": empty.freeze,
        "new_classifier": setting.pretrain_data not in (None, setting.data),
    }
    for seed in settings.seeds:
        label = f"{where}, seed {seed}"
        empty.finetunes[seed] = Cell("finetune", spec | {"seed": seed}, (pretrain,), label=label)
    for seeds in settings.chosen_pairs:
        ends = empty.finetunes[seeds[0]], empty.finetunes[seeds[1]]
        common = _measuring(settings, data) | {"points": settings.points, "feedforward": empty.scope.feedforward}
        label = f"{where}, seeds {seeds[0]} and {seeds[1]}"
        empty.pairs[seeds] = Cell("pair", common | {"methods": list(settings.methods)}, ends, label=label)
        if empty.scope is setting.ablations.scope:
            for kind, extra in _ablations(setting).items():
                cell = Cell(kind, common | extra, ends, label=f"{label}, {kind}")
                empty.ablations.setdefault(kind, {})[seeds] = cell
    return empty


def _measuring(settings: ExperimentSettings, data: DataSettings) -> dict[str, Any]:
    return {"data": data.model_dump(mode="json"), "batch": settings.batch}


def _ablations(setting: SettingSettings) -> dict[str, dict[str, Any]]:
    """What is ablated on pairs: kind and own entries of the specification."""
    asked = setting.ablations
    found: dict[str, dict[str, Any]] = {}
    if asked.stage_1:
        found["stage-1"] = {"permutations": asked.permutations, "seed": 0}
    if asked.stage_2:
        found["stage-2"] = {}
    if asked.head_costs:
        found["head-costs"] = {}
    if asked.symmetry_breaking:
        found["symmetry-breaking"] = {"offsets": list(asked.symmetry_breaking)}
    if asked.alignments is not None:
        refining = asked.alignments.model_dump(mode="json")
        # Named only where it is asked for: what was measured before there was a choice is what it was.
        apart = {"untie": True} if asked.untie else {}
        found["alignments"] = {"refining": refining, "scope": asked.scope.value, **apart}
    return found
