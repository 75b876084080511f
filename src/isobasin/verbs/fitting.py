"""One model in another's form: its rows by the other's numbers of tokens and labels, under the other's head."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from isobasin.canonical import Canonical
from isobasin.checkpoints import Checkpoint, temporary_folder, write_checkpoint
from isobasin.errors import IsobasinWarning
from isobasin.verbs.conflicts import Taking
from isobasin.verbs.rows import labels_of, tables_of


@dataclass(frozen=True)
class Fit:
    """Which rows of a model are a reference's.

    Attributes:
        rows: Of tensors whose rows are others or elsewhere, by canonical name: the reference's rows, and the model's
            rows that are the same.
        lacking: Tensors of the reference that the model has no part in.
    """

    rows: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=lambda: {})
    lacking: frozenset[str] = frozenset()

    @property
    def changes(self) -> bool:
        """Whether the model isn't in the reference's form already."""
        return bool(self.rows or self.lacking)

    def own(self, name: str, count: int) -> Tensor | None:
        """Which of the reference's rows the model lacks, as a mask; None if it has all of them."""
        if name in self.lacking:
            return torch.ones(count, dtype=torch.bool)
        if name not in self.rows:
            return None
        mask = torch.ones(count, dtype=torch.bool)
        mask[self.rows[name][0]] = False
        return mask if bool(mask.any()) else None

    def fitted(self, name: str, reference: Tensor, model: Tensor | None, *, empty: bool) -> Tensor:
        """A tensor of the model in the reference's form; rows that it lacks are the reference's, or 0 if `empty`."""
        found = torch.zeros_like(reference) if empty else reference.clone()
        if name in self.lacking or model is None:
            return found
        if name not in self.rows:
            return model
        ours, theirs = self.rows[name]
        found = found.to(torch.promote_types(found.dtype, model.dtype))
        found[ours] = model[theirs].to(found.dtype)
        return found


def fit(reference: Canonical, model: Canonical, taking: Taking) -> Fit:
    """How a model is brought into a reference's form, of two ends without a conflict that isn't resolved.

    Args:
        reference: Whose numbers of tokens and labels, head and further rows are kept.
        model: The other one.
        taking: What was asked for.
    """
    tables = tables_of(reference), tables_of(model)
    shapes = reference.shapes, model.shapes
    rows: dict[str, tuple[Tensor, Tensor]] = {}
    tokens = _by_name(_token_ids(reference), _token_ids(model)) if taking.by_name else None
    labels = _by_name(_label_ids(reference), _label_ids(model)) if taking.by_name else None
    lacking: set[str] = set()
    for name, shape in shapes[0].items():
        other = shapes[1].get(name)
        head = taking.head and (name in tables[0].head)
        if other is not None and name in tables[0].tokens & tables[1].tokens:
            rows |= _rows(name, tokens, shape[0], other[0])
        elif other is not None and name in tables[0].labels & tables[1].labels and shape == other:
            rows |= _rows(name, labels, shape[0], other[0])
        elif other is not None and name in tables[0].positions & tables[1].positions:
            rows |= _rows(name, None, shape[0], other[0])
        elif head and other != shape:
            lacking.add(name)
    return Fit(rows, frozenset(lacking))


def _rows(name: str, by_name: tuple[Tensor, Tensor] | None, ours: int, theirs: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The rows of a tensor that both have, by name or, without names, in order; none if all of them are as they are."""
    common = torch.arange(min(ours, theirs))
    if by_name is None:
        return {} if ours == theirs else {name: (common, common)}
    within = (by_name[0] < ours) & (by_name[1] < theirs)
    pair = by_name[0][within], by_name[1][within]
    return {} if ours == theirs and torch.equal(pair[0], pair[1]) else {name: pair}


def _by_name(ours: Mapping[str, int] | None, theirs: Mapping[str, int] | None) -> tuple[Tensor, Tensor] | None:
    """The numbers that both give to the same names; None where one has no names."""
    if not ours or not theirs:
        return None
    common = sorted(ours.keys() & theirs.keys(), key=ours.__getitem__)
    return torch.tensor([ours[n] for n in common]).long(), torch.tensor([theirs[n] for n in common]).long()


def _token_ids(end: Canonical) -> Mapping[str, int] | None:
    return None if end.tokens is None else end.tokens.ids


def _label_ids(end: Canonical) -> Mapping[str, int] | None:
    names = labels_of(end)
    return None if names is None else {name.casefold(): i for i, name in enumerate(names)}


@contextmanager
def in_form(reference: Canonical, model: Canonical, found: Fit, *, empty: bool) -> Generator[Checkpoint]:
    """A model in a reference's form: the same checkpoint if it is that already, else a temporary one.

    Args:
        reference: Whose names, shards and configuration the temporary one has.
        model: Whose values it has.
        found: What `fit` returned.
        empty: Fill rows that the model lacks with 0, not with the reference's.
    """
    if not found.changes:
        yield model.checkpoint
        return
    types = [{info.dtype for info in end.checkpoint.tensors.values()} for end in (reference, model)]
    dtype = None if types[0] == types[1] else torch.float64
    with temporary_folder() as folder:
        path = Path(folder) / "model"
        pieces = reference.written(_pieces(reference, model, found, empty=empty))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IsobasinWarning)  # of files that nobody needs here
            write_checkpoint(reference.checkpoint, path, pieces, dtype=dtype)
        yield Checkpoint.open(path)


def _pieces(reference: Canonical, model: Canonical, found: Fit, *, empty: bool) -> Iterator[dict[str, Tensor]]:
    """The model's tensors in the reference's form, one at a time."""
    for name in reference.view.tensors:
        own = None if name in found.lacking else model.read([name])[name]
        yield {name: found.fitted(name, reference.read([name])[name], own, empty=empty)}


def keeping(
    points: Iterator[dict[str, Tensor]], reference: Canonical, fits: Sequence[Fit]
) -> Iterator[dict[str, Tensor]]:
    """New values by canonical names, with the reference's own rows where any of the models lacks them."""
    for piece in points:
        kept = dict(piece)
        for name, tensor in piece.items():
            masks = [mask for one in fits if (mask := one.own(name, len(tensor) if tensor.ndim else 1)) is not None]
            if masks:
                rows = torch.stack(masks).any(0)
                own = reference.read([name])[name].to(tensor.dtype)
                kept[name] = torch.where(rows.reshape(-1, *[1] * (tensor.ndim - 1)), own, tensor)
        yield kept
