"""The device that stands for a GPU computes what the CPU does and refuses to mix."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from isobasin.testing.pretended import pretended_cuda


def there(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype).to("cuda")


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x @ y,
        lambda x, y: x + y,
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: torch.cat([x, y]),
        lambda x, y: x.add_(y),
        lambda x, y: x.addmm_(x, y),
        lambda x, y: nn.functional.linear(x, y),
    ],
)
def test_whatever_mixes_devices_is_refused(mix):
    with pretended_cuda():
        x, y = there(4, 4), torch.ones(4, 4, dtype=torch.float64)
        assert mix(x.clone(), y.to(x)).device.type == "cuda"
        for one, other in ((x, y), (y, x)):
            with pytest.raises(RuntimeError, match="same device"):
                mix(one, other)


def test_numbers_copies_and_indices_may_mix():
    with pretended_cuda():
        x, number = there(4, 4), torch.tensor(2.0)
        rows, mask = torch.tensor([0, 2]), torch.tensor([True, False, True, False])
        assert torch.equal((x * number).cpu(), x.cpu() * 2)
        assert x[rows].tolist() == x[mask].tolist() == x[[0, 2]].tolist() == x.cpu()[rows].tolist()
        x[:, [1, 3]] = there(4, 2)
        assert torch.equal(torch.zeros(4, 4, dtype=torch.float64).copy_(x), x.cpu())
        assert torch.equal(torch.zeros_like(x).copy_(x.cpu()), x)


def test_it_computes_what_the_cpu_does():
    """Maps, complex numbers with their conjugates, changes in place through views, and gradients."""

    def work(x: Tensor) -> list[Tensor]:
        x = x.detach().clone().requires_grad_()
        planes = torch.complex(x, x.flip(0)).conj()
        inner = (planes.mH @ planes).imag.abs().sum() + torch.linalg.solve(x, x.mT).sum() + torch.matrix_exp(x).sum()
        (inner + torch.where(x > 0, 0.0, x).sum() / (x.shape[0] * torch.ones((), device=x.device))).backward()
        changed = x.detach().clone()
        changed[1] = 3
        changed[:, 0] += changed[:, 1]
        heads = x.detach().view(1, 1, *x.shape)
        seen = nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        return [inner.detach(), x.grad, changed, seen, torch.tensor([[1.0, 2.0]], device=x.device)]

    with pretended_cuda():
        remote = work(there(4, 4))
        assert {x.device for x in remote} == {torch.device("cuda", 0)}
        found = [x.cpu() for x in remote]
        expected = work(there(4, 4).cpu())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_modules_move_with_their_ties_and_are_saved():
    with pretended_cuda():
        one, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        other.weight = one.weight
        both = nn.ModuleList([one, other]).to("cuda")
        assert both[0].weight is both[1].weight
        assert both[0].weight.device.type == copy.deepcopy(both)[1].weight.device.type == "cuda"
        buffer = io.BytesIO()
        torch.save(both.state_dict(), buffer)
        buffer.seek(0)
        stored = torch.load(buffer, weights_only=True, map_location="cpu")
        assert torch.equal(stored["0.weight"], both[0].weight.cpu())
        with pytest.raises(TypeError, match="cpu"):
            both[0].weight.detach().numpy()
