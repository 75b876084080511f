"""What all tests share: one thread each, no network, quiet libraries, and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "isobasin", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("isobasin")


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _shared(name: str) -> Path:
    """A folder beside the repository, or in the folder that ISOBASIN_DATA names the data of."""
    given = os.environ.get("ISOBASIN_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared"
    candidates = [beside / name]
    if given:
        candidates = [Path(given) / name, Path(given).parent / name, Path(given).parent / "shared" / name, *candidates]
    found = next((folder for folder in candidates if folder.is_dir()), None)
    if found is None:
        pytest.skip(f"no {name} in {' or '.join(map(str, candidates))}: set ISOBASIN_DATA to a folder that has it")
    return found


@pytest.fixture(scope="session")
def real_checkpoints() -> Path:
    """The folder of real trained checkpoints."""
    return _shared("checkpoints")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; ISOBASIN_DATA itself, if it is one."""
    given = os.environ.get("ISOBASIN_DATA")
    if given and (Path(given) / "tinyshakespeare").is_dir():
        return Path(given)
    return _shared("data")
