"""Whole models of an architecture of one's own, without any normalisation: the stream moves by any invertible map."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import isobasin
from isobasin.alignment import STREAM, Move
from isobasin.choices import Targets
from isobasin.errors import ArchitectureError, IsobasinError, IsobasinWarning, TensorError, VerificationError
from isobasin.refinement.chart import Chart
from isobasin.refinement.recipe import Refining
from isobasin.refinement.tensors import TensorCalibration
from isobasin.symmetries.feedforward import FeedForwardGroup, Scale
from isobasin.symmetries.function import attend
from isobasin.tensor_blocks import TensorBlocks

D, HEADS, WIDTH, UNITS, TOKENS = 12, 2, 6, 16, 20
ATTENTION = isobasin.AttentionGroup(HEADS, 1, isobasin.BilinearGroup(WIDTH), isobasin.BilinearGroup(WIDTH))
TURNS = isobasin.StreamGroup(D, isobasin.Basis.linear)


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
        (isobasin.AttentionBlock(0, "attn", q, k, v, o, ATTENTION),),
        (isobasin.FeedForwardBlock(0, "mlp", up, None, down, FeedForwardGroup(UNITS, Scale.positive), "relu"),),
        isobasin.Stream(TURNS, (*vectors, *covectors)),
    )


def model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (TOKENS, D), **{f"W_{x}": (HEADS, D, WIDTH) for x in "QKVO"}, "W_in": (D, UNITS)}
    shapes |= {"b_in": (UNITS,), "W_out": (UNITS, D), "unembed": (D, TOKENS)}
    return {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in shapes.items()}


def logits(w: dict[str, torch.Tensor], tokens: torch.Tensor | None = None) -> torch.Tensor:
    h = w["embed"][torch.arange(TOKENS).reshape(4, 5) if tokens is None else tokens]
    block = described().attention[0]
    h = h + attend(block.read(w), ATTENTION, h)
    return (h + (h @ w["W_in"] + w["b_in"]).relu() @ w["W_out"]) @ w["unembed"]


def planted(original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy that every factor of the group has moved."""
    none = torch.ones(0, D, dtype=torch.float64)
    plain = isobasin.align_tensors(model(1), original, described(), scope="block", verify=False)
    element = TURNS.sample(none, none, torch.Generator().manual_seed(2), condition=3.0)
    moves = (Move(STREAM, TURNS, element), *plain.moves)
    return replace(plain, moves=moves).moved_tensors(original, described())


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


TEXTS = torch.randint(TOKENS, (24, 5), generator=torch.Generator().manual_seed(7))
SHORT = Refining(steps=30, batch_size=12, rate=1e-2, warmup=3, every=30, held_out=0.25)


def loss(w: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """How far outputs are from those of model 0."""
    wanted = logits(model(0), TEXTS[rows])
    return (logits(w, TEXTS[rows]) - wanted).square().mean() / wanted.square().mean()


def charted() -> Chart:
    """Coordinates around model 0: GL(d) of the stream, heads, scales of units."""
    blocks = TensorBlocks("toy", model(0), described())
    return Chart(blocks, feedforward=True, stream=blocks.stream())


def strayed() -> dict[str, torch.Tensor]:
    """Model 0 at some point of its chart."""
    chart, generator = charted(), torch.Generator().manual_seed(8)
    with torch.no_grad():
        for x in chart.coordinates.values():
            x.copy_(torch.randn(x.shape, generator=generator, dtype=torch.float64) * 0.1)
    return chart.element().moved_tensors(model(0), described())


def test_refining_tensors_lowers_the_line_and_keeps_both_functions():
    a, b = model(0), strayed()
    nothing = charted().element()
    found = isobasin.refine_tensors(a, b, described(), loss, len(TEXTS), how=SHORT, start=nothing)
    assert found.refined.after < 0.4 * found.refined.before
    ends = found.reference.moved_tensors(a, described()), found.alignment.moved_tensors(b, described())
    for original, moved in zip((a, b), ends, strict=True):
        assert float((moved["embed"] - original["embed"]).abs().max()) > 1e-2
        assert float((logits(moved) - logits(original)).abs().max()) < 1e-9 * float(logits(original).abs().max())
    rows = torch.arange(len(TEXTS))
    middle, before = (float(loss({n: (x[n] + y[n]) / 2 for n in a}, rows)) for x, y in (ends, (a, b)))
    assert middle < 0.4 * before
    assert [check.equal for check in found.verified] == [True, True]
    alone = isobasin.refine_tensors(a, b, described(), loss, 24, how=replace(SHORT, steps=1, both=False), start=nothing)
    assert alone.reference is None
    assert len(alone.verified) == 1


def test_a_loss_of_another_architecture_is_refused():
    def wrong(w: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        return loss(w, rows) + w["embed"].square().mean()

    a, b = model(0), strayed()
    with pytest.raises(VerificationError, match="the loss isn't that of the specification's architecture"):
        isobasin.refine_tensors(a, b, described(), wrong, 24, how=replace(SHORT, steps=1))
    with pytest.raises(TensorError, match="'more' has shapes missing, "):
        isobasin.refine_tensors(a, b | {"more": b["embed"]}, described(), loss, 24)
    with pytest.raises(IsobasinError, match="give at least two"):
        isobasin.refine_tensors(a, b, described(), loss, 1)


def test_a_loss_alone_has_no_predictions_to_learn_from():
    with pytest.raises(ArchitectureError, match="use targets 'labels'"):
        isobasin.refine_tensors(
            model(0), strayed(), described(), loss, 24, how=replace(SHORT, steps=1, targets=Targets.ends)
        )


def test_a_loss_scores_alignments_by_the_middle_of_the_line():
    a, b = model(0), model(5)
    starts = {"far": 3 * torch.eye(D, dtype=torch.float64)}
    calibration = TensorCalibration(loss, len(TEXTS), starts)
    options = [isobasin.align_tensors(a, b, described(), method=m) for m in ("heads", "paper")]
    moved = [option.moved_tensors(b, described()) for option in options]
    rows = torch.arange(len(TEXTS))
    expected = [float(loss({n: (a[n] + w[n]) / 2 for n in a}, rows)) for w in moved]
    blocks = [TensorBlocks("toy", w, described()) for w in (a, b)]
    assert calibration.scores(*blocks, options) == pytest.approx(expected, rel=1e-9)
    assert abs(expected[0] - expected[1]) > 1e-3 * expected[0]


def test_a_whole_match_takes_the_end_that_the_loss_prefers():
    """With the planted map among the starts and a loss that only asks for it, the others aren't kept."""

    class Last(TensorCalibration):
        def scores(self, a, b, alignments):
            return [float(-i) for i, _ in enumerate(alignments)]

    original = model(0)
    near = {n: t + 1e-4 * t.flip(0) for n, t in original.items()}
    starts = {"given": torch.eye(D, dtype=torch.float64)}
    options = {"scope": "model", "method": "heads", "calibration": Last(loss, 24, starts)}
    found = isobasin.align_tensors(original, near, described(), **options)
    assert found.stream.statistics.start == "given"


def test_one_tensor_under_two_names_stays_one():
    """As tied tensors do in what `state_dict()` returns: whoever loads the result would have the last one twice."""
    original, moved = model(0), isobasin.align_tensors(model(1), model(0), described(), scope="model")
    apart = moved.moved_tensors(original, described())
    tied = moved.moved_tensors(original | {"tied": original["embed"]}, described())
    assert tied.keys() == {*original, "tied"}
    assert tied["tied"] is tied["embed"]
    assert all(torch.equal(tied[name], x) for name, x in apart.items())
    # Described as two tensors that move in other ways, one in memory can't be both.
    square = model(0) | {"unembed": torch.randn(TOKENS, D, dtype=torch.float64)}
    stream = described().stream
    assert stream is not None
    along = tuple(replace(x, axis=1) if x.tensor == "unembed" else x for x in stream.along)
    turned = replace(described(), stream=replace(stream, along=along))
    assert "unembed" in moved.moved_tensors(square, turned)
    with pytest.raises(TensorError, match="'embed' and 'unembed' are one tensor in memory and would be two: describe"):
        moved.moved_tensors(square | {"unembed": square["embed"]}, turned)
    # With attention alone neither moves.
    isobasin.align_tensors(model(1), original, described()).moved_tensors(square | {"unembed": square["embed"]}, turned)
    # A copy in another place, as other types make of tied tensors, is taken for the same.
    with pytest.warns(IsobasinWarning, match="'tied', of which the specification says nothing, is 'embed' again, and"):
        copied = moved.moved_tensors(original | {"tied": original["embed"].clone()}, described())
    assert torch.equal(copied["tied"], apart["embed"])
    zeros = {"b_in": torch.zeros(UNITS, 1, dtype=torch.float64)[:, 0], "own": torch.zeros(UNITS, dtype=torch.float64)}
    assert not moved.moved_tensors(original | zeros, described())["own"].any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.nn.Linear(1, 1), "reference: is a Linear, and not tensors by name: give what a module's state_dict"),
        ({f"_orig_mod.{name}": x for name, x in model(0).items()}, "is missing; .*, and there is '_orig_mod.W_Q'"),
        ({name: x.numpy() for name, x in model(0).items()}, "reference: 'W_Q' is a ndarray: give tensors of torch"),
        ({name: x.to("meta") for name, x in model(0).items()}, "'W_Q' is on the device meta, where it has no values"),
        ({name: x for name, x in model(0).items() if name != "embed"}, "tensor 'embed' (is|has shapes) missing"),
    ],
    ids=["module", "prefix", "numpy", "meta", "stream"],
)
def test_what_is_no_model_of_the_specification_is_refused_in_a_line(given, said: str):
    with pytest.raises(TensorError, match=said):
        isobasin.align_tensors(given, model(1), described(), scope="model")
    with pytest.raises(TensorError, match=said):
        isobasin.refine_tensors(given, model(1), described(), lambda tensors, indices: tensors["W_Q"].sum(), 4)


def _stream(**changed: object) -> isobasin.Specification:
    stream = described().stream
    assert stream is not None
    return replace(described(), stream=replace(stream, **changed))


def _without(*names: str) -> isobasin.Specification:
    stream = described().stream
    assert stream is not None
    return _stream(along=tuple(x for x in stream.along if x.tensor not in names))


def _attention(**changed: object) -> isobasin.Specification:
    (block,) = described().attention
    return replace(described(), attention=(replace(block, group=replace(ATTENTION, **changed)),))


@pytest.mark.parametrize(
    ("specification", "more", "said"),
    [
        (
            described(),
            {"b_Q": (HEADS, WIDTH)},
            "reference: there is 'b_Q', and attn is said to have no such bias: name it",
        ),
        (described(), {"b_out": (D,)}, "there is 'b_out', and mlp is said to have no such bias"),
        (_without("W_K"), {}, "attn: the residual stream isn't said to run along axis 1 of 'W_K'"),
        (_without("W_out"), {}, "mlp: the residual stream isn't said to run along axis 1 of 'W_out'"),
        (
            _stream(group=isobasin.StreamGroup(D + 1, isobasin.Basis.linear)),
            {},
            "attn is 12 wide, and the .* stream 13",
        ),
        (
            _stream(norms=(isobasin.Norm("gain", None, (isobasin.Reader("unembed", 0, None),)),)),
            {"gain": (D,)},
            "normalisations that divide by a root mean square don't let linear maps pass",
        ),
        (
            _stream(
                norms=(isobasin.Norm("gain", None, (isobasin.Reader("unembed", 0, None),)),),
                group=isobasin.StreamGroup(D, isobasin.Basis.orthogonal),
                centred=True,
            ),
            {"gain": (D,)},
            "normalisations that subtract the mean don't let orthogonal maps pass",
        ),
        (
            _stream(along=(*described().stream.along, isobasin.Along("gain", 0, isobasin.Role.gain))),
            {"gain": (D,)},
            "factors of single coordinates don't let linear maps pass",
        ),
        (
            _stream(along=(*described().stream.along, isobasin.Along("more", 1))),
            {"more": (D, 5)},
            r"reference: tensor 'more' has shape \[12, 5\]: the residual stream needs 12 along axis 1",
        ),
        (_attention(kv_heads=1, queries_per_kv=2), {}, "attn: the layout of its key has 2 × 6 heads and features, and"),
        (_attention(value_output=isobasin.BilinearGroup(5)), {}, "the layout of its value has 2 × 6 .* group 2 × 5"),
    ],
)
def test_a_description_that_can_be_seen_to_change_the_function_is_refused(
    specification: isobasin.Specification, more: dict[str, tuple[int, ...]], said: str
):
    """What it leaves out would stay behind, and what it lets move may not."""
    ends = [
        model(seed) | {name: torch.ones(shape, dtype=torch.float64) for name, shape in more.items()} for seed in (0, 1)
    ]
    with pytest.raises((ArchitectureError, TensorError), match=said):
        isobasin.align_tensors(*ends, specification, scope="model")


def test_what_a_description_may_leave_out(recwarn: pytest.WarningsRecorder):
    """Biases that are zero, as some code stores all of them, and what moves in no scope that is asked for."""
    zeros = {"b_Q": torch.zeros(HEADS, WIDTH), "b_out": torch.zeros(D)}
    a, b = (model(seed) | zeros for seed in (0, 1))
    isobasin.align_tensors(a, b, _without("W_out"), scope="block")
    isobasin.align_tensors(a | {"b_out": torch.ones(D)}, b, described(), scope="block")
    assert not recwarn
    with pytest.warns(IsobasinWarning, match="'embed' is as wide as the residual stream, and"):
        isobasin.align_tensors(model(0), model(1), _without("embed"), scope="model")
