"""Numbers that make no sense are refused in one line, from wherever they come."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isobasin
from isobasin.bounds import SEEDS, check_number, check_seed
from isobasin.errors import DependencyError, IsobasinError
from isobasin.execution.cluster import Cluster
from isobasin.execution.local import Here, Processes
from isobasin.refinement.recipe import Refining
from isobasin.testing.pretended import pretended_cuda
from isobasin.verbs.settings import Matching, Running, chosen_device


@pytest.mark.parametrize(
    ("value", "least", "most", "said"),
    [
        (math.nan, None, None, "x is nan: give a finite number"),
        (-math.inf, None, None, "x is -inf: give a finite number"),
        (math.inf, 1, None, "x is inf: give at least 1"),
        (0.5, 1, None, "x is 0.5: give at least 1"),
        (math.nan, 1, 1_000_000, "x is nan: give a number from 1 to 1,000,000"),
        (10**400, 1, 1e15, f"x is 1{29 * '0'}…: give a number from 1 to 1e+15"),
        (0, 1, 5, "x is 0: give a number from 1 to 5"),
    ],
)
def test_the_name_the_number_and_the_range_are_said(value: float, least: float | None, most: float | None, said: str):
    ends = {name: end for name, end in (("least", least), ("most", most)) if end is not None}
    with pytest.raises(IsobasinError) as caught:
        check_number("x", value, **ends)
    assert str(caught.value) == said


def test_both_ends_of_a_range_are_inside():
    for value in (1, 1.0, 5):
        check_number("x", value, 1, 5)
    check_number("x", -1e308)
    Matching(max_condition=math.inf)
    check_seed(0)
    check_seed(SEEDS)


REFUSED: dict[str, Callable[[], object]] = {
    "seed is -1": lambda: isobasin.random_alignment("none", seed=-1),
    "seed is 100000000000000000000000": lambda: isobasin.verify("none", "none", seed=10**23),
    "seed is 9223372036854775808": lambda: isobasin.certify("gpt2", seed=SEEDS + 1),
    "seed is -3": lambda: Refining(seed=-3),
    "condition is inf": lambda: isobasin.random_alignment("none", condition=math.inf),
    "condition is 1e[+]17: give a number from 1 to 1e[+]15": lambda: isobasin.random_alignment("none", condition=1e17),
    "max condition is nan": lambda: Matching(max_condition=math.nan),
    "max condition is 0: give at least 1": lambda: Matching(max_condition=0),
    "tolerance is nan": lambda: isobasin.verify("none", "none", tolerance=math.nan),
    "tolerance is -1": lambda: isobasin.verify("none", "none", tolerance=-1),
    "t is inf": lambda: isobasin.interpolate("none", "none", math.inf),
    "t is nan": lambda: isobasin.merge(["none", "none"], t=[1, math.nan]),
    "rate is nan": lambda: Refining(rate=math.nan),
    "noise is inf": lambda: Refining(noise=math.inf),
    "batch size is 10000000000000000": lambda: Refining(batch_size=10**16),
    "held out is 2": lambda: Refining(held_out=2),
    "threads is 0": lambda: Here(threads=0),
    "workers is 0": lambda: Processes(0),
    "threads is 1000000": lambda: Processes(2, threads=1_000_000),
    "t is 'out': give a finite number": lambda: isobasin.interpolate("none", "none", "out"),  # pyright: ignore
    "seed is '0': give a number from 0": lambda: isobasin.scramble("none", seed="0"),  # pyright: ignore
    "models is 'none': give a list of them": lambda: isobasin.merge("none", "out"),
    "models is 'none': give a list": lambda: isobasin.check("none"),
    "models is 'none': give a": lambda: isobasin.barrier("none", "data"),
    "fingerprints is 'none': give a list of them": lambda: isobasin.scan("none", Path("none")),
    "dtype is 'bfloat16': give torch.float64, torch.f": lambda: Running(dtype="bfloat16"),  # pyright: ignore
    "dtype is torch.int8: give torch.float64, torch.f": lambda: Running(dtype=torch.int8),
    "workers is -1": lambda: Cluster(Path(), workers=-1),
}


@pytest.mark.parametrize("said", REFUSED)
def test_every_number_is_checked_before_anything_is_read(said: str):
    with pytest.raises(IsobasinError, match=f"^{said}"):
        REFUSED[said]()


@pytest.mark.parametrize("device", ["meta", "mps", "tpu", "", "cuda:-1", "cuda:99"])
def test_devices_that_are_not_there(device: str):
    with pytest.raises(DependencyError, match=f"^device '{device}': "):
        chosen_device(device)


def test_a_device_beyond_the_last_one_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DependencyError, match=r"cuda:2.*the last one that this torch sees is cuda:1"):
        Running("cuda:2")
    for device in ("cpu", "cuda", "cuda:1"):
        Running(device)


def test_auto_is_a_cuda_device_that_works(monkeypatch: pytest.MonkeyPatch):
    with pretended_cuda():
        assert (chosen_device("auto"), Running("auto").device) == ("cuda", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (chosen_device("auto"), Running("auto").device) == ("cpu", "cpu")


def test_auto_is_the_processor_where_the_cuda_device_fails(monkeypatch: pytest.MonkeyPatch):
    def broken(*args: object, **options: object):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "to", broken)
    assert chosen_device("auto") == "cpu"


def test_what_mps_lacks_is_said():
    with pytest.raises(DependencyError, match=r"no float64, which the work is done in; use --device cpu$"):
        chosen_device("mps")
