from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isobasin
from isobasin.architectures.tiny import TinyModel
from isobasin.verbs.apply import Moved

Saved = Callable[..., Path]
Scrambled = Callable[..., Moved]


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


@pytest.fixture(scope="session")
def scrambled(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Scrambled:
    """A tiny model scrambled, and as verified by the program; each is written once, and read only."""
    made: dict[tuple[str, str, float, torch.dtype], Moved] = {}

    def get(model: TinyModel, scope: str, condition: float, dtype: torch.dtype = torch.float64) -> Moved:
        key = str(model), scope, condition, dtype
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{model}-{scope}") / "scrambled"
            made[key] = isobasin.scramble(saved(model, dtype=dtype), folder, seed=1, condition=condition, scope=scope)
        return made[key]

    return get
