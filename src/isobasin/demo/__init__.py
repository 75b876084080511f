"""The demo: two-minute proof, on models trained here and now, that aligning lowers the loss barrier."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isobasin.demo.run import run_demo as run_demo

__all__ = ["run_demo"]


def __getattr__(name: str) -> object:
    # Loaded on first use: torch and transformers take seconds, and `isobasin --help` needs neither.
    if name not in __all__:
        raise AttributeError(f"module 'isobasin.demo' has no attribute {name!r}")
    return getattr(import_module("isobasin.demo.run"), name)
