"""Merged models: what the ends, equal models, and models on either side of a move must give."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.checkpoints import write_checkpoint
from isobasin.choices import Scope
from isobasin.errors import ArchitectureError, IsobasinError, OutputError, TensorError, VerificationError
from isobasin.model import open_model
from isobasin.testing.assertions import assert_function_preserved
from isobasin.verbs.align import match_models
from isobasin.verbs.centring import bring_together, moved_tensors, towards_centre
from isobasin.verbs.interpolate import means
from isobasin.verbs.settings import Matching, Running

SPACES = ("weights", "circuit")
# Maps between two models of these tests, of condition up to 100, amplify what transformers rounds to float32.
FAMILIES = {"gpt2": 1e-12, "llama": 1e-6, "gpt_neox": 1e-12, "roformer": 1e-12}
each_space = pytest.mark.parametrize("space", SPACES)
# Every family once, and where heads have no positions both spaces.
each_family = pytest.mark.parametrize(
    ("family", "space"),
    [("gpt2", "weights"), ("gpt2", "circuit"), ("llama", "circuit"), ("gpt_neox", "weights"), ("roformer", "circuit")],
)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def apart(one: Path, other: Path) -> float:
    x, y = tensors(one), tensors(other)
    assert x.keys() == y.keys()
    return max(float((x[name] - y[name]).abs().max()) for name in x)


def near(original: Path, folder: Path, seed: int) -> Path:
    """A copy with a little noise on every tensor."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    (folder / "config.json").write_text((original / "config.json").read_text())
    noisy = {
        n: x + 0.02 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for n, x in tensors(original).items()
    }
    save_file(noisy, folder / "model.safetensors", {"format": "pt"})
    return folder


@each_family
def test_a_scrambled_copy_merges_to_the_model_at_every_t(family: str, space: str, tmp_path: Path):
    a = tiny(family).save(tmp_path / "a")
    isobasin.scramble(a, tmp_path / "b", scope="block", verify=False)
    assert apart(a, tmp_path / "b") > 0.1
    for t in (0.3, 1.5):
        out = tmp_path / f"{t}"
        found = isobasin.merge([a, tmp_path / "b"], out, t=t, space=space, scope="block")
        assert apart(a, out) < 1e-12
        assert_function_preserved(a, out, FAMILIES[family])
        assert found.weights == (1 - t, t)
        assert len(found.truncation) == (2 if space == "circuit" else 0)
        assert all(max(layer.query_key, layer.value_output) < 1e-12 for layer in found.truncation)


@each_family
def test_the_ends_compute_what_the_models_do(family: str, space: str, tmp_path: Path):
    a, b = (tiny(family).save(tmp_path / name, seed) for seed, name in enumerate("ab"))
    for t, end in ((0, a), (1, b)):
        out = tmp_path / f"{t}"
        isobasin.merge([a, b], out, t=t, space=space, scope="block")
        assert_function_preserved(end, out, FAMILIES[family])
    assert apart(a, tmp_path / "0") < 1e-12
    with pytest.raises(AssertionError, match="differs by"):
        assert_function_preserved(a, tmp_path / "1", 0.1)


@each_family
def test_three_copies_scrambled_apart_merge_to_the_model(family: str, space: str, tmp_path: Path):
    a = tiny(family).save(tmp_path / "a")
    for seed in (1, 2):
        isobasin.scramble(a, tmp_path / f"{seed}", seed=seed, scope="block", verify=False)
    out = tmp_path / "out"
    found = isobasin.merge([a, tmp_path / "1", tmp_path / "2"], out, space=space, scope="block")
    assert apart(a, out) < 1e-12
    assert_function_preserved(a, out, FAMILIES[family])
    assert found.weights == (1 / 3,) * 3
    assert len(found.alignments) == 2
    assert found.distances[0] < 1e-11


@pytest.mark.parametrize(
    ("family", "space"), [pytest.param("gpt_neox", "weights", marks=pytest.mark.long), ("llama", "circuit")]
)
def test_whole_models_are_merged_in_the_first_ones_basis(family: str, space: str, tmp_path: Path):
    """Copies in other bases of the stream merge to the model; with all weight on one, to what that one computes."""
    a = tiny(family).save(tmp_path / "a")
    b, c = near(a, tmp_path / "b", 1), tmp_path / "c"
    isobasin.scramble(near(a, tmp_path / "sibling", 2), c, scope="model", verify=False)
    copies = [tmp_path / f"copy-{seed}" for seed in (1, 2)]
    for seed, copy in enumerate(copies):
        isobasin.scramble(a, copy, seed=seed, scope="model", verify=False)
    found = isobasin.merge([a, *copies], tmp_path / "out", space=space, scope="model")
    assert apart(a, tmp_path / "out") < 1e-12
    assert found.distances[0] < 1e-11
    isobasin.merge([a, b, c], tmp_path / "end", t=[0, 0, 1], space=space, scope="model")
    assert isobasin.verify(c, tmp_path / "end").max_rel < 1e-5
    assert isobasin.verify(b, tmp_path / "end").max_rel > 0.01


@each_space
def test_with_all_weight_on_one_of_three_the_result_computes_what_that_one_does(space: str, tmp_path: Path):
    models = [tiny("gpt2").save(tmp_path / name, seed) for seed, name in enumerate("abc")]
    found = isobasin.merge(models, tmp_path / "out", t=[0, 0, 1], space=space, scope="block")
    assert_function_preserved(models[2], tmp_path / "out", 1e-10)
    assert found.distances[-1] < 0.999 * found.distances[0]


def test_a_centre_is_the_same_from_every_gauge(tmp_path: Path):
    """Three siblings, and the same three moved apart: one merged function, and one distance to the centre."""
    origin = tiny("gpt2").save(tmp_path / "origin")
    siblings = [near(origin, tmp_path / f"{seed}", seed) for seed in range(3)]
    scrambled = [tmp_path / f"scrambled-{seed}" for seed in range(3)]
    for seed, (sibling, folder) in enumerate(zip(siblings, scrambled, strict=True)):
        isobasin.scramble(sibling, folder, seed=seed, scope="block", condition=3.0, verify=False)
    plain = isobasin.merge(siblings, tmp_path / "plain", scope="block")
    hidden = isobasin.merge([siblings[0], *scrambled[1:]], tmp_path / "hidden", scope="block")
    assert_function_preserved(tmp_path / "plain", tmp_path / "hidden", 1e-4)
    assert abs(hidden.distances[-1] - plain.distances[-1]) < 1e-3 * plain.distances[-1]
    assert plain.distances[-1] <= plain.distances[0]


def test_the_first_models_gauge_and_the_centres_have_one_mean(tmp_path: Path):
    """Unrelated models, so that the first one's own element is far from the identity."""
    equal, matching = [1 / 3] * 3, Matching(scope=Scope.block)
    with ExitStack() as stack:
        folders = [tiny("gpt2").save(tmp_path / name, seed) for seed, name in enumerate("abc")]
        models = [stack.enter_context(open_model(folder)) for folder in folders]
        alignments, rounds = bring_together(models, matching, Running())
        onto = (match_models(models[0], other, matching, Running()) for other in models[1:])
        elements, distances = towards_centre(models, (None, *onto), matching, Running())
        for name, moves in (("first", (None, *alignments)), ("centre", elements)):
            points = models[0].canonical.written(means(moved_tensors(models, moves), equal))
            write_checkpoint(models[0].checkpoint, tmp_path / name, points)
    assert distances == rounds
    assert apart(tmp_path / "first", tmp_path / "centre") > 0.01
    assert_function_preserved(tmp_path / "first", tmp_path / "centre", 1e-11)


def test_weights_are_the_line_to_the_aligned_model(tmp_path: Path):
    a, b = (tiny("llama").save(tmp_path / name, seed) for seed, name in enumerate("ab"))
    found = isobasin.merge([a, b], tmp_path / "out", t=0.3, force_unrelated=True)
    alignment = isobasin.align(a, b, tmp_path / "aligned")
    isobasin.interpolate(a, tmp_path / "aligned", 0.3, tmp_path / "line")
    assert apart(tmp_path / "line", tmp_path / "out") < 1e-14
    assert found.alignments[0].distance() == alignment.distance()


def test_circuits_leave_all_tensors_outside_attention_to_weights(tmp_path: Path):
    a, b = (tiny("gpt2").save(tmp_path / name, seed) for seed, name in enumerate("ab"))
    for space in SPACES:
        isobasin.merge([a, b], tmp_path / space, space=space, force_unrelated=True)
    x, y = (tensors(tmp_path / space) for space in SPACES)
    assert {name for name in x if not torch.equal(x[name], y[name])} == {name for name in x if ".attn." in name}


def test_layers_of_different_kinds_are_merged_as_circuits(tmp_path: Path):
    a, b = (tiny("isobasin_gpt2").save(tmp_path / name, seed) for seed, name in enumerate("ab"))
    found = isobasin.merge([a, b], tmp_path / "out", t=1, space="circuit")
    assert [layer.layer for layer in found.truncation] == [0, 1]
    assert_function_preserved(b, tmp_path / "out", 1e-12)


@each_space
def test_models_in_memory_give_a_model_in_memory(space: str):
    a, b = (tiny("gpt2").build(seed, dtype=torch.float32) for seed in (0, 1))
    found = isobasin.merge([a, b], t=0.5, space=space, force_unrelated=True)
    assert found.path is None
    assert type(found.model) is type(a)
    assert found.model.dtype == torch.float32
    outside = "transformer.wte.weight"
    mean = 0.5 * (a.state_dict()[outside] + b.state_dict()[outside])
    assert (found.model.state_dict()[outside] - mean).abs().max() < 1e-7


@pytest.mark.parametrize(
    ("t", "count", "naming"),
    [
        ([0.5, 0.3, 0.2], 2, "3 weights for 2 models"),
        ([0.5, 0.5], 3, "2 weights for 3 models"),
        (0.5, 3, "1 weights for 3 models"),
        (float("nan"), 2, "t is nan"),
        ([1.5, -0.5], 2, "none may be negative"),
        ([0, 0], 2, "nor all zero"),
        (None, 1, "two or more models, not 1"),
    ],
)
def test_weights_that_make_no_sense(t: Any, count: int, naming: str, tmp_path: Path):
    with pytest.raises(IsobasinError, match=naming):
        isobasin.merge([tmp_path / "nowhere"] * count, tmp_path / "out", t=t)


def test_only_the_ratios_of_weights_count(tmp_path: Path):
    a, b = (tiny("gpt2").save(tmp_path / name, seed) for seed, name in enumerate("ab"))
    found = isobasin.merge([a, b], tmp_path / "one", t=[3, 1], force_unrelated=True)
    isobasin.merge([a, b], tmp_path / "other", t=0.25, force_unrelated=True)
    assert found.weights == (0.75, 0.25)
    assert apart(tmp_path / "one", tmp_path / "other") < 1e-14


def test_a_number_of_numpy_is_one():
    one = tiny("gpt2").build()
    assert isobasin.merge([one, one], t=np.float32(0.25), verify=False).weights == (0.75, 0.25)
    assert isobasin.merge([one, one], t=torch.tensor([1, 3]), verify=False).weights == (0.25, 0.75)


def test_models_between_which_there_is_no_line(tmp_path: Path):
    a = tiny("gpt2").save(tmp_path / "a")
    for other, error in (
        (tiny("llama").save(tmp_path / "llama"), ArchitectureError),
        (tiny("gpt2", config={"vocab_size": 51}).save(tmp_path / "words"), TensorError),
    ):
        with pytest.raises(error):
            isobasin.merge([a, a, other], tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("kept")
    with pytest.raises(OutputError, match="--force"):
        isobasin.merge([a, a], tmp_path / "full")
    with pytest.raises(ValueError, match="function space"):
        isobasin.merge([a, a], tmp_path / "out", space="function space")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full" / "precious.txt").read_text() == "kept"


@each_space
def test_a_result_whose_outputs_are_not_finite_is_not_written(space: str, tmp_path: Path):
    a = tiny("gpt2").save(tmp_path / "a")
    changed = tensors(a)
    changed["transformer.wte.weight"] *= 1e200  # finite, but its square in the norm is not
    save_file(changed, a / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match="NaN or infinite"):
        isobasin.merge([a, a], tmp_path / "out", space=space)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert isobasin.merge([a, a], tmp_path / "out", space=space, verify=False).checked is None
