import math

import pytest
import torch
from torch import Tensor, nn

from isobasin.errors import TensorError
from isobasin.lines import LinearPath, barrier, points


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A batch norm: weights, running statistics, and a counter that is not floating-point."""
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm1d(5, dtype=dtype)
    entries = {k: torch.randn(v.shape, generator=generator).to(v.dtype) for k, v in norm.state_dict().items()}
    return entries | {"num_batches_tracked": torch.tensor(7)}


def quadratic() -> LinearPath[nn.Linear]:
    """A line on which the product of two weights is 8 t (1 - t)."""
    module = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    return LinearPath({"weight": torch.tensor([[0.0, 2.0]])}, {"weight": torch.tensor([[4.0, 0.0]])}, module)


def product(point: nn.Linear) -> float:
    return point.weight.prod().item()


def test_points_are_the_papers_25():
    assert len(points()) == 25
    assert points()[0] == 0
    assert points()[12] == 0.5
    assert points()[-1] == 1
    with pytest.raises(ValueError, match="two ends"):
        points(1)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_every_floating_tensor_lies_on_the_line(t: float):
    a, b, module = state(0), state(1), nn.BatchNorm1d(5)
    before = {k: (x.clone(), y.clone()) for (k, x), y in zip(a.items(), b.values(), strict=True)}
    path = LinearPath(a, b, module)
    path.at(0.7)
    assert path.at(t) is module
    for name, found in module.state_dict().items():
        x, y = a[name], b[name]
        line = ((1 - t) * x.double() + t * y.double()).to(found.dtype)
        assert torch.equal(found, line) if t in (0, 1) else torch.allclose(found, line, rtol=0, atol=1e-7)
        assert torch.equal(x, before[name][0])
        assert torch.equal(y, before[name][1])
    assert module.num_batches_tracked == 7


def test_a_path_begins_at_a_with_whatever_module():
    a, b, module = state(0), state(0), nn.BatchNorm1d(5)
    b["weight"] = b["weight"] + 1
    LinearPath(a, b, module)
    for name, found in module.state_dict().items():
        assert torch.equal(found, a[name])


def test_a_path_between_modules_changes_neither():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    before = [t.detach().clone() for t in (*a.parameters(), *b.parameters())]
    middle = LinearPath.between(a, b).at(0.5)
    assert torch.allclose(middle.weight, (a.weight + b.weight) / 2)
    assert all(torch.equal(x, y) for x, y in zip(before, (*a.parameters(), *b.parameters()), strict=True))


def test_a_module_that_a_loss_moves_is_still_on_the_line():
    path = quadratic()

    def moving(point: nn.Linear) -> float:
        loss = product(point)
        point.weight = nn.Parameter(point.weight.detach().clone())
        return loss

    assert barrier(path, moving, [0, 0.25, 0.5, 1]).losses == pytest.approx([0, 1.5, 2, 0], abs=1e-12)


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

    a, b = Tied(), Tied()
    middle = LinearPath.between(a, b).at(0.5)
    assert middle.first.weight is middle.second.weight
    assert torch.allclose(middle.first.weight, (a.first.weight + b.first.weight) / 2)


def test_the_module_keeps_its_types():
    module = nn.BatchNorm1d(5, dtype=torch.bfloat16)
    LinearPath(state(0), state(1), module).at(0.5)
    assert {t.dtype for t in module.state_dict().values()} == {torch.bfloat16, torch.int64}


def test_a_counter_that_differs_is_refused():
    with pytest.raises(TensorError, match="num_batches_tracked"):
        LinearPath(state(0), state(1) | {"num_batches_tracked": torch.tensor(8)}, nn.BatchNorm1d(5))


@pytest.mark.parametrize("width", [4, None])
def test_states_of_another_kind_are_refused(width: int | None):
    other = state(1)
    if width is None:
        del other["weight"]
    else:
        other["weight"] = torch.zeros(width)
    for a, b in ((state(0), other), (other, state(0)), (other, other)):
        with pytest.raises(TensorError, match=r"'weight'.*\(5,\)"):
            LinearPath(a, b, nn.BatchNorm1d(5))


def test_the_barrier_of_any_loss_along_a_path():
    found = barrier(quadratic(), product)
    assert found.t == points()
    assert found.losses == pytest.approx([8 * t * (1 - t) for t in points()], abs=1e-12)
    assert (found.height, found.worst_t) == (2, 0.5)
    assert barrier(quadratic(), product, [0, 0.25, 1]).losses == pytest.approx([0, 1.5, 0], abs=1e-12)


def test_a_loss_that_is_no_number_is_an_infinite_barrier_and_no_end():
    found = barrier(quadratic(), lambda point: math.nan if product(point) > 1.9 else 0.0)
    assert found.height == math.inf
    with pytest.raises(ValueError, match="finite"):
        barrier(quadratic(), lambda point: math.nan)
