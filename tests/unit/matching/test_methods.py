"""The stage-2 methods and head costs that ablations compare."""

import pytest
import torch
from torch import Tensor

from isobasin.choices import HeadCost, Method
from isobasin.matching.attention import distance, match
from isobasin.matching.heads import head_costs, head_permutation
from isobasin.symmetries import attention
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup
from isobasin.symmetries.weights import AttentionWeights

_WIDTH, _FEATURES = 12, 4
_PLANES = ((0, 2), (1, 3))


def _group(planes: tuple[tuple[int, int], ...] = (), queries: int = 1) -> AttentionGroup:
    linear = BilinearGroup(_FEATURES, ())
    return AttentionGroup(3, queries, BilinearGroup(_FEATURES, planes), linear, key_shift=False, value_shift=True)


def _weights(seed: int, queries: int = 1) -> AttentionWeights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    queried, shared = (3, queries, _WIDTH, _FEATURES), (3, _WIDTH, _FEATURES)
    biases = draw(3, queries, _FEATURES), draw(3, _FEATURES), draw(3, _FEATURES), draw(_WIDTH)
    return AttentionWeights(draw(*queried), draw(*shared), draw(*shared), draw(*queried), *biases)


def _circuits(weights: AttentionWeights, group: int, slot: int) -> tuple[Tensor, Tensor]:
    """Q K^T with the biases as one more row, and V O^T."""
    assert weights.query_bias is not None
    assert weights.key_bias is not None
    query = torch.cat([weights.query[group, slot], weights.query_bias[group, slot][None]])
    key = torch.cat([weights.key[group], weights.key_bias[group][None]])
    return query @ key.T, weights.value[group] @ weights.output[group, slot].T


def test_the_spectral_and_cosine_costs_are_what_they_are_called():
    a, b = _weights(0, 2), _weights(1, 2)
    group = _group(queries=2)
    spectral, cosine = (head_costs(group, a, b, cost) for cost in (HeadCost.spectral, HeadCost.cosine))
    for index in torch.cartesian_prod(torch.arange(3), torch.arange(3), torch.arange(2), torch.arange(2)):
        i, j, s, t = index.tolist()
        pairs = list(zip(_circuits(a, i, s), _circuits(b, j, t), strict=True))
        norms = sum(torch.linalg.matrix_norm(x - y, 2) ** 2 for x, y in pairs)
        angles = sum(1 - (x * y).sum() / (x.norm() * y.norm()) for x, y in pairs)
        torch.testing.assert_close(spectral[i, j, s, t], norms)
        torch.testing.assert_close(cosine[i, j, s, t], angles)


@pytest.mark.parametrize("planes", [(), _PLANES])
@pytest.mark.parametrize("queries", [1, 2])
def test_heads_that_single_precision_cannot_tell_apart_are_found_too(
    planes: tuple[tuple[int, int], ...], queries: int
) -> None:
    """All heads of the reference are alike to 1e-6 of them; of the model they are the same in some order."""
    group, orders = _group(planes, queries), torch.tensor([[0, 1, 2], [1, 2, 0], [2, 1, 0], [0, 2, 1]])
    slots = torch.arange(queries).flip(0).expand(4, 3, queries)
    some, noise = _weights(0, queries).tensors(), _weights(1, queries).tensors()
    alike = {n: x if n == "output_bias" else x[:1].expand_as(x) + 1e-6 * noise[n] for n, x in some.items()}
    reference = AttentionWeights(**{name: x.expand(4, *x.shape) for name, x in alike.items()})
    outer, inner = head_permutation(group, reference, attention.permute(reference, orders, slots))
    assert torch.equal(outer, orders.argsort(-1))
    assert torch.equal(inner, slots)


def test_heads_alone_permutes_and_moves_nothing_else():
    group, a = _group(_PLANES), _weights(0)
    outer = torch.tensor([2, 0, 1])
    b = attention.permute(_weights(0), outer, torch.zeros(3, 1, dtype=torch.int64))
    found = match(group, a, b, method=Method.heads)
    assert found.element.outer.tolist() == torch.argsort(outer).tolist()
    for name, tensor in a.tensors().items():
        torch.testing.assert_close(getattr(found.moved, name), tensor, rtol=0, atol=0)
    far = match(group, a, _weights(7), method=Method.heads).element
    still = group.identity()
    for name in ("query_key.planes", "value_output.matrix", "value_shift"):
        torch.testing.assert_close(far.parts[name], still.parts[name], rtol=0, atol=0)


def test_the_orthogonal_start_is_orthogonal_and_every_further_method_comes_nearer():
    for planes in ((), _PLANES):
        group, a, b = _group(planes), _weights(0), _weights(1)
        found = {method: match(group, a, b, method=method) for method in Method}
        element = found[Method.orthogonal].element
        eye = torch.eye(_FEATURES, dtype=torch.float64).expand(3, -1, -1)
        matrix = element.parts["value_output.matrix"]
        torch.testing.assert_close(matrix @ matrix.mT, eye)
        turns = [element.parts["query_key.planes"].abs()] if planes else []
        assert all(torch.allclose(sizes, torch.ones_like(sizes)) for sizes in turns)
        away = {method: float(distance(a, found[method].moved)) for method in Method}
        assert away[Method.orthogonal] < away[Method.heads]
        assert max(away[Method.paper], away[Method.gauss_newton]) < away[Method.orthogonal]


def test_the_orthogonal_start_undoes_a_rotation():
    group, a = _group(_PLANES), _weights(0)
    turned = group.identity()
    turns = torch.polar(
        torch.ones(3, 2, dtype=torch.float64), torch.linspace(0.3, 2.8, 6, dtype=torch.float64).view(3, 2)
    )
    turned.parts["query_key.planes"].copy_(turns)
    rotations = torch.linalg.qr(torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    turned.parts["value_output.matrix"].copy_(rotations)
    found = match(group, a, group.act(turned, a), method=Method.orthogonal)
    for name, tensor in a.tensors().items():
        torch.testing.assert_close(getattr(found.moved, name), tensor, rtol=1e-12, atol=1e-12)
