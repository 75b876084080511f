import pytest
import torch
from torch import Tensor, nn

from isobasin.connectivity.path import interpolated, losses_along, points
from isobasin.errors import TensorError


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A batch norm: weights, running statistics, and a counter that is not floating-point."""
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm1d(5, dtype=dtype)
    entries = {k: torch.randn(v.shape, generator=generator).to(v.dtype) for k, v in norm.state_dict().items()}
    return entries | {"num_batches_tracked": torch.tensor(7)}


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
    assert interpolated(a, b, t, module) is module
    for name, found in module.state_dict().items():
        x, y = a[name], b[name]
        line = ((1 - t) * x.double() + t * y.double()).to(found.dtype)
        assert torch.equal(found, line) if t in (0, 1) else torch.allclose(found, line, rtol=0, atol=1e-7)
        assert torch.equal(x, before[name][0])
        assert torch.equal(y, before[name][1])
    assert module.num_batches_tracked == 7


def test_the_module_keeps_its_types():
    module = nn.BatchNorm1d(5, dtype=torch.bfloat16)
    interpolated(state(0), state(1), 0.5, module)
    assert {t.dtype for t in module.state_dict().values()} == {torch.bfloat16, torch.int64}


def test_a_counter_that_differs_is_refused():
    with pytest.raises(TensorError, match="num_batches_tracked"):
        interpolated(state(0), state(1) | {"num_batches_tracked": torch.tensor(8)}, 0.5, nn.BatchNorm1d(5))


@pytest.mark.parametrize("width", [4, None])
def test_states_of_another_kind_are_refused(width: int | None):
    other = state(1)
    if width is None:
        del other["weight"]
    else:
        other["weight"] = torch.zeros(width)
    for a, b in ((state(0), other), (other, state(0)), (other, other)):
        with pytest.raises(TensorError, match=r"'weight'.*\(5,\)"):
            interpolated(a, b, 0.5, nn.BatchNorm1d(5))


def test_losses_of_a_quadratic_are_its_values_on_the_line():
    module = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    a, b = {"weight": torch.tensor([[0.0, 2.0]])}, {"weight": torch.tensor([[4.0, 0.0]])}

    def loss(point: nn.Linear) -> float:
        return point.weight.prod().item()

    assert losses_along(a, b, module, loss) == pytest.approx([8 * t * (1 - t) for t in points()], abs=1e-12)
    assert losses_along(a, b, module, loss, [0, 0.25, 1]) == pytest.approx([0, 1.5, 0], abs=1e-12)
