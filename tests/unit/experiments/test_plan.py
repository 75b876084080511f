"""Which cells there are, and which of them are left to do."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

from small_experiments import CONFIGURATION, small

from isobasin.choices import Redrawn
from isobasin.experiments.cells import RECORD, Cell, Store
from isobasin.experiments.plan import all_cells, pending, plans


def labels(cells: list[Cell]) -> list[str]:
    return [cell.label.removeprefix("vit on digits: ") for cell in cells]


def do(store: Store, cells: list[Cell]) -> None:
    for cell in cells:
        folder = store.path(cell)
        (folder / "model").mkdir(parents=True, exist_ok=True)
        (folder / "model" / "config.json").touch()
        (folder / RECORD).write_text(json.dumps({"key": cell.key}))


ABLATED = {
    "model": "rotary",
    "data": "digits",
    "pretrain": "quick",
    "finetune": "quick",
    "ablations": {
        "stage_1": True,
        "stage_2": True,
        "head_costs": True,
        "reinitialise": True,
        "symmetry_breaking": [0, 1],
        "alignments": {"steps": 9},
    },
}


def test_all_pairs_of_seeds_each_as_soon_as_it_can_be():
    cells = all_cells(plans(small(seeds=[1, 2, 3])))
    assert labels(cells) == [
        "pretraining",
        "first-attention, seed 1",
        "first-attention, seed 2",
        "first-attention, seeds 1 and 2",
        "first-attention, seed 3",
        "first-attention, seeds 1 and 3",
        "first-attention, seeds 2 and 3",
    ]
    seen: set[str] = set()
    for cell in cells:
        assert seen.issuperset(need.key for need in cell.needs)
        seen.add(cell.key)
    pair = cells[5]
    assert pair.needs == (cells[1], cells[4])
    assert [cell.spec["seed"] for cell in pair.needs] == [1, 3]


def test_of_many_seeds_as_many_pairs_as_are_asked_for_spread_over_the_seeds():
    settings = small(seeds=[5, 1, 4, 2, 3, 9], pairs=12)
    group = plans(settings)[0].groups[0]
    assert list(group.finetunes) == [5, 1, 4, 2, 3, 9]
    assert list(group.pairs)[:5] == [(5, 1), (5, 4), (5, 3), (5, 9), (1, 4)]
    assert Counter(seed for pair in group.pairs for seed in pair) == dict.fromkeys(group.finetunes, 4)
    assert {cell.key for cell in group.pairs.values()} < {cell.key for cell in all_cells(plans(settings))}
    every = plans(small(seeds=[5, 1, 4, 2, 3, 9]))[0].groups[0].pairs
    assert list(every) == list(combinations([5, 1, 4, 2, 3, 9], 2))
    assert {seeds: cell.key for seeds, cell in every.items() if seeds in group.pairs} == {
        seeds: cell.key for seeds, cell in group.pairs.items()
    }


def test_scopes_heads_and_freezing():
    settings = small(scopes=[scope.value for scope in Redrawn], heads=[None, 2, 4], freeze=[True, False])
    groups = plans(settings)[0].groups
    found = [(group.scope, group.heads, group.freeze) for group in groups]
    # As many heads as before are no other heads, and nothing is frozen where all is drawn anew.
    parts = [(scope, heads, freeze) for scope in list(Redrawn)[:3] for heads in (None, 4) for freeze in (True, False)]
    assert found == [*parts, (Redrawn.entire_model, None, False), (Redrawn.entire_model, 4, False)]
    feedforward = {group.scope for group in groups for cell in group.pairs.values() if cell.spec["feedforward"]}
    assert feedforward == {Redrawn.first_layer, Redrawn.entire_model}
    assert groups[1].title == "first-attention, nothing frozen"
    assert groups[2].title == "first-attention, 4 heads"
    assert groups[-2].title == "entire-model"


def test_ablations_are_of_the_pairs_of_their_scope():
    settings = small(settings=[ABLATED], scopes=["first-attention", "all-attention"], seeds=[1, 2, 3])
    (plan,) = plans(settings)
    count = Counter(cell.kind for cell in plan.cells())
    assert count == {
        "pretrain": 1,
        "reinitialise": 1,
        "finetune": 6,
        "pair": 6,
        "stage-1": 3,
        "stage-2": 3,
        "head-costs": 3,
        "symmetry-breaking": 3,
        "alignments": 3,
    }
    for kind, pairs in plan.groups[0].ablations.items():
        for seeds, cell in pairs.items():
            assert cell.kind == kind
            assert cell.needs == plan.groups[0].pairs[seeds].needs
    assert plan.groups[1].ablations == {}
    assert plan.groups[0].ablations["symmetry-breaking"][1, 2].spec["offsets"] == [0, 1]


def test_equal_cells_of_two_settings_are_one():
    one = {"model": "vit", "data": "digits", "pretrain": "quick", "finetune": "quick"}
    other = {**one, "name": "again", "scopes": ["first-attention", "all-attention"]}
    cells = all_cells(plans(small(settings=[one, other])))
    assert len(cells) == len({cell.key for cell in cells}) == 1 + 2 * 3
    assert len(all_cells(plans(small(settings=[one])))) == 1 + 3


def test_what_changes_a_result_changes_the_keys_that_depend_on_it():
    def keys(**changes: object) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for cell in all_cells(plans(small(**changes))):
            found.setdefault(cell.kind, set()).add(cell.key)
        return found

    before = keys()
    points = keys(points=5)
    assert points["pretrain"] == before["pretrain"]
    assert points["finetune"] == before["finetune"]
    assert points["pair"].isdisjoint(before["pair"])
    more = keys(seeds=[1, 2, 3])
    assert all(more[kind] >= before[kind] for kind in before)
    training = keys(training={"quick": {**CONFIGURATION["training"]["quick"], "steps": 3}})
    assert all(training[kind].isdisjoint(before[kind]) for kind in before)
    assert keys(title="another") == before


def test_pending_is_what_is_missing(tmp_path: Path):
    store, cells = Store(tmp_path), all_cells(plans(small()))
    base, first, second, pair = cells
    assert pending(cells, store) == cells
    do(store, [base, first])
    assert pending(cells, store) == [second, pair]
    do(store, [second, pair])
    assert pending(cells, store) == []


def test_records_are_enough_without_models(tmp_path: Path):
    store, cells = Store(tmp_path), all_cells(plans(small()))
    base, first, second, pair = cells
    do(store, cells)
    for cell in (base, first, second):
        store.drop_model(cell)
    assert pending(cells, store) == []
    # Not even the records of the models are needed, once their pairs are measured.
    (store.path(first) / RECORD).unlink()
    assert pending(cells, store) == []
    (store.path(pair) / RECORD).unlink()
    assert pending(cells, store) == cells
    do(store, [second])
    assert pending(cells, store) == [base, first, pair]


def test_another_seed_needs_the_old_models_again(tmp_path: Path):
    store = Store(tmp_path)
    old = all_cells(plans(small()))
    do(store, old)
    for cell in old[1:3]:
        store.drop_model(cell)
    new = all_cells(plans(small(seeds=[1, 2, 3])))
    left = labels(pending(new, store))
    assert left == [
        "first-attention, seed 1",
        "first-attention, seed 2",
        "first-attention, seed 3",
        "first-attention, seeds 1 and 3",
        "first-attention, seeds 2 and 3",
    ]
