"""A trained model: scrambled and aligned back; and one layer of it trained anew, then aligned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import isobasin
from isobasin.loading import load
from isobasin.testing.assertions import assert_function_preserved

pytestmark = pytest.mark.long
LAYER = 2


@pytest.fixture(scope="module")
def stories(real_checkpoints: Path) -> Path:
    return real_checkpoints / "stories260K"


def worst(a: Path, b: Path) -> float:
    """The largest relative Frobenius distance of any tensor."""
    one, other = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert one.keys() == other.keys()
    return max(float((t.double() - other[n].double()).norm() / t.double().norm()) for n, t in one.items())


@pytest.mark.parametrize(
    ("condition", "dtype", "tolerance"),
    [(10.0, None, 1e-4), (10.0, torch.float64, 1e-8), (1e3, torch.float64, 1e-8), (1e3, None, 2e-2)],
)
def test_scrambled_and_aligned_back(stories, condition, dtype, tolerance, tmp_path):
    """A float32 file at condition 1e3 keeps only what rounding left: eps times the condition, amplified once more."""
    moved = isobasin.scramble(stories, tmp_path / "scrambled", seed=1, condition=condition, dtype=dtype)
    assert moved.verified.equal
    assert worst(stories, tmp_path / "scrambled") > 0.5
    found = isobasin.align(stories, tmp_path / "scrambled", tmp_path / "aligned")
    assert found.verified.equal
    assert worst(stories, tmp_path / "aligned") <= tolerance
    assert {layer.statistics.status for layer in found.layers} == {"exact"}
    scramble = isobasin.random_alignment(stories, seed=1, condition=condition)
    for one, other in zip(scramble.layers, found.layers, strict=True):
        order = one.element.head_permutation()[other.element.head_permutation()]
        assert torch.equal(order, torch.arange(8))


def test_the_published_method_does_not_come_back_from_1e3(stories, tmp_path):
    isobasin.scramble(stories, tmp_path / "scrambled", seed=1, condition=1e3, dtype=torch.float64)
    found = isobasin.align(stories, tmp_path / "scrambled", method="paper")
    size = isobasin.align(stories, tmp_path / "scrambled").distance()["after"]
    assert found.distance()["after"] > 1e3 * size


def test_equivalence_of_the_scramble_is_shown(stories, tmp_path):
    isobasin.scramble(stories, tmp_path / "scrambled", seed=2, condition=10.0)
    assert isobasin.equivalent(stories, tmp_path / "scrambled").equivalent


def tokens(text: str, vocabulary: list[str]) -> Tensor:
    """Greedy longest match over the vocabulary's strings."""
    index = {token: i for i, token in enumerate(vocabulary)}
    longest = max(map(len, vocabulary))
    found: list[int] = []
    position = 0
    while position < len(text):
        length = next((n for n in range(longest, 0, -1) if text[position : position + n] in index), 0)
        found.append(index[text[position : position + length]] if length else index[f"<0x{ord(text[position]):02X}>"])
        position += max(length, 1)
    return torch.tensor(found)


@pytest.fixture(scope="module")
def retrained(stories: Path, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """One attention layer re-initialised and trained on text, all else frozen."""
    vocabulary = json.loads((stories / "vocab_latin1.json").read_text())
    text = (real_data / "tinyshakespeare" / "input.txt").read_text()[:30_000]
    data = tokens(text, vocabulary)
    model = load(stories, torch.float32).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    weights = list(model.model.layers[LAYER].self_attn.parameters())
    for weight in weights:
        weight.normal_(std=0.1, generator=generator).requires_grad_()
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses: list[float] = []
    for _ in range(60):
        starts = torch.randint(0, len(data) - 64, (8,), generator=generator)
        batch = torch.stack([data[s : s + 64] for s in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    folder = tmp_path_factory.mktemp("retrained")
    model.save_pretrained(folder)
    return folder, losses


def test_a_retrained_layer_comes_nearer(stories, retrained, tmp_path):
    folder, losses = retrained
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    found = isobasin.align(stories, folder, tmp_path / "aligned")
    assert found.verified.equal
    assert found.verified.max_rel < 1e-4
    assert_function_preserved(folder, tmp_path / "aligned", 1e-4)
    for layer in found.layers:
        statistics, element = layer.statistics, layer.element
        if layer.layer == LAYER:
            assert statistics.distance_after < 0.95 * statistics.distance_before
            assert statistics.status == "converged"
            continue
        assert statistics.distance_before == 0
        assert statistics.distance_after < 1e-6
        assert torch.equal(element.head_permutation(), torch.arange(8))
        eye = torch.eye(8, dtype=torch.float64).expand(4, 8, 8)
        torch.testing.assert_close(element.parts["value_output.matrix"], eye, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            element.parts["query_key.planes"], torch.ones_like(element.parts["query_key.planes"])
        )


def test_a_scramble_hides_nothing_from_the_match(stories, retrained, tmp_path):
    """The same result from any member of the orbit: distances agree with those of the model itself."""
    isobasin.scramble(retrained[0], tmp_path / "scrambled", seed=3, condition=10.0, dtype=torch.float64)
    direct, hidden = (isobasin.align(stories, model) for model in (retrained[0], tmp_path / "scrambled"))
    for one, other in zip(direct.layers, hidden.layers, strict=True):
        expected = pytest.approx(one.statistics.distance_after, rel=1e-3, abs=1e-5)
        assert other.statistics.distance_after == expected
        assert other.statistics.distance_before > 1.1 * other.statistics.distance_after
