"""What ablations make of barriers: ranks, shares, and which permutations are tried. Their losses are made up here."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import Any

import pytest
import torch
import transformers

from isobasin import scramble
from isobasin.alignment import Alignment
from isobasin.experiments import ablations
from isobasin.lines.ends import Losses, Measuring, OpenPair

_NAIVE = 2.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[OpenPair]:
    """A model of three heads, and the same function in other weights."""
    folder = tmp_path_factory.mktemp("pair")
    config = transformers.GPT2Config(vocab_size=20, n_embd=12, n_layer=2, n_head=3, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    model.save_pretrained(folder / "a")
    scramble(folder / "a", folder / "b", seed=1, condition=4, verify=False)
    with OpenPair.open(folder / "a", folder / "b", Losses(None, Measuring(temperature=False))) as found:
        yield found


def fake(monkeypatch: pytest.MonkeyPatch, barriers: dict[tuple[int, ...] | None, float], other: float) -> list[Any]:
    """Let barriers depend on the heads of layer 0 alone; the heads of all layers that were measured."""
    seen: list[Any] = []

    def curve(self: Any, alignment: Alignment | None) -> dict[str, Any]:
        heads = None
        if alignment is not None:
            seen.append([tuple(layer.element.head_permutation().tolist()) for layer in alignment.layers])
            heads = seen[-1][0]
        return {"barrier": barriers.get(heads, other)}

    monkeypatch.setattr(OpenPair, "curve", curve)
    return seen


def chosen_heads(pair: OpenPair, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """What stage 1 chooses for layer 0: the planted permutation."""
    seen = fake(monkeypatch, {None: 1.0}, 0.5)
    ablations.stage_2(pair)
    assert len({heads[0] for heads in seen}) == 1
    return seen[0][0]


def test_the_rank_and_the_place_of_the_chosen_permutation(pair: OpenPair, monkeypatch: pytest.MonkeyPatch):
    chosen = chosen_heads(pair, monkeypatch)
    better = next(heads for heads in itertools.permutations(range(3)) if heads != chosen)
    seen = fake(monkeypatch, {None: _NAIVE, better: 0.4, chosen: 0.8}, 1.2)
    found = ablations.stage_1(pair)
    assert sorted(heads[0] for heads in seen) == list(itertools.permutations(range(3)))
    assert len({heads[1] for heads in seen}) == 1
    assert (found["layer"], found["rank"], found["of"], found["naive"]) == (0, 2, 6, {"barrier": _NAIVE})
    assert found["l_hat"] == pytest.approx(100 * (0.8 - 0.4) / (2.0 - 0.4))
    rows = found["permutations"]
    assert [row["barrier"] for row in rows] == [0.4, 0.8, 1.2, 1.2, 1.2, 1.2]
    assert [tuple(row["heads"]) for row in rows[:2]] == [better, chosen]
    assert [row["chosen"] for row in rows] == [False, True, False, False, False, False]
    # The models are equal: the planted permutation costs nothing, every other one something.
    assert rows[1]["cost"] == pytest.approx(0, abs=1e-9)
    assert min(row["cost"] for row in rows if not row["chosen"]) > 0.1


@pytest.mark.parametrize(("naive", "l_hat"), [(0.5, 0.0), (0.0, None)])
def test_equal_barriers_share_the_first_rank(
    naive: float, l_hat: float | None, pair: OpenPair, monkeypatch: pytest.MonkeyPatch
):
    fake(monkeypatch, {None: naive}, 0.0)
    found = ablations.stage_1(pair)
    assert (found["rank"], found["of"], found["l_hat"]) == (1, 6, l_hat)


def test_shares_of_the_naive_barrier(pair: OpenPair, monkeypatch: pytest.MonkeyPatch):
    fake(monkeypatch, {None: 4.0}, 1.0)
    methods = ablations.stage_2(pair)["methods"]
    assert {name: row["percent"] for name, row in methods.items()} == {
        "none": 100,
        "heads": 25,
        "orthogonal": 25,
        "paper": 25,
        "gauss-newton": 25,
    }
    assert methods["gauss-newton"]["distance"] < 1e-4 < 1 < methods["heads"]["distance"]
    fake(monkeypatch, {None: 0.0}, 1.0)
    costs = ablations.head_costs(pair)["costs"]
    assert {row["percent"] for row in costs.values()} == {None}


def test_of_many_permutations_some_are_drawn_once_each_and_the_chosen_one_is_first():
    chosen = (0, 1), ((0, 1, 2), (2, 1, 0))
    assert len(list(ablations._permutations(2, 3, chosen, 23, 0))) == 24
    drawn = [list(ablations._permutations(2, 3, chosen, 23, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] == chosen
    assert len(set(drawn[0])) == 24
    assert all(sorted(ablations._flat(heads)) == list(range(6)) for heads in drawn[0])
    # One group of four: all 24, the chosen one being among them.
    assert len(set(ablations._permutations(4, 1, ((0, 1, 2, 3), ((0,),) * 4), 23, 0))) == 24
