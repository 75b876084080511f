"""How much every tensor counts where whole models are compared."""

from __future__ import annotations

import math

import pytest
import torch

from isobasin.architectures.examples import tiny
from isobasin.matching.whole.pair import Pair
from isobasin.model import open_model
from isobasin.symmetries import along

MODELS = [tiny("gpt2", "untied", config={"tie_word_embeddings": False}), tiny("llama")]


@pytest.fixture(params=MODELS, ids=lambda model: model.model_type)
def pair(request, tmp_path, monkeypatch):
    monkeypatch.setattr(along, "_VALUES", 100)  # three rows of a table at a time
    folders = [request.param.save(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    with open_model(folders[0]) as a, open_model(folders[1]) as b:
        yield Pair.of(a, b)


def apart(pair, blocks):
    """How far the reference is from a folded model as it is."""
    return pair.compared((blocks.read(block.shapes()) for block in blocks.blocks()), blocks)[0]


def read(blocks):
    """All tensors of a folded model that are compared."""
    inside = {name for block in blocks.blocks() for name in block.shapes()}
    return blocks.read(inside | {item.tensor for item in blocks.plan.axes()})


def test_blocks_write_as_much_as_they_read(pair):
    reference, tensors = pair.folded[0], read(pair.folded[0])
    for block in reference.blocks():
        size, written = (
            math.hypot(*(float(tensors[name].norm()) for name in names))
            for names in ({p.weight for p in block.readers.values()}, {p.weight for p in block.writers})
        )
        assert written == pytest.approx(size)
        assert [pair.shares.weights[p.weight] for p in block.writers] == [pytest.approx(1 / size)]
    inside = {name for block in reference.blocks() for name in block.shapes()}
    for name, weight in pair.shares.weights.items():
        if name not in inside:
            assert weight * float(tensors[name].norm()) == pytest.approx(1)


def test_the_distance_that_is_told_is_that_of_the_tensors_as_they_are(pair):
    plain = [pair.shares.factors(blocks) for blocks in pair.folded]
    total = 0.0
    for x, y in pair.names:
        a, b = (
            blocks.read([name])[name] / factors.get(name, 1.0)
            for blocks, factors, name in zip(pair.folded, plain, (x, y), strict=True)
        )
        total += float((a - b).square().sum())
    assert pair.before.distance == pytest.approx(math.sqrt(total))
    assert apart(pair, pair.folded[1]).distance == pytest.approx(math.sqrt(total))
    assert apart(pair, pair.folded[0]).distance == 0


def test_the_stream_is_fitted_to_shares(pair):
    """No map of the group beside the fitted one is nearer, as shares measure it."""
    model = pair.folded[1]
    _, fit = pair.compared((model.read(block.shapes()) for block in model.blocks()), model)
    best = fit.best()
    least = apart(pair, pair.turned(best)).squares
    generator = torch.Generator().manual_seed(0)
    none = torch.ones(0, pair.group.width, dtype=torch.float64)
    for size in (1e-3, 1e-2):
        other = pair.group.sample(none, none, generator).matrix
        # A little of the way to another map, along the group.
        skew = other - other.mT
        near = best @ torch.matrix_exp(size * skew)
        assert apart(pair, pair.turned(near)).squares > least
