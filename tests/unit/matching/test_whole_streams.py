"""What of two models is held, and how often they are read, while they are matched whole."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from pathlib import Path

import pytest

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.matching import assignment
from isobasin.matching.whole import descent
from isobasin.matching.whole.folded import Folded
from isobasin.verbs import blocks, whole


def matched(folder: Path, layers: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Counter[str], int, int]:
    """The most folded values alive at once, how often each turned tensor was made, sweeps, and matches of units."""
    model = tiny("llama", config={"num_hidden_layers": layers})
    a, b = (model.save(folder / f"{layers}-{seed}", seed) for seed in (0, 1))
    alive: list[weakref.ref] = []
    most, turned, sweeps, units = 0, Counter[str](), 0, 0
    made, swept, match = Folded.made, descent.swept, blocks.match_feedforward

    def watched(folded: Folded, stored):
        nonlocal most
        found = made(folded, stored)
        alive.extend(weakref.ref(tensor) for tensor in found.values())
        most = max(most, sum(x.numel() for x in (ref() for ref in alive) if x is not None))
        if folded.maps is not None:
            turned.update(found.keys())
        return found

    def counted(*args, **options):
        nonlocal sweeps
        sweeps += 1
        return swept(*args, **options)

    def counted_units(*args, **options):
        nonlocal units
        units += 1
        return match(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Folded, "made", watched)
        patch.setattr(descent, "swept", counted)
        patch.setattr(blocks, "match_feedforward", counted_units)
        isobasin.align(a, b, scope="model", verify=False)
    return most, turned, sweeps, units


def test_what_is_held_does_not_grow_with_depth_and_a_sweep_reads_once(tmp_path, monkeypatch):
    # So small layers would be matched together.
    monkeypatch.setattr(blocks, "batches", lambda layers: ([index] for index in range(len(layers))))
    (few, *_), (many, turned, sweeps, units) = (matched(tmp_path, layers, monkeypatch) for layers in (2, 5))
    assert many == few
    assert sweeps > 4
    assert set(turned.values()) == {sweeps}
    # From two starts to one end, where the second solver of heads takes over the units that the first one ended with.
    assert units == 5 * (sweeps - 1)


@pytest.mark.parametrize(
    ("family", "share", "starts"),
    [
        ("llama", 0.1, ["embeddings"]),
        ("llama", 0.9, ["embeddings", "identity"]),
        ("olmo2", 0.1, ["embeddings"]),
        # Its stream is only permuted: where rotations would lead is one start more.
        ("olmo2", 0.9, ["embeddings", "rotation", "identity"]),
    ],
)
def test_other_starts_are_followed_unless_the_models_are_near(
    tmp_path, monkeypatch, family: str, share: float, starts: list[str]
):
    a, b = (tiny(family).save(tmp_path / str(seed), seed) for seed in (0, 1))
    isobasin.interpolate(a, b, share, tmp_path / "between")
    isobasin.scramble(tmp_path / "between", tmp_path / "moved", scope="model", verify=False)
    begun: list[str] = []

    def descend(pair, start, *others):
        begun.append(start)
        return descent.descend(pair, start, *others)

    monkeypatch.setattr(whole, "descend", descend)
    found = isobasin.align(a, tmp_path / "moved", scope="model", verify=False)
    assert begun == starts
    assert found.stream.statistics.start == "embeddings"


def test_a_start_without_hope_is_given_up_and_the_end_is_the_same(tmp_path, monkeypatch):
    a, b = (tiny("llama").save(tmp_path / str(seed), seed) for seed in (0, 1))
    isobasin.interpolate(a, b, 0.8, tmp_path / "between")
    isobasin.scramble(tmp_path / "between", tmp_path / "moved", scope="model", verify=False)
    ends: list[descent.Descent] = []

    def descend(*args):
        ends.append(descent.descend(*args))
        return ends[-1]

    monkeypatch.setattr(whole, "descend", descend)
    found = isobasin.align(a, tmp_path / "moved", scope="model", verify=False)
    followed, given_up = ends
    monkeypatch.setattr(descent, "_HOPE", math.inf)
    again = isobasin.align(a, tmp_path / "moved", scope="model", verify=False)
    assert again.stream.statistics == found.stream.statistics
    assert ends[-1].start == given_up.start
    assert ends[-1].sweeps > given_up.sweeps
    assert ends[-1].after.squares > followed.after.squares


def test_units_that_were_matched_roughly_are_matched_again_in_the_end(tmp_path, monkeypatch):
    a, b = (tiny("llama", config={"intermediate_size": 96}).save(tmp_path / str(seed), seed) for seed in (0, 1))
    monkeypatch.setattr(assignment, "_SMALL", 64)
    # One sweep from every start, and one with the second solver.
    monkeypatch.setattr(descent, "_TIMES", 0)
    rough, match = list[bool](), blocks.match_feedforward

    def matched(*args, **options):
        found = match(*args, **options)
        rough.append(found.rough)
        return found

    monkeypatch.setattr(blocks, "match_feedforward", matched)
    found = isobasin.align(a, b, scope="model", verify=False)
    assert any(rough)
    assert {move.statistics.status for move in found.feedforward} == {"optimal"}
    assert not any(rough[-len(found.feedforward) :])


def test_no_sweep_is_made_that_the_map_promises_nothing_of(tmp_path, monkeypatch):
    a, b = (tiny("llama").save(tmp_path / str(seed), seed) for seed in (0, 1))

    def ends() -> tuple[int, float]:
        sweeps, swept = 0, descent.swept

        def counted(*args, **options):
            nonlocal sweeps
            sweeps += 1
            return swept(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(descent, "swept", counted)
            found = isobasin.align(a, b, scope="model", verify=False)
        return sweeps, found.stream.statistics.distance_after

    few, near = ends()
    monkeypatch.setattr(descent, "_TIMES", math.inf)
    many, nearer = ends()
    assert few < many
    assert near <= nearer * (1 + descent._FALL)
