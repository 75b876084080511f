"""The residual stream's group, and the map of it that brings one model's tensors onto another's."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise, permutations

import pytest
import torch

from isobasin.matching.whole.basis import StreamFit
from isobasin.symmetries import stream
from isobasin.symmetries.along import Role
from isobasin.symmetries.stream import Basis, StreamElement, StreamGroup, move_axis
from isobasin.symmetries.turning import maps

D = 6
every_basis = pytest.mark.parametrize("basis", list(Basis), ids=str)


def norms(count: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gains = torch.rand(count, D, generator=generator, dtype=torch.float64) + 0.5
    return gains, torch.randn(count, D, generator=generator, dtype=torch.float64)


def element(basis: Basis, seed: int = 0) -> StreamElement:
    return StreamGroup(D, basis).sample(*norms(), torch.Generator().manual_seed(seed), condition=5.0)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_basis
def test_elements_are_a_group(basis):
    group = StreamGroup(D, basis)
    one, other = element(basis, 1), element(basis, 2)
    both = group.compose(other, one)
    assert group.contains(both)
    assert torch.allclose(both.matrix, one.matrix @ other.matrix, atol=1e-12)
    back = group.compose(group.inverse(one), one)
    assert torch.allclose(back.matrix, torch.eye(D, dtype=torch.float64), atol=1e-12)
    assert torch.equal(back.gains, one.old_gains)
    assert torch.equal(back.biases, one.old_biases)


def test_every_group_is_told_from_the_next_larger_one():
    order = [Basis.permutation, Basis.signed, Basis.orthogonal, Basis.linear]
    for smaller, larger in pairwise(order):
        assert StreamGroup(D, larger).contains(element(smaller, 3))
        assert not StreamGroup(D, smaller).contains(element(larger, 3))
    assert StreamGroup(D, Basis.centred).contains(element(Basis.permutation))
    assert not StreamGroup(D, Basis.centred).contains(element(Basis.orthogonal))
    zero = element(Basis.orthogonal)
    zero.gains[0, 0] = 0
    assert not StreamGroup(D, Basis.orthogonal).contains(zero)


def test_dimensions():
    found = {basis: StreamGroup(D, basis).dimension for basis in Basis}
    assert found == {
        Basis.permutation: 0,
        Basis.signed: 0,
        Basis.centred: 10,
        Basis.orthogonal: 15,
        Basis.linear: 36,
    }


Pairs = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class StreamPairs:
    """The tensors along two streams by the way they move, `(d, rest)` each."""

    vectors: Pairs
    covectors: Pairs
    gains: Pairs = field(default_factory=list)


def fit(group: StreamGroup, pairs: StreamPairs) -> torch.Tensor:
    """The best map, the rows of every tensor added one by one: twice with half the weight of their squares."""
    found = StreamFit(group)
    for role, some in zip((Role.vector, Role.covector, Role.gain), vars(pairs).values(), strict=True):
        for a, b in some:
            for i in range(a.shape[1]):
                for weight in (0.6, 0.8):
                    found.add(role, a[:, i : i + 1].mT, b[:, i : i + 1].mT, weight)
    return found.best()


def planted(basis: Basis, noise: float = 0.0) -> tuple[torch.Tensor, StreamPairs]:
    """Tensors of a reference, those of a model that a map of the group carries onto it, and the map."""
    matrix = element(basis, 4).matrix
    inverse = torch.linalg.inv(matrix)
    vectors, covectors, gains = random(D, 30, seed=5), random(D, 20, seed=6), random(D, 1, seed=7).abs()
    extra = noise * random(D, 30, seed=8)
    pairs = StreamPairs(
        [(matrix.mT @ vectors + extra, vectors)],
        [(inverse @ covectors, covectors)],
        [(matrix.abs().mT @ gains, gains)] if basis.discrete else [],
    )
    return matrix, pairs


@every_basis
def test_a_planted_map_is_found(basis):
    matrix, pairs = planted(basis)
    if basis is Basis.centred:  # what LayerNorm subtracts is no part of the stream
        pairs = StreamPairs(*([(a - a.mean(0), b - b.mean(0)) for a, b in part] for part in vars(pairs).values()))
    assert torch.allclose(fit(StreamGroup(D, basis), pairs), matrix, atol=1e-8)


@pytest.mark.parametrize("basis", [Basis.permutation, Basis.signed], ids=str)
def test_sums_made_after_a_rotation_say_which_permutation_is_best(basis):
    matrix, pairs = planted(basis, noise=0.3)
    turn = element(Basis.orthogonal, 9).matrix
    found = StreamFit(StreamGroup(D, Basis.orthogonal))
    for role, some in ((Role.vector, pairs.vectors), (Role.covector, pairs.covectors)):
        for a, b in some:
            found.add(role, a.mT, b.mT @ turn)
    assert torch.equal(found.within(StreamGroup(D, basis), turn).best(), matrix)


def distance(matrix: torch.Tensor, pairs: StreamPairs) -> float:
    inverse = torch.linalg.inv(matrix)
    total = sum(float((a - matrix.mT @ b).square().sum()) for a, b in pairs.vectors)
    total += sum(float((a - inverse @ b).square().sum()) for a, b in pairs.covectors)
    return total + sum(float((a - matrix.abs().mT @ b).square().sum()) for a, b in pairs.gains)


@pytest.mark.parametrize("basis", [Basis.permutation, Basis.signed], ids=str)
def test_of_all_permutations_and_signs_the_best_is_found(basis):
    pairs = StreamPairs(
        [(random(4, 3, seed=1), random(4, 3, seed=2))],
        [(random(4, 2, seed=3), random(4, 2, seed=4))],
        [(random(4, 1, seed=5).abs(), random(4, 1, seed=6).abs())],
    )
    found = fit(StreamGroup(4, basis), pairs)
    eye = torch.eye(4, dtype=torch.float64)
    signs = [eye] if basis is Basis.permutation else [torch.diag(torch.tensor(s).double()) for s in SIGNS]
    every = [eye[list(order)] @ sign for order in permutations(range(4)) for sign in signs]
    assert distance(found, pairs) == pytest.approx(min(distance(m, pairs) for m in every), rel=1e-12)


SIGNS = [[1 - 2 * (i >> bit & 1) for bit in range(4)] for i in range(16)]


@pytest.mark.parametrize("basis", [Basis.orthogonal, Basis.centred], ids=str)
def test_no_rotation_nearby_is_better(basis):
    group = StreamGroup(D, basis)
    _, pairs = planted(basis, noise=2.0)
    if basis is Basis.centred:
        pairs = StreamPairs(*([(a - a.mean(0), b - b.mean(0)) for a, b in part] for part in vars(pairs).values()))
    found = fit(group, pairs)
    least = distance(found, pairs)
    size = D - (basis is Basis.centred)
    for seed in range(20):
        skew = 0.05 * random(size, size, seed=seed)
        turn = torch.matrix_exp(skew - skew.mT)
        turn = stream.lift(turn, stream.complement(D)) if basis is Basis.centred else turn
        assert distance(found @ turn, pairs) > least


def test_the_complement_is_an_orthonormal_basis_of_what_has_no_mean():
    basis = stream.complement(9)
    assert torch.allclose(basis.mT @ basis, torch.eye(8, dtype=torch.float64), atol=1e-14)
    assert float(basis.sum(0).abs().max()) < 1e-14


@pytest.mark.parametrize("basis", [Basis.permutation, Basis.signed], ids=str)
def test_coordinates_change_places_as_by_the_matrix(basis):
    matrix = element(basis, 9).matrix
    placing = stream.Placing.of(matrix)
    for axis, shape in ((0, (2 * D, 5)), (1, (5, D)), (0, (D,))):
        tensor = random(*shape, seed=10)
        assert torch.equal(stream.move_axis(placing, tensor, axis), stream.move_axis(matrix, tensor, axis))


@every_basis
def test_what_a_map_promises_is_what_the_squares_fall_by(basis):
    group, generator = StreamGroup(D, basis), torch.Generator().manual_seed(3)
    fit, couples = StreamFit(group), []
    for role, rows in (*((role, 70) for role in (Role.vector, Role.covector)), (Role.gain, 1)):
        if role is not Role.gain or basis.discrete:
            both = torch.randn(2, rows, D, generator=generator, dtype=torch.float64)
            couples.append((role, *both))
            fit.add(role, *both, weight=0.7)
    for matrix in (fit.best(), element(basis, 4).matrix):
        by = maps(group, matrix)
        falls = [(a - b).square().sum() - (a - move_axis(by[role], b, 1)).square().sum() for role, a, b in couples]
        assert fit.fall(matrix) == pytest.approx(0.7**2 * float(sum(falls)), rel=1e-5)
    assert fit.fall(fit.best()) > 0
    assert fit.fall(torch.eye(D, dtype=torch.float64)) == 0
