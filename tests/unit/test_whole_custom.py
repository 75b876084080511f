"""Whole models of an architecture of one's own, without any normalisation: the stream moves by any invertible map."""

from __future__ import annotations

from dataclasses import replace

import torch

import isobasin
from isobasin.alignment import ResidualAlignment
from isobasin.symmetries import residual
from isobasin.symmetries.attention import attend
from isobasin.symmetries.feedforward import FeedForwardGroup, Scale

D, HEADS, WIDTH, UNITS, TOKENS = 12, 2, 6, 16, 20
ATTENTION = isobasin.AttentionGroup(HEADS, 1, isobasin.BilinearGroup(WIDTH), isobasin.BilinearGroup(WIDTH))
STREAM = isobasin.ResidualGroup(D, isobasin.Basis.linear)


def described() -> isobasin.Specification:
    heads = (("head", HEADS), ("width", D), ("feature", WIDTH))
    units = (("width", D), ("feature", UNITS))
    q, k, v, o = (isobasin.Projection(f"W_{x}", None, isobasin.Layout("head width feature", heads)) for x in "QKVO")
    up = isobasin.Projection("W_in", "b_in", isobasin.Layout("width feature", units))
    down = isobasin.Projection("W_out", None, isobasin.Layout("feature width", units))
    vectors = (isobasin.Along("embed", 1), isobasin.Along("W_O", 1), isobasin.Along("W_out", 1))
    names = (("W_Q", 1), ("W_K", 1), ("W_V", 1), ("W_in", 0), ("unembed", 0))
    covectors = tuple(isobasin.Along(name, axis, isobasin.Role.covector) for name, axis in names)
    return isobasin.Specification(
        "toy",
        (isobasin.AttentionSite(0, "attn", q, k, v, o, ATTENTION),),
        (isobasin.FeedForwardSite(0, "mlp", up, None, down, FeedForwardGroup(UNITS, Scale.positive), "relu"),),
        isobasin.Residual(STREAM, (*vectors, *covectors)),
    )


def model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (TOKENS, D), **{f"W_{x}": (HEADS, D, WIDTH) for x in "QKVO"}, "W_in": (D, UNITS)}
    shapes |= {"b_in": (UNITS,), "W_out": (UNITS, D), "unembed": (D, TOKENS)}
    return {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in shapes.items()}


def logits(w: dict[str, torch.Tensor]) -> torch.Tensor:
    h = w["embed"][torch.arange(TOKENS).reshape(4, 5)]
    site = described().sites[0]
    h = h + attend(site.read(w), ATTENTION, h)
    return (h + (h @ w["W_in"] + w["b_in"]).relu() @ w["W_out"]) @ w["unembed"]


def planted(original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy that every factor of the group has moved."""
    none = torch.ones(0, D, dtype=torch.float64)
    plain = isobasin.align_tensors(model(1), original, described(), scope="block", verify=False)
    element = residual.sample(STREAM, none, none, torch.Generator().manual_seed(2), condition=3.0)
    return replace(plain, residual=ResidualAlignment(STREAM, element)).moved_tensors(original, described())


def test_any_invertible_map_keeps_the_function():
    original = model(0)
    moved = planted(original)
    assert torch.allclose(logits(moved), logits(original), rtol=1e-9, atol=1e-8)
    assert all(not torch.allclose(moved[name], original[name], atol=0.1) for name in original)


def test_a_planted_copy_comes_back():
    original = model(0)
    moved = planted(original)
    found = isobasin.align_tensors(original, moved, described(), scope="model")
    assert found.verified.equal
    back = found.moved_tensors(moved, described())
    for name, tensor in original.items():
        assert torch.allclose(back[name], tensor, rtol=0, atol=1e-5), name


def test_models_apart_come_nearer_than_by_their_blocks():
    a, b = model(0), model(5)
    moved = [
        isobasin.align_tensors(a, b, described(), scope=s).moved_tensors(b, described()) for s in ("model", "block")
    ]
    assert torch.allclose(logits(moved[0]), logits(b), rtol=1e-8, atol=1e-7)
    whole, blocks = (sum(float((a[n] - t[n]).square().sum()) for n in a) for t in moved)
    assert whole < 0.95 * blocks
