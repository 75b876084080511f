from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from isobasin.architectures.tiny import TinyModel

Saved = Callable[..., Path]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A tiny model's checkpoint; each is written once, and read only."""
    made: dict[tuple[str, bool, torch.dtype], Path] = {}

    def get(model: TinyModel, *, base: bool = False, dtype: torch.dtype = torch.float64) -> Path:
        key = str(model), base, dtype
        if key not in made:
            made[key] = model.save(tmp_path_factory.mktemp(str(model)), base=base, dtype=dtype)
        return made[key]

    return get
