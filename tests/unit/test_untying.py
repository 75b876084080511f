"""Untying in every verb and stored form: what is compared, averaged, learned and written is of one form."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import isobasin
from isobasin import loading
from isobasin.architectures.examples import tiny
from isobasin.beside import REFERENCE
from isobasin.canonical import open_canonical
from isobasin.checkpoints import Checkpoint, extended, write_checkpoint
from isobasin.choices import Scope, TaskKind
from isobasin.errors import ArchitectureError, IsobasinWarning, OutputError, TensorError, VerificationError
from isobasin.lines.ends import Measuring
from isobasin.lines.measure import measure
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import refine
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts
from isobasin.testing.assertions import assert_function_preserved
from isobasin.verbs.settings import Matching
from situations.forms import edit_tensors

MODEL = tiny("gpt2", "tied-pair")
LLAMA = tiny("llama", "tied-pair", config={"tie_word_embeddings": True})
WEIGHTS, HEAD = "model.safetensors", "lm_head.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tied models in float32 that have nothing in common."""
    folder = tmp_path_factory.mktemp("tied")
    a = MODEL.save(folder / "a", 0, dtype=torch.float32)
    b = MODEL.save(folder / "b", 1, dtype=torch.float32)
    return a, b


def texts(count: int = 32, length: int = 12) -> TensorExamples:
    tokens = torch.randint(3, 50, (count, length), generator=torch.Generator().manual_seed(0))
    facts = DataFacts("made up", None, "causal-lm", count, "none")
    return TensorExamples(TaskKind.causal_lm, facts, {"input_ids": tokens, "labels": tokens})


def form(folder: Path) -> tuple[bool, set[str]]:
    """Whether a folder's configuration ties, and the names of its tensors."""
    config = json.loads((folder / "config.json").read_text())
    return config.get("tie_word_embeddings", True), set(Checkpoint.open(folder).tensors)


def sharded(folder: Path) -> None:
    shutil.rmtree(folder)
    LLAMA.save(folder, max_shard_size="20KB")


def twice(folder: Path) -> None:
    edit_tensors(folder, lambda t: t | {HEAD: t["model.embed_tokens.weight"].clone()})


def head_alone(folder: Path) -> None:
    edit_tensors(folder, lambda t: {n.replace("model.embed_tokens", "lm_head"): x for n, x in t.items()})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def nameless(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({n: x for n, x in json.loads(path.read_text()).items() if n != "architectures"}))


@pytest.mark.parametrize("change", [sharded, twice, head_alone, pickled, nameless])
def test_every_stored_form_is_untied(change, tmp_path: Path):
    usual, folder, out = LLAMA.save(tmp_path / "usual"), LLAMA.save(tmp_path / "a"), tmp_path / "out"
    change(folder)
    with open_canonical(folder, allow_pickle=True, untie=True) as opened:
        assert opened.checkpoint.original is not None
        write_checkpoint(opened.checkpoint, out, [])
    tied, names = form(out)
    assert not tied
    assert names == {*load_file(usual / WEIGHTS), HEAD}
    assert_function_preserved(usual, out, 0.0)
    index = out / "model.safetensors.index.json"
    assert index.exists() == (change is sharded)
    if index.exists():
        listed = json.loads(index.read_text())
        sizes = (load_file(out / file)[name].nbytes for name, file in listed["weight_map"].items())
        assert set(listed["weight_map"]) == names
        assert listed["metadata"]["total_size"] == sum(sizes)


def test_a_base_model_has_no_head_to_untie(tmp_path: Path):
    with open_canonical(MODEL.save(tmp_path / "base", base=True), untie=True) as opened:
        assert opened.checkpoint.original is None


def test_nothing_read_is_changed_or_overwritten(pair, tmp_path: Path):
    a, b = (shutil.copytree(folder, tmp_path / folder.name) for folder in pair)
    before = [{f.name: f.read_bytes() for f in folder.iterdir()} for folder in (a, b)]
    for place in (a, b):
        with pytest.raises(OutputError, match="is, holds or lies in the input"):
            isobasin.align(a, b, place, untie=True, force=True)
    isobasin.align(a, b, tmp_path / "out", untie=True)
    assert before == [{f.name: f.read_bytes() for f in folder.iterdir()} for folder in (a, b)]


@pytest.mark.parametrize("scope", list(Scope))
def test_align_in_memory_and_in_folders_says_the_same(scope, pair, tmp_path: Path):
    found = isobasin.align(*pair, scope=scope, untie=True)
    assert found.untied
    assert found.verified.equal
    found.apply(pair[1], tmp_path / "applied")
    isobasin.align(*pair, tmp_path / "written", scope=scope, untie=True)
    loaded = isobasin.Alignment.load(tmp_path / "written")
    assert loaded.untied
    assert loaded.inverse().untied
    assert loaded.compose(loaded.inverse()).untied
    for name, x in load_file(tmp_path / "written" / WEIGHTS).items():
        assert torch.equal(x, load_file(tmp_path / "applied" / WEIGHTS)[name])
    assert not isobasin.align(*pair, scope=scope).untied
    # An untied model is as it should be already.
    isobasin.align(pair[0], tmp_path / "written", tmp_path / "again", scope=scope, untie=True)
    assert form(tmp_path / "again") == form(tmp_path / "written")


def test_a_model_in_memory_is_returned_untied(pair):
    model = MODEL.build(1)
    moved = isobasin.scramble(model, scope="model", untie=True).model
    assert moved.config.tie_word_embeddings is False
    assert moved.lm_head.weight.data_ptr() != moved.transformer.wte.weight.data_ptr()
    assert_function_preserved(model, moved, 1e-6, hidden=False)


def test_a_pair_of_two_forms_is_matched_when_untied(pair, tmp_path: Path):
    untied = isobasin.scramble(pair[1], tmp_path / "untied", scope="attention", untie=True).path
    with pytest.warns(IsobasinWarning, match=r"--untie .* frees O\(31\)"), pytest.raises(ArchitectureError, match="O"):
        isobasin.align(untied, pair[0], scope="model")
    assert isobasin.align(untied, pair[0], scope="model", untie=True).untied
    assert not isobasin.align(pair[0], untied, scope="model", untie=True).untied


def test_whoever_matches_tied_models_whole_is_told_of_what_would_be_free(pair, tmp_path: Path):
    said = partial(pytest.warns, IsobasinWarning, match=r"its head is the embedding, .* --untie .* frees O\(31\)")
    with said():
        isobasin.merge(pair, tmp_path / "merged", scope="model")
    with said():
        isobasin.gauge(pair[0], "rtn4", tmp_path / "gauge", how=Refining(steps=1), tries=0)
    with said():
        measure(pair, texts(), tmp_path / "barriers", measuring=Measuring(scope=Scope.model, points=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", IsobasinWarning)
        isobasin.merge(pair, tmp_path / "untied", scope="model", untie=True)


def test_a_tied_model_and_an_untied_one_are_known_to_be_one_function(pair, tmp_path: Path):
    untied = isobasin.scramble(pair[1], tmp_path / "untied", scope="model", untie=True, verify=False).path
    for ends in ((pair[1], untied), (untied, pair[1])):
        found = isobasin.equivalent(*ends)
        assert found.equivalent, (found.other_tensors, found.layers)
        assert found.stream == "O(31)"
        assert isobasin.compare(*ends).verdict == "same function"
        assert isobasin.verify(*ends).equal
    assert not isobasin.equivalent(pair[0], untied).equivalent


def test_what_is_always_tied_is_compared_as_it_is(tmp_path: Path):
    """A T5 whose head has values of its own isn't tied, and one whose head hasn't can't be untied."""
    tied, own = (tiny("t5").save(tmp_path / name) for name in ("tied", "own"))
    edit_tensors(own, lambda t: t | {HEAD: 2 * t["shared.weight"]})
    assert isobasin.equivalent(tied, own).other_tensors == (HEAD,)
    with pytest.raises(ArchitectureError, match=r"model type t5 ties its head whatever config.json says: no --untie"):
        isobasin.align(tied, own, untie=True)


def test_what_stands_between_two_forms_names_the_option(pair, tmp_path: Path):
    untied = isobasin.scramble(pair[1], tmp_path / "untied", untie=True).path
    (found,) = isobasin.check([pair[0], untied]).pairs
    assert [str(option) for conflict in found.conflicts for option in conflict.options] == ["--untie", "--head"]
    said = r"tensor 'lm_head.weight' is in B but not in A, .*--untie takes tied tensors apart"
    with pytest.raises(TensorError, match=said):
        isobasin.interpolate(pair[0], untied, 0.5, tmp_path / "line")
    with pytest.raises(TensorError, match=said):
        isobasin.merge([pair[0], untied], tmp_path / "merged")
    isobasin.interpolate(pair[0], untied, 0.5, tmp_path / "line", untie=True)
    isobasin.merge([pair[0], untied], tmp_path / "merged", untie=True, force_unrelated=True)
    assert form(tmp_path / "line") == form(tmp_path / "merged") == form(untied)


@pytest.mark.parametrize("space", ["weights", "circuit"])
def test_merge_with_all_weight_on_a_tied_model_is_its_function(space, pair, tmp_path: Path):
    isobasin.merge(pair, tmp_path / "out", t=0.0, space=space, scope="model", untie=True)
    assert form(tmp_path / "out")[0] is False
    assert_function_preserved(pair[0], tmp_path / "out", 1e-4, hidden=False)


def test_a_line_to_an_untied_model_begins_at_the_tied_one(pair, tmp_path: Path):
    """B stored apart, its embedding and head moved by different amounts: every point is the mean of the untied two."""
    out = tmp_path / "out"
    isobasin.align(*pair, out, scope="model", untie=True)
    how = Measuring(("none", "heads"), 3, temperature=False)
    with pytest.warns(IsobasinWarning, match="measured with its tied tensors apart"):
        found = measure([pair[0], out], texts(), tmp_path / "mixed", how)
    with open_canonical(pair[0], untie=True) as opened:
        write_checkpoint(opened.checkpoint, tmp_path / "apart", [])
    plain = measure([tmp_path / "apart", out], texts(), tmp_path / "plain", how)
    assert _losses(found) == _losses(plain)
    tied = measure([pair[0], pair[1]], texts(), tmp_path / "tied", how)
    assert _losses(tied)["none"][0] == _losses(found)["none"][0]
    both = measure(pair, texts(), tmp_path / "both", Measuring(("none",), 3, temperature=False, untie=True))
    # On the way both tensors go where the one went.
    assert _losses(both)["none"] == pytest.approx(_losses(tied)["none"], rel=1e-6)


def _losses(found) -> dict[str, list[float]]:
    return {method: [point.loss for point in points] for (_, method), points in found.points.items()}


def test_refine_writes_both_ends_untied_and_lowers_the_line(pair, tmp_path: Path):
    far = isobasin.scramble(pair[0], tmp_path / "far", scope="model", untie=True, condition=1.5, verify=False).path
    how = Refining(steps=4, batch_size=8, every=2, warmup=1, held_out=0.25)
    found = refine(pair[0], far, texts(), tmp_path / "out", how=how, matching=Matching(scope=Scope.model, untie=True))
    assert found.reference.untied
    assert not found.alignment.untied  # it was untied before
    for folder in (tmp_path / "out", tmp_path / "out" / REFERENCE):
        assert form(folder) == form(far)
        assert_function_preserved(pair[0], folder, 1e-3, hidden=False)
    assert all(one.equal for one in found.verified)
    found.reference.apply(pair[0], tmp_path / "reference")
    for name, x in load_file(tmp_path / "reference" / WEIGHTS).items():
        torch.testing.assert_close(x, load_file(tmp_path / "out" / REFERENCE / WEIGHTS)[name], rtol=0, atol=0)


def test_refine_refuses_two_forms_with_the_option(pair, tmp_path: Path):
    untied = isobasin.scramble(pair[1], tmp_path / "untied", untie=True).path
    with pytest.raises(TensorError, match="--untie"):
        refine(pair[0], untied, texts(), tmp_path / "out", matching=Matching(scope=Scope.model))


def test_what_is_written_is_compared_with_the_tied_files(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A head that isn't the embedding is seen, though what was moved has it too."""
    real = loading.untied

    def wrong(checkpoint, description, view):
        found = real(checkpoint, description, view)
        return extended(checkpoint, {HEAD: "transformer.wpe.weight"}, found.config)

    model = tiny("gpt2", config={"vocab_size": 16}).save(tmp_path / "a")
    monkeypatch.setattr("isobasin.canonical.untied", wrong)
    with pytest.raises(VerificationError, match="isn't the same function"):
        isobasin.scramble(model, tmp_path / "out", untie=True)
    assert not (tmp_path / "out").exists()


def test_a_tied_and_an_untied_model_are_a_pair_once_both_are_apart(pair: tuple[Path, Path], tmp_path: Path):
    isobasin.scramble(pair[0], tmp_path / "apart", scope="model", untie=True)
    with pytest.raises(ArchitectureError, match=r"group S_32, model's O\(31\): .*--untie takes that apart"):
        isobasin.align(pair[0], tmp_path / "apart", scope="model")
    found = isobasin.align(pair[0], tmp_path / "apart", scope="model", untie=True)
    assert found.stream.statistics.distance_after < 1e-4
