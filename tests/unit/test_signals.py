"""What the signal handler does, without killing anyone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from isobasin.signals import Terminated, catch_signals, received, stop_if_asked

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    for number in _NUMBERS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_raises_and_is_remembered():
    assert received() is None
    catch_signals()
    stop_if_asked()
    with pytest.raises(Terminated) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert received() == signal.SIGTERM
    with pytest.raises(Terminated):
        stop_if_asked()


def test_a_second_one_does_not_disturb_the_clean_up():
    catch_signals()
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)
    assert received() == signal.SIGHUP


def test_ctrl_c_insists():
    catch_signals()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert received() == signal.SIGINT


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    catch_signals()
    signal.raise_signal(signal.SIGHUP)
    assert received() is None


def test_ctrl_c_that_a_library_drops_is_not_printed(tmp_path: Path):
    (tmp_path / "dropped.py").write_text(
        "import ctypes, signal, sys\n"
        "from isobasin.signals import catch_signals, received\n"
        "callback = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))\n"
        "other = ctypes.CFUNCTYPE(None)(lambda: 1 / 0)\n"
        "catch_signals()\n"
        "other()\n"
        "callback()\n"
        "sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)\n"
        "print(received())\n"
    )
    ended = subprocess.run([sys.executable, "-m", "dropped"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout.split() == ["2"]
    assert "ZeroDivisionError" in ended.stderr
    assert "KeyboardInterrupt" not in ended.stderr
