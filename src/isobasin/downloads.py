"""Who is told how far downloads are; nobody, unless somebody asks."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

LISTENER: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("listener", default=None)
"""Is called with what is downloaded, how many megabytes of it are here, and how many there are."""

_MEGABYTE = 10**6


def bar_for(what: str) -> type[Any] | None:
    """A kind of tqdm's bars that tells the listener and draws nothing; None where nobody listens.

    Args:
        what: What is downloaded.
    """
    listener = LISTENER.get()
    if listener is None:
        return None
    from tqdm.std import tqdm

    most = 0

    class Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument]
        def __init__(self, *items: Any, **how: Any) -> None:
            super().__init__(*items, **how | {"file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            nonlocal most
            # Of files there is a bar, too; and one for bytes that arrive, another for those that are written.
            if self.unit == "B" and self.total:
                most = max(most, int(self.n))
                listener(f"downloading {what}, MB", most // _MEGABYTE, max(int(self.total) // _MEGABYTE, 1))

    return Bar
