"""The error of data, tokenizers and image processors."""

from __future__ import annotations

from isobasin.errors import IsobasinError

EXTRA = 'pip install "isobasin[barrier]"'


class DataError(IsobasinError):
    """Data can't be found or read, lack a column, or don't fit the model."""
