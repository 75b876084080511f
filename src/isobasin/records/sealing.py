"""A checksum at the end of each line of a file, so that a line that was edited is told from one that was measured."""

from __future__ import annotations

import hashlib
import re

NAME = "checksum"
"""The last entry of a line; no record has another one of this name."""

_SEAL = re.compile(rb',"checksum":"([0-9a-f]{64})"}\Z')


def sealed(line: bytes) -> bytes:
    """A JSON object on one line with the SHA-256 of itself as its last entry."""
    return b'%s,"%s":"%s"}' % (line.removesuffix(b"}"), NAME.encode(), _sum(line))


def unsealed(line: bytes) -> tuple[bytes, bool | None]:
    """The object without its checksum, and whether that is the right one; None where there is none."""
    seal = _SEAL.search(line)
    if seal is None:
        return line, None
    content = line[: seal.start()] + b"}"
    return content, seal[1] == _sum(content)


def _sum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
