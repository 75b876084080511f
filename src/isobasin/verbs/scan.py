"""Which fingerprints are those of a model's relatives?"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from isobasin.bounds import check_several
from isobasin.checkpoints.files import entries
from isobasin.errors import CheckpointError
from isobasin.matching.tokens import partners
from isobasin.model import Source
from isobasin.plain import Plain
from isobasin.verbs.fingerprint import ENDINGS, SEEN, Fingerprint, fingerprint
from isobasin.verbs.settings import Progress, silent

# Between scores of models trained apart and of relatives: docs/provenance.md.
RELATED_TOKENS = 0.3
# What rounding of stored weights and fingerprints explains of two invariants' relative difference.
_ROUNDING = 1e-2

# What every kind of block has of sums of tokens.
KINDS = {
    "attention": (f"{SEEN}_query_key", f"{SEEN}_value_output"),
    "feed-forward": (f"{SEEN}_units",),
}


@dataclass(frozen=True)
class LayerPair(Plain):
    """One layer of the model and the layer of the other that it goes with.

    Attributes:
        ours: Index of the model's layer.
        theirs: Of the other's.
        scores: How far their blocks correlate, by kind.
    """

    ours: int
    theirs: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Kin(Plain):
    """What a fingerprint has in common with a model's.

    Attributes:
        name: The file.
        model_type: Its architecture.
        layers: Which layer goes with which; none where either's stream isn't known.
        invariants: The largest relative difference, of any layer, of what no move of blocks changes; None where these
            numbers are of other shapes. It is rounding for copies whose stream wasn't moved.
    """

    name: str
    model_type: str
    layers: tuple[LayerPair, ...]
    invariants: float | None
    _also = ("score", "related", "words")

    @property
    def score(self) -> float | None:
        """The mean of all blocks' scores; None where there are none."""
        scores = [score for layer in self.layers for score in layer.scores.values()]
        return sum(scores) / len(scores) if scores else None

    @property
    def same(self) -> bool:
        """Whether blocks have the same invariants, up to rounding."""
        return self.invariants is not None and self.invariants < _ROUNDING

    @property
    def related(self) -> bool:
        """Whether one comes from the other, or both from a third."""
        return self.same or (self.score or 0) >= RELATED_TOKENS

    @property
    def words(self) -> str:
        """What that means."""
        if self.same:
            return f"related: invariants of all blocks agree to {self.invariants:.0e}"
        if not self.layers:
            return "other invariants; nothing is known of the residual stream"
        return "related" if self.related else "unrelated"


@dataclass(frozen=True)
class Scan(Plain):
    """The relatives of a model among some fingerprints.

    Attributes:
        model: What the user called it.
        kin: Those of the same architecture or any other, nearest first.
    """

    model: str
    kin: tuple[Kin, ...]

    @property
    def relatives(self) -> tuple[Kin, ...]:
        """Those that are related."""
        return tuple(kin for kin in self.kin if kin.related)


def scan(
    model: Source,
    fingerprints: Iterable[str | os.PathLike[str]],
    *,
    device: str = "cpu",
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> Scan:
    """Compare a model with fingerprints, and say which of them are its relatives.

    Models may differ in depth, vocabulary, width and architecture. Layers and heads are assigned to each other, and
    what their circuits make of the first tokens is compared, so vocabularies have to share these.

    Args:
        model: Folder, hub id, or transformers model; or a fingerprint's file.
        fingerprints: Files, and folders of nothing but such files.
        device: Where the model's fingerprint is computed.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.

    Raises:
        CheckpointError: A file is no fingerprint, or a folder has none.
    """
    check_several("fingerprints", fingerprints)
    files = list(_files(fingerprints))
    own = _own(model, device, allow_pickle)
    found: list[Kin] = []
    for done, file in enumerate(files):
        progress("comparing", done, len(files))
        found.append(kin(str(file), own, Fingerprint.load(file)))
    progress("comparing", len(files), len(files))
    found.sort(key=lambda each: (not each.same, -(each.score or 0), each.name))
    return Scan(str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__, tuple(found))


def _own(model: Source, device: str, allow_pickle: bool) -> Fingerprint:
    """The fingerprint that a file holds, or that of a model."""
    if isinstance(model, (str, os.PathLike)) and Path(model).suffix in ENDINGS and Path(model).is_file():
        return Fingerprint.load(model)
    return fingerprint(model, device=device, allow_pickle=allow_pickle)


def kin(name: str, ours: Fingerprint, theirs: Fingerprint) -> Kin:
    """What two fingerprints have in common."""
    pairs = layer_pairs(ours, theirs)
    return Kin(name, theirs.model_type, pairs, _difference(ours, theirs))


def layer_pairs(ours: Fingerprint, theirs: Fingerprint) -> tuple[LayerPair, ...]:
    """Which layer goes with which, in the order of the first one's; none where either has nothing that tokens see."""
    found = partners(ours.layers(), theirs.layers(), KINDS)
    if not found.scores:
        return ()
    rows = zip(found.ours, found.theirs, strict=True)
    return tuple(
        LayerPair(i, j, {kind: float(x[place]) for kind, x in found.scores.items() if bool(x[place].isfinite())})
        for place, (i, j) in enumerate(rows)
    )


def _difference(ours: Fingerprint, theirs: Fingerprint) -> float | None:
    """The largest relative difference of invariants of any layer."""
    own, other = (
        {name: x.double() for name, x in each.tensors.items() if f".{SEEN}_" not in name} for each in (ours, theirs)
    )
    if {name: x.shape for name, x in own.items()} != {name: x.shape for name, x in other.items()}:
        return None
    gaps = [float((x - other[name]).norm() / x.norm().clamp(min=torch.finfo(x.dtype).tiny)) for name, x in own.items()]
    return max(gaps, default=None)


def _files(given: Iterable[str | os.PathLike[str]]) -> Iterable[Path]:
    """The files that are given, and those in folders that are."""
    for path in map(Path, given):
        if not path.is_dir():
            yield path
            continue
        inside = sorted(path / name for name in entries(path) if Path(name).suffix in ENDINGS)
        if not inside:
            raise CheckpointError(f"{path}: no fingerprints in it: give files that `isobasin fingerprint -o` wrote")
        yield from inside
