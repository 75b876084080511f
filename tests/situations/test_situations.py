"""A slice of the table of docs/situations.md: `make situations` goes through all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from isobasin.architectures.examples import variant

from .kinds import RIGHT, Kind, Tally, under_heads, with_meanings, with_rows, with_weights

# What is refused, and nothing else: whole models without head, groups that differ, and means of unlike tables.
REFUSED = {
    ("head: no head", "align --scope model"),
    ("configuration: activation", "compare"),
    ("configuration: activation", "align --scope model"),
    ("rows: vocabulary", "merge"),
    ("rows: vocabulary", "interpolate"),
}


@pytest.mark.parametrize(
    "kind",
    [
        with_weights,
        with_rows,
        pytest.param(under_heads, marks=pytest.mark.long),
        pytest.param(with_meanings, marks=pytest.mark.long),
    ],
    ids=lambda kind: kind.__name__,
)
def test_every_verb_is_right_or_says_why_not(kind: Kind, tmp_path: Path):
    tally = Tally()
    for situation in kind(variant("llama"), tmp_path):
        tally.add(situation, tmp_path)
    assert tally.situations
    assert not tally.failed, "\n".join(tally.lines)
    refused = {key for key, count in tally.counts.items() if count[RIGHT] != count.total()}
    assert refused <= REFUSED, "\n".join(tally.lines)
