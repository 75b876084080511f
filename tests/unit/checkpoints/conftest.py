from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_folders import sharded

from isobasin.checkpoints import Checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return Checkpoint.open(sharded(tmp_path / "source"))
