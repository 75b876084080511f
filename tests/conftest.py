"""What all tests share: one thread each, no network, quiet libraries, and where the real data lies."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

# A shell that starts tests in the background makes them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
for profile, count in (("quick", 25), ("thorough", 40)):
    settings.register_profile(
        profile, deadline=None, derandomize=True, max_examples=count, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Tests that need the same things run in one process (`--dist loadgroup`), which imports and makes them once."""
    for item in items:
        group = _model_type(item) or _file_with_fixtures(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))


def _model_type(item: pytest.Function) -> str | None:
    """The model type that a test is given: its module of transformers, its checkpoint and what that was turned into."""
    from isobasin.architectures.examples import USUAL

    callspec = getattr(item, "callspec", None)
    given = () if callspec is None else callspec.params.values()
    found = (getattr(value, "model_type", value) for value in given)
    return next((name for name in found if isinstance(name, str) and name in USUAL), None)


def _file_with_fixtures(item: pytest.Function) -> str | None:
    """The file of a test for which something is made once."""
    made = (found for fixtures in item._fixtureinfo.name2fixturedefs.values() for found in fixtures)
    return item.path.stem if any(found.scope == "module" for found in made) else None


def pytest_collection_finish() -> None:
    """What was imported is no garbage: it isn't looked at again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="session")
def no_progress() -> None:
    """Lines of progress come by the clock, and what commands print is compared: a busy machine must not add any."""
    from isobasin.cli import console

    console._FIRST = 3600.0


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
