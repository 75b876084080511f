"""The public API as a user's type checker sees it, from the wheel: `make lint` runs mypy on this file."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor

import isobasin
from isobasin import (
    Alignment,
    AttentionGroup,
    AttentionWeights,
    Barriers,
    BilinearGroup,
    Comparison,
    DataOptions,
    Gauged,
    LossCurve,
    Match,
    Matching,
    Measuring,
    Merged,
    Method,
    Refinement,
    Refining,
    Scope,
    Specification,
    Verdict,
    Verification,
)
from isobasin.lines import LinearPath, barrier


def whole_checkpoints(reference: Path, model: torch.nn.Module) -> None:
    alignment = isobasin.align(reference, "model", method=Method.paper, scope="block", dtype=torch.float32)
    assert_type(alignment, Alignment)
    assert_type(alignment.verified, Verification | None)
    assert_type([layer.statistics.condition for layer in alignment.layers], list[float])
    moved = isobasin.apply(alignment, "model", "aligned")
    assert_type(moved.path, Path | None)
    assert_type(isobasin.verify("model", "aligned").equal, bool)
    merged = isobasin.merge([reference, "model"], t=[0.5, 0.5], space="circuit")
    assert_type(merged, Merged)
    assert_type(merged.truncation[0].query_key, float)
    found = isobasin.compare(reference, "model")
    assert_type(found, Comparison)
    assert_type(found.verdict, Verdict)
    curve = barrier(LinearPath.between(model, model), lambda module: 0.0)
    assert_type(curve.height, float)
    curve.plot(label="naive")


def on_data(model: torch.nn.Module) -> None:
    data = DataOptions("texts", split="test", max_examples=10)
    learned = isobasin.refine("a", "b", data, "out", how=Refining(steps=10), matching=Matching(scope=Scope.model))
    assert_type(learned.refined.after, float)
    assert_type(isobasin.gauge("a", "rtn4", "out", data="texts.txt"), Gauged)
    found = isobasin.barrier(["a", Path("b")], "texts.txt", how=Measuring(points=5))
    assert_type(found, Barriers)
    assert_type(found.curve("none"), LossCurve)
    found.plot()


def tensors(
    group: AttentionGroup, weights: AttentionWeights, specification: Specification, named: dict[str, Tensor]
) -> None:
    found = isobasin.match(group, weights, weights, method=Method.gauss_newton)
    assert_type(found, Match)
    assert_type(found.moved.query, Tensor)
    assert_type(BilinearGroup(8).features, int)
    learned = isobasin.refine_tensors(
        named,
        named,
        specification,
        lambda tensors, rows: tensors["x"].sum(),
        24,
        how=Refining(steps=10),
        matching=Matching(scope=Scope.model),
    )
    assert_type(learned, Refinement)
    assert_type(learned.refined.steps, int)


def wrong() -> None:
    isobasin.align("a", "b", methd="paper")  # type: ignore[call-arg]
    isobasin.align("a", "b", method=3)  # type: ignore[arg-type]
    isobasin.nothing()  # type: ignore[attr-defined]
