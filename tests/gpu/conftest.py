"""A GPU, or what stands for one, and pairs of models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from isobasin.tasks.examples import TensorExamples
from isobasin.testing.pretended import pretended_cuda

from .both import IMAGES, KINDS, MASKED, REAL, TIED, UNTIED, examples, long


@pytest.fixture
def cuda() -> Iterator[None]:
    """A GPU, or what stands for one."""
    with nullcontext() if REAL else pretended_cuda():
        yield


@pytest.fixture(scope="module", params=[TIED, *map(long, (UNTIED, MASKED, IMAGES))], ids=str)
def pair(request, tmp_path_factory) -> tuple[Path, Path, TensorExamples]:
    folder = tmp_path_factory.mktemp("pair")
    a, b = (request.param.save(folder / str(seed), seed=seed, dtype=torch.float32) for seed in (0, 1))
    return a, b, examples(KINDS[str(request.param)])
