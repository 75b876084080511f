"""Rounding to the nearest, against values by hand and against other libraries' definitions."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from isobasin.choices import Rounding
from isobasin.errors import ChoiceError, IsobasinError
from isobasin.quantisation.quantiser import Quantiser

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def rounded(values: list[float], rounding: str, group: int | None = None) -> list[float]:
    return Quantiser.of(rounding, group)(torch.tensor([values], dtype=torch.float64))[0].tolist()


def test_integers_are_steps_of_the_largest():
    # The step is 15 / 7.5 = 2; 15 itself would be the code 8, which there is not.
    assert rounded([15.0, 1.0, 1.1, 3.0, -15.0, 0.0], "rtn4") == [14.0, 0.0, 2.0, 4.0, -16.0, 0.0]
    assert rounded([3.5, -3.5, 0.4, -1.6], "rtn3") == [3.0, -4.0, 0.0, -2.0]
    assert rounded([1.5, -1.5, 0.4, -0.6], "rtn2", 0) == [1.0, -2.0, 0.0, -1.0]


def test_a_scale_is_for_a_group_of_an_output_and_the_last_one_may_be_short():
    assert rounded([7.5, 0.4, 75.0, 4.0, 0.75], "rtn4", 2) == [7.0, 0.0, 70.0, 0.0, pytest.approx(0.7)]
    rows = torch.tensor([[7.5, 0.4], [75.0, 4.0]], dtype=torch.float64)
    assert Quantiser.of("rtn4")(rows).tolist() == [[7.0, 0.0], [70.0, 0.0]]
    assert torch.equal(Quantiser.of("rtn4", 10**6)(rows), Quantiser.of("rtn4")(rows))
    experts = torch.stack([rows, 2 * rows])
    assert torch.equal(Quantiser.of("rtn4")(experts)[1], 2 * Quantiser.of("rtn4")(rows))


def test_halfway_between_numbers_of_e2m1_the_even_one_is_taken():
    # With 6 as the largest the scale is 1.
    between = [(a + b) / 2 for a, b in pairwise(E2M1)]
    assert rounded([*E2M1, *(-x for x in E2M1)], "mxfp4") == [*E2M1, *(-x for x in E2M1)]
    assert rounded([*between, 6.0], "mxfp4") == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]


def test_scales_of_mxfp4_are_powers_of_two():
    # 7.9 is above 4 and below 8: its scale is 1, and 6 the largest there is. 8 has the scale 2, and .9 an eighth.
    assert rounded([7.9, 1.2], "mxfp4") == [6.0, 1.0]
    assert rounded([8.0, 1.2, *30 * [0.0], 0.9], "mxfp4") == [8.0, 1.0, *30 * [0.0], 0.75]
    below = math.nextafter(8.0, 0.0)
    assert rounded([below, 1.2], "mxfp4") == [6.0, 1.0]


def test_scales_of_nvfp4_are_e4m3_of_the_largest():
    # The first group's scale is 448 of 448, the second's 18.7 of 448, of which 18 is stored.
    whole = 2688.0
    second = 112.0
    found = rounded([whole, *15 * [0.0], second, 18.0, *14 * [0.0]], "nvfp4")
    assert found == [whole, *15 * [0.0], 108.0, 18.0, *14 * [0.0]]


@pytest.mark.parametrize("rounding", Rounding)
def test_zeros_stay_and_nothing_is_no_number(rounding: Rounding):
    matrix = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    matrix[1] = 0
    matrix[2] *= 1e-20
    found = Quantiser.of(rounding)(matrix)
    assert torch.equal(found[1], matrix[1])
    assert found.isfinite().all()
    assert not torch.equal(found[0], matrix[0])
    assert (found[0] - matrix[0]).abs().max() < 0.67 * matrix[0].abs().max()


@pytest.mark.parametrize("rounding", ["rtn3", "mxfp4"])
def test_the_slope_is_that_of_scales_and_what_is_between_codes_passes(rounding: str):
    matrix = torch.tensor([[3.5, 1.2, -0.3]], dtype=torch.float64, requires_grad=True)
    rounds = Quantiser.of(rounding)
    value = rounds(matrix)
    assert torch.equal(value, rounds(matrix.detach()))
    (value * torch.tensor([[0.0, 1.0, 0.0]])).sum().backward()
    # d (scale code): 1 by itself, and (code - value / scale) scale / largest by the largest.
    distance = value[0, 1].item() - 1.2
    expected = [distance / 3.5, 1.0, 0.0]
    torch.testing.assert_close(matrix.grad, torch.tensor([expected], dtype=torch.float64))


def test_bad_choices_are_refused():
    with pytest.raises(ChoiceError, match="rounding 'rtn9': did you mean"):
        Quantiser.of("rtn9")
    with pytest.raises(IsobasinError, match="group is 32, and nvfp4 has groups of 16: leave it out"):
        Quantiser.of("nvfp4", 32)
    with pytest.raises(IsobasinError, match="group is -1"):
        Quantiser.of("rtn4", -1)


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 0), (4, 0), (4, 64)])
def test_integers_are_torchaos(bits: int, group: int):
    primitives = pytest.importorskip("torchao.quantization.quant_primitives", reason="torchao is not installed")
    matrix = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    low, high, block = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, (1, group or 128)
    how = {"quant_min": low, "quant_max": high}
    scale, zero = primitives.choose_qparams_affine(
        matrix, primitives.MappingType.SYMMETRIC, block, torch.int8, **how, zero_point_dtype=torch.int8
    )
    codes = primitives.quantize_affine(matrix, block, scale, zero, torch.int8, **how)
    theirs = primitives.dequantize_affine(codes, block, scale, zero, torch.int8, **how)
    torch.testing.assert_close(Quantiser.of(f"rtn{bits}", group)(matrix), theirs, rtol=1e-6, atol=1e-6)


def test_mxfp4_is_torchaos():
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="torchao is not installed")
    matrix = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)) * 0.1
    theirs = mx.MXTensor.to_mx(matrix, torch.float4_e2m1fn_x2, 32).dequantize(torch.float32)
    assert torch.equal(Quantiser.of("mxfp4")(matrix), theirs)


def test_nvfp4_is_torchaos():
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor", reason="torchao is not installed")
    matrix = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)) * 0.1
    scale = nv.per_tensor_amax_to_scale(matrix.abs().max())
    theirs = nv.NVFP4Tensor.to_nvfp4(matrix, per_tensor_scale=scale).dequantize(torch.float32)
    torch.testing.assert_close(Quantiser.of("nvfp4")(matrix), theirs, rtol=1e-6, atol=1e-7)
