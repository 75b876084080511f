"""Where an interrupted descent stands: a file beside the output that is ours and nobody else's."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO

import torch

from isobasin.checkpoints.output import disk_errors
from isobasin.errors import AlignmentError, OutputError

# What such a file begins with; its SHA-256 follows, and then what torch wrote.
_MARK = b"isobasin refine: where an interrupted descent stands\n"
_DIGEST = 32


class Unfinished:
    """The file from which an interrupted descent goes on.

    Its name follows from the output's, so that the next run finds it. Whatever else has that name is left alone: a
    file is read, replaced or deleted only if it is a regular one that begins as ours do.

    Attributes:
        path: `.OUT.unfinished`, beside OUT.
        key: What is the same if and only if the descent is; the state of another one counts as none.
    """

    def __init__(self, out: Path, key: str = "") -> None:
        """The file of one output.

        Args:
            out: The output folder.
            key: See above; it may be known later than the place has to be free.

        Raises:
            OutputError: Something else has the file's name.
        """
        target = out.absolute()
        self.path = target.parent / f".{target.name}.unfinished"
        self.key = key
        self._check()

    def load(self) -> dict[str, Any] | None:
        """The state of the same descent, if there is one, on the CPU, where a generator's state has to be.

        Raises:
            AlignmentError: The file is damaged.
            OutputError: Something else has its name.
        """
        file = self._opened()
        if file is None:
            return None
        with disk_errors(self.path), file:
            digest, stored = file.read(_DIGEST), file.read()
        if hashlib.sha256(stored).digest() != digest:
            raise self._damaged()
        try:
            found = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
            return found["state"] if found["key"] == self.key else None
        except Exception as error:  # what torch makes of other content has no common base class
            raise self._damaged() from error

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, all of it or nothing, for its owner's eyes.

        Raises:
            OutputError: Something else has taken the file's name, or it can't be written.
        """
        buffer = io.BytesIO()
        torch.save({"key": self.key, "state": state}, buffer)
        stored = buffer.getvalue()
        self._check()
        staging = self.path.with_name(f"{self.path.name}.partial-{secrets.token_hex(4)}")
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with os.fdopen(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(_MARK + hashlib.sha256(stored).digest() + stored)
                # A link of this name would be replaced, not followed.
                os.replace(staging, self.path)
            finally:
                staging.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the file, if it is ours."""
        with contextlib.suppress(OSError, OutputError):
            self._check()
            self.path.unlink(missing_ok=True)

    def _damaged(self) -> AlignmentError:
        """What to say of a file that is ours and can't be used."""
        return AlignmentError(f"{self.path}: the state of an interrupted run is damaged: delete it to begin anew")

    def _opened(self) -> BinaryIO | None:
        """Our file, open behind its mark; None where there is none.

        Raises:
            OutputError: Something else has its name.
        """
        with disk_errors(self.path):
            try:
                regular = stat.S_ISREG(self.path.lstat().st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if regular:
                # It may have become a link or a pipe by now: neither is followed or waited for.
                file = os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
                if file.read(len(_MARK)) == _MARK:
                    return file
                file.close()
        raise OutputError(
            f"{self.path}: isn't ours, and what an interrupted run goes on from needs this name: move it, or name "
            "another output"
        )

    def _check(self) -> None:
        """Refuse whatever has the file's name and isn't ours."""
        file = self._opened()
        if file is not None:
            file.close()
