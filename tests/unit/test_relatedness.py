"""Merges of models that have nothing in common are refused; those of fine-tuned and partly trained ones never are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.choices import TaskKind
from isobasin.errors import ArchitectureError, IsobasinError, IsobasinWarning
from isobasin.refinement.calibration import DataCalibration
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts

MODEL = tiny("llama", "related", config={"tie_word_embeddings": False})
LAYERS = 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that were made apart."""
    home = tmp_path_factory.mktemp("pair")
    a, b = (MODEL.save(home / str(seed), seed, dtype=torch.float32) for seed in (0, 1))
    return a, b


def changed(a: Path, out: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """A copy with other tensors."""
    found = {name: change(name, x) for name, x in load_file(a / "model.safetensors").items()}
    out.mkdir()
    (out / "config.json").write_bytes((a / "config.json").read_bytes())
    save_file(found, out / "model.safetensors", {"format": "pt"})
    return out


def noise(x: Tensor, share: float = 1.0) -> Tensor:
    return share * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(x.numel()))


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_models_made_apart_are_refused_unless_that_is_wanted(scope: str, pair: tuple[Path, Path], tmp_path: Path):
    words = r"1: unrelated: neither attention circuits \(scores .*\) nor other weights .* --scope model"
    with pytest.raises(ArchitectureError, match=words):
        isobasin.merge(pair, tmp_path / "out", scope=scope, verify=False)
    assert not list(tmp_path.iterdir())
    found = isobasin.merge(pair, tmp_path / "out", scope=scope, force_unrelated=True, verify=False)
    (relation,) = found.relations
    assert not relation.related
    assert max(block.score for block in relation.attention) < 0.1
    assert relation.elsewhere is not None
    assert relation.elsewhere < 0.1
    # the ends of the line are the models
    isobasin.merge(pair, tmp_path / "end", t=1, scope=scope, verify=False)


def test_a_few_values_that_correlate_by_chance_are_no_relation(tmp_path: Path):
    """Two rows of token types, without what they have in common, are one direction."""
    a, b = (tiny("bert").save(tmp_path / str(seed), seed, dtype=torch.float32) for seed in (0, 1))
    types = "bert.embeddings.token_type_embeddings.weight"
    kept = load_file(a / "model.safetensors")[types]
    alike = changed(b, tmp_path / "alike", lambda name, x: kept if name == types else x)
    with pytest.raises(ArchitectureError, match="unrelated: neither attention circuits"):
        isobasin.merge([a, alike], tmp_path / "out", verify=False)


def test_whole_models_made_apart_are_merged_with_advice(pair: tuple[Path, Path], tmp_path: Path):
    (relation,) = isobasin.merge(pair, tmp_path / "out", scope="model", verify=False).relations
    assert relation.elsewhere is None
    assert "as of models trained apart: `isobasin refine A B --data DATA" in relation.words


def test_a_copy_in_another_basis_is_as_near_as_it_gets(pair: tuple[Path, Path], tmp_path: Path):
    isobasin.scramble(pair[0], tmp_path / "b", scope="model", verify=False)
    found = isobasin.merge([pair[0], tmp_path / "b"], tmp_path / "out", scope="model", verify=False)
    assert found.relations[0].words == "after the move its attention circuits correlate (scores 1.00 to 1.00)"


def test_fine_tuned_models_and_hidden_copies_are_related(pair: tuple[Path, Path], tmp_path: Path):
    tuned = changed(pair[0], tmp_path / "tuned", lambda name, x: x + noise(x, 0.5))
    isobasin.scramble(tuned, tmp_path / "hidden", scope="block", verify=False)
    for b, scope in ((tuned, "attention"), (tmp_path / "hidden", "attention"), (tmp_path / "hidden", "block")):
        out = tmp_path / f"{b.name} {scope}"
        (relation,) = isobasin.merge([pair[0], b], out, scope=scope, verify=False).relations
        assert relation.words.startswith("related: the circuits of all attention blocks correlate")
        assert relation.elsewhere is None


ANEW = {
    "attention of a layer": lambda name: "layers.0.self_attn" in name,
    "all attention": lambda name: "self_attn" in name,
    "a layer": lambda name: "layers.1." in name,
    "all layers": lambda name: "layers." in name,
    "all but attention of a layer": lambda name: "layers.0.self_attn" not in name,
    "all but the embedding": lambda name: "embed_tokens" not in name,
    "all but the units of a layer": lambda name: "layers.1.mlp" not in name,
}


@pytest.mark.parametrize("part", ANEW)
def test_models_of_which_a_part_was_trained_anew_are_related(part: str, pair: tuple[Path, Path], tmp_path: Path):
    other = load_file(pair[1] / "model.safetensors")
    b = changed(pair[0], tmp_path / "b", lambda name, x: other[name] if ANEW[part](name) else x + noise(x, 0.3))
    (relation,) = isobasin.merge([pair[0], b], tmp_path / "out", verify=False).relations
    assert relation.related
    anew = sum(ANEW[part](f"layers.{layer}.self_attn") for layer in range(LAYERS))
    assert f"not in the attention circuits of {anew} of {LAYERS} blocks" in relation.words
    assert "--scope block" in relation.words


def test_of_three_the_one_that_is_unrelated_is_named(pair: tuple[Path, Path], tmp_path: Path):
    copy = changed(pair[0], tmp_path / "copy", lambda name, x: x)
    with pytest.raises(ArchitectureError, match=f"^{pair[1]}: unrelated"):
        isobasin.merge([pair[0], copy, pair[1]], tmp_path / "out", verify=False)


@pytest.fixture(scope="module")
def sentences() -> TensorExamples:
    tokens = 3 + (torch.arange(40)[:, None] + torch.arange(8)) % 40
    facts = DataFacts("made up", None, "causal-lm", 40, "none")
    return TensorExamples(TaskKind.causal_lm, facts, {"input_ids": tokens, "labels": tokens})


@pytest.mark.parametrize("space", ["weights", "circuit"])
def test_losses_of_models_and_result_are_those_of_transformers(
    space: str, pair: tuple[Path, Path], sentences: TensorExamples, tmp_path: Path
):
    tuned = changed(pair[0], tmp_path / "b", lambda name, x: x + noise(x))
    out, data = tmp_path / "out", DataCalibration(sentences)
    found = isobasin.merge([pair[0], tuned], out, t=0.3, space=space, calibration=data, verify=False)
    tokens = sentences.fetch(range(40))["input_ids"]
    for folder, loss in zip((pair[0], tuned, out), found.losses, strict=True):
        logits = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits[:, :-1]
        right = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        assert abs(loss - float(right.detach())) < 1e-5
    assert len(set(found.losses)) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "model", "keep_gains": True},
        {"max_condition": 1.5},
        {"objective": "activations", "calibration": "data"},
        {"dtype": torch.bfloat16},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_models_are_matched_as_align_does(
    options: dict[str, object], pair: tuple[Path, Path], sentences: TensorExamples, tmp_path: Path
):
    options = options | ({"calibration": DataCalibration(sentences)} if "calibration" in options else {})
    tuned = changed(pair[0], tmp_path / "b", lambda name, x: x + noise(x))
    found = isobasin.merge([pair[0], tuned], tmp_path / "out", verify=False, **options)
    moved = isobasin.align(pair[0], tuned, tmp_path / "moved", verify=False, **options)
    plain = isobasin.align(pair[0], tuned, verify=False, scope=options.get("scope", "attention"))
    ours, theirs, others = (
        {(move.block, name): x for move in made.moves for name, x in move.element.tensors().items()}
        for made in (found.alignments[0], moved, plain)
    )
    assert all(torch.equal(x, theirs[key]) for key, x in ours.items())
    if "dtype" not in options:
        assert any(not torch.equal(x, others[key]) for key, x in ours.items())
    types = {x.dtype for x in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert types == {options.get("dtype", torch.float32)}


def test_a_place_beyond_the_ends_is_said_where_something_is_written(pair: tuple[Path, Path], tmp_path: Path):
    verbs = (
        lambda t, out: isobasin.merge(pair, out, t=t, force_unrelated=True, verify=False),
        lambda t, out: isobasin.interpolate(*pair, t, out),
    )
    for number, verb in enumerate(verbs):
        for t in (-0.5, 1.5):
            with pytest.warns(IsobasinWarning, match=f"t is {t:g}, not between 0 and 1"):
                verb(t, tmp_path / f"{number} {t}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", IsobasinWarning)
            verb(1.0, tmp_path / f"{number}")
            with pytest.raises(IsobasinError, match=r"beyond torch\.float32"):
                verb(1e39, tmp_path / "none")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_real_models_that_were_trained_apart_are_refused(kind: str, real_checkpoints: Path, tmp_path: Path):
    with pytest.raises(ArchitectureError, match="unrelated"):
        isobasin.merge([f"{real_checkpoints}/scratch/{kind}-seed{n}" for n in (0, 1)], tmp_path / "out", verify=False)
