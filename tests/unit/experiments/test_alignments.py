"""One pair aligned in every way."""

from __future__ import annotations

import pytest
import torch

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.choices import Objective, Scope, TaskKind
from isobasin.experiments.alignments import CIRCUITS, REFINED, alignments, ways
from isobasin.experiments.cells import comparable
from isobasin.lines.ends import Losses, Measuring, OpenPair
from isobasin.records.curves import NAIVE
from isobasin.refinement.recipe import Refining
from isobasin.reports import experiment_tables
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts

SHORT = Refining(steps=2, batch_size=4, every=1)
MODEL = tiny("llama", "aligned", config={"tie_word_embeddings": False})


def tokens(count: int) -> TensorExamples:
    ids = torch.randint(3, 50, (count, 12), generator=torch.Generator().manual_seed(count))
    facts = DataFacts("made up", None, "causal-lm", count, "none")
    return TensorExamples(TaskKind.causal_lm, facts, {"input_ids": ids, "labels": ids})


def measured(scope: Scope, folder, **options):
    """All ways on a model and its scrambled copy."""
    a, b = folder / "a", folder / "b"
    if not a.exists():
        MODEL.save(a, dtype=torch.float32)
        isobasin.scramble(a, b, seed=1, condition=3.0, scope=scope.value, verify=False)
    with opened(a, b, 8, scope) as pair:
        return alignments(pair, tokens(20), SHORT, **options)


def opened(a, b, count: int, scope: Scope = Scope.attention, untie: bool = False):
    how = Measuring(points=3, batch_size=256, scope=scope, temperature=False, untie=untie)
    return OpenPair.open(a, b, Losses(tokens(count), how))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {scope: tmp_path_factory.mktemp(scope) for scope in Scope}


@pytest.fixture(scope="module")
def once(folders):
    """All ways between a model and its copy that is scrambled within attention."""
    return measured(Scope.attention, folders[Scope.attention])


@pytest.mark.parametrize("scope", [Scope.attention, Scope.model])
def test_a_scrambled_copy_has_no_barrier_after_ours(scope, folders, once):
    found = once if scope is Scope.attention else measured(scope, folders[scope])
    rows = found["ways"]
    assert list(rows) == [NAIVE, *ways(scope), REFINED, CIRCUITS]
    ours = {"model", "model-data", "model-activations"} if scope is Scope.model else {"attention", "activations"}
    for name in {*ours, REFINED}:
        # Models that are one have one loss between them.
        assert rows[name]["losses"] == pytest.approx([rows[NAIVE]["losses"][0]] * 3, abs=1e-4), name
    for name in (NAIVE, "heads"):
        assert abs(rows[name]["middle"]) > 1e-2
    assert abs(rows[CIRCUITS]["middle"]) < 1e-3
    naive = rows[NAIVE]
    assert naive["percent"] == (100 if naive["barrier"] > 0 else None)
    assert naive["middle"] == pytest.approx(naive["losses"][1] - (naive["losses"][0] + naive["losses"][2]) / 2)
    assert found["seconds"].keys() == {*ways(scope), REFINED}
    assert all(value > 0 for value in found["seconds"].values())


def test_nothing_but_the_seconds_differs_when_it_is_done_again(folders, once):
    again = measured(Scope.attention, folders[Scope.attention])
    first, second = (comparable({"result": found}) for found in (once, again))
    assert first == second
    assert "seconds" not in first["result"]


def test_refining_and_merging_can_be_left_out(tmp_path):
    a, b = MODEL.save(tmp_path / "a"), tmp_path / "b"
    isobasin.scramble(a, b, seed=1, condition=1.5, verify=False)
    with opened(a, b, 4) as pair:
        found = alignments(pair, tokens(4), merging=False)
    assert list(found["ways"]) == [NAIVE, *ways(Scope.attention)]


def test_tied_models_are_aligned_apart(tmp_path):
    """What is measured are the same functions; what they can be moved by is more."""
    a, b = (tiny("gpt2").save(tmp_path / str(seed), seed, dtype=torch.float32) for seed in range(2))
    found = {}
    for untie in (False, True):
        with opened(a, b, 8, Scope.model, untie) as pair:
            assert pair.a.untied is pair.b.untied is untie
            found[untie] = alignments(pair, tokens(20), SHORT)["ways"]
    for name in (NAIVE, "heads", "attention"):
        assert found[True][name]["losses"] == pytest.approx(found[False][name]["losses"], abs=1e-5)
    for name in ("model", REFINED):
        assert found[True][name]["losses"][::2] == pytest.approx(found[False][name]["losses"][::2], abs=1e-5)
        assert abs(found[True][name]["middle"] - found[False][name]["middle"]) > 1e-4


def test_blocks_are_matched_where_blocks_differ():
    assert {matching.scope for matching, _ in ways(Scope.block).values()} == {Scope.block}
    assert {
        name for name, (matching, _) in ways(Scope.block).items() if matching.objective is Objective.activations
    } == {"activations"}


def test_the_report_knows_all_ways():
    known = {NAIVE, *ways(Scope.attention), *ways(Scope.model), REFINED, CIRCUITS}
    assert set(experiment_tables.WAYS) == known


def test_what_cannot_be_done_with_some_models_is_left_out(tmp_path):
    """Activations don't weigh experts, and circuits of latent attention have no mean."""
    a, b = tmp_path / "a", tmp_path / "b"
    tiny("deepseek_v3").save(a, dtype=torch.float32)
    isobasin.scramble(a, b, seed=1, condition=3.0, scope="model", verify=False)
    with opened(a, b, 8, Scope.model) as pair:
        rows = alignments(pair, tokens(20), SHORT)["ways"]
    assert list(rows) == [NAIVE, *(name for name in ways(Scope.model) if name != "model-activations"), REFINED]
    assert rows["model-data"]["barrier"] < 1e-6
