"""Defects of one block as transformations of its parts that can be undone: by themselves, or fitted to two blocks.

Parts are rows by role, `(rows, columns)`: canonical rows of projections, biases and gains with one column. A role with
an apostrophe is the same projection with its stored matrix transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.diagnosis.findings import Defect
from isobasin.diagnosis.parts import columns
from isobasin.matching.assignment import linear_sum_assignment

Parts = Mapping[str, Tensor]
Undone = tuple[dict[str, Tensor], str]
"""The parts that change, and what to add to the words."""

Key = tuple[object, ...]

# Below this share of what was there before, a fitted defect explains a difference; one without a number, below a half.
FITTED, GIVEN = 0.1, 0.5
# A factor nearer to 1 than this is no defect.
_FACTOR = 1e-3


@dataclass(frozen=True)
class Atom:
    """One defect of a block.

    Attributes:
        defect: Which.
        words: What is wrong.
        fix: What to do about it.
        roles: The parts that it is in.
        undo: From the original's parts and the conversion's to those that change; None where it can't be.
        fitted: Whether it has a number that is fitted.
        restores: Whether it takes values from the original.
        first: Whether it may be one of two that are looked for together: what is in biases alone shows afterwards.
        number: The number that it has, if that is known beforehand.
    """

    defect: Defect
    words: str
    fix: str
    roles: tuple[str, ...]
    undo: Callable[[Parts, Parts], Undone | None]
    fitted: bool = False
    restores: bool = False
    first: bool = True
    number: float | None = None

    @property
    def key(self) -> Key:
        """What is the same for this defect in another layer."""
        return self.defect, self.roles, self.words, self.number

    @property
    def share(self) -> float:
        """The share of a difference that may be left where this explains it."""
        return FITTED if self.fitted else GIVEN


def reorder(
    defect: Defect,
    words: str,
    fix: str,
    sigma: Tensor,
    roles: Sequence[str],
    counts: Sequence[int],
    endings: Sequence[str],
) -> Atom:
    """Rows in another order.

    Args:
        defect: Which.
        words: What is wrong.
        fix: What to do.
        sigma: Which of the original's rows each is, of these roles one after the other.
        roles: The roles.
        counts: Rows of each.
        endings: "" for weights, "_bias" for biases.
    """
    inverse = sigma.argsort()
    spans = torch.arange(len(sigma)).split(list(counts))
    # Roles of which no row moves, in or out, have no part in it.
    moved = [role for role, span in zip(roles, spans, strict=True) if bool((sigma[span] != span).any())]
    # Rows that stay in their roles needn't be of one width: queries may read a latent where keys read the stream.
    within = all(torch.equal(sigma[span].sort().values, span) for span in spans)

    def undo(x: Parts, y: Parts) -> Undone | None:
        found: dict[str, Tensor] = {}
        for ending in endings:
            names = [f"{role}{ending}" for role in roles]
            if within:
                rows = [y[name][inverse[span] - span[0]] for name, span in zip(names, spans, strict=True)]
            else:
                rows = torch.cat([y[name] for name in names])[inverse].split(list(counts))
            found |= {name: part for name, role, part in zip(names, roles, rows, strict=True) if role in moved}
        return found, ""

    touched = tuple(f"{role}{ending}" for ending in endings for role in moved)
    return Atom(defect, words, fix, touched, undo, first="" in endings)


def transposed(roles: Sequence[str]) -> Atom:
    """The stored matrix of some roles, transposed."""

    def undo(x: Parts, y: Parts) -> Undone | None:
        return {role: y[f"{role}'"] for role in roles}, ""

    words, fix = f"the matrix of {listed(roles)} is transposed", "transpose it: w.T.contiguous(), not w.reshape(...)"
    return Atom(Defect.transposed, words, fix, tuple(roles), undo)


def scaled(role: str, endings: Sequence[str], named: Mapping[str, float], given: float | None = None) -> Atom:
    """A projection times a number, with or without its bias.

    Args:
        role: The projection.
        endings: "" for its weight, "_bias" for its bias.
        named: Numbers that have a meaning.
        given: The number; None to fit it, which weights in another gauge don't allow.
    """
    roles = tuple(f"{role}{ending}" for ending in endings)

    def undo(x: Parts, y: Parts) -> Undone | None:
        size = sum(float(x[name].square().sum()) for name in roles)
        fitted = sum(float((x[name] * y[name]).sum()) for name in roles) / size if size else 0.0
        factor = fitted if given is None else given
        if not abs(factor - 1) > _FACTOR or not factor:
            return None
        near = next((f"{factor:.4g}, {what}" for what, value in named.items() if abs(factor / value - 1) < _FACTOR), "")
        return {name: y[name] / factor for name in roles}, f" {near or f'{factor:.4g}'}"

    words = f"{listed(roles)} multiplied by"
    fix, first = "leave the factor out, or divide by it", "" in endings
    return Atom(Defect.scale, words, fix, roles, undo, fitted=True, first=first, number=given)


def folded(gain: Tensor, name: str, roles: Sequence[str], *, out: bool, shifts: bool) -> Atom:
    """A normalisation's gain in what reads it.

    Args:
        gain: The gain.
        name: What it is called.
        roles: What reads it.
        out: Whether the gain was divided out, instead of multiplied in.
        shifts: Whether its bias went into theirs; what it adds is a part of the original, see `shift`.
    """
    factor = 1 / gain if out else gain
    biases = tuple(f"{role}_bias" for role in roles) if shifts else ()

    def undo(x: Parts, y: Parts) -> Undone | None:
        found: dict[str, Tensor] = {}
        for role in roles:
            whole = y[role].shape[1] == len(factor)
            found[role] = y[role] / (factor if whole else factor[columns(len(factor))])
        return found | {
            f"{r}_bias": y[f"{r}_bias"] - x[shift(r, name)] for r in roles if shifts and f"{r}_bias" in y
        }, ""

    what = f"the gain of {name} is {'divided out of' if out else 'multiplied into'} {listed(roles)}"
    words = f"{what}{', its bias added' if shifts else ''}"
    fix = "fold it once: into the weights and gain = 1, or not at all"
    return Atom(Defect.folded, words, fix, (*roles, *biases), undo, fitted=True)


def shift(role: str, name: str) -> str:
    """What the part is called that a normalisation's bias adds to a role's."""
    return f"{role} {name}'"


def ordered(names: Sequence[str], roles: Sequence[str], heads: int, named: Mapping[str, Tensor], whose: str) -> Atom:
    """Heads in whatever order brings them nearest to the original's.

    Args:
        names: Projections and biases whose heads move together.
        roles: The projections.
        heads: How many there are.
        named: Orders that have a name.
        whose: What to call the heads.
    """

    def undo(x: Parts, y: Parts) -> Undone | None:
        inner = sum((x[n].reshape(heads, -1) @ y[n].reshape(heads, -1).T for n in names), start=torch.zeros(()))
        order = torch.as_tensor(linear_sum_assignment(-inner.double())[1])
        if torch.equal(order, torch.arange(heads)):
            return None
        name = next((what for what, sigma in named.items() if torch.equal(sigma.argsort(), order)), None)
        words = name or f"in another order: the original's are {' '.join(map(str, order.tolist()))}"
        found = {n: y[n].reshape(heads, -1)[order].reshape(y[n].shape) for n in names}
        return found, f" {words}"

    fix = "put each head of queries beside the key/value head that it reads, and its output with it"
    return Atom(Defect.head_order, f"{whose} heads of {listed(roles)} lie", fix, tuple(names), undo)


def regrouped(names: Sequence[str], roles: Sequence[str], heads: int, partner: str, groups: int, whose: str) -> Atom:
    """Heads beside others than those that they belong to, in any gauge: by what the rows of a head span.

    Args:
        names: Projections and biases whose heads move together.
        roles: The projections.
        heads: How many there are.
        partner: A projection whose heads lie right, in groups if there are more.
        groups: How many key/value heads there are.
        whose: What to call the heads.
    """

    def undo(x: Parts, y: Parts) -> Undone | None:
        own, other = _same_heads(x, y, roles, heads), _same_heads(x, y, [partner], groups)
        if own is None or other is None:
            return None
        order = torch.cat([(own // (heads // groups) == group).nonzero().flatten() for group in other])
        if torch.equal(order, torch.arange(heads)):
            return None
        found = {n: y[n].reshape(heads, -1)[order].reshape(y[n].shape) for n in names}
        return found, f": in the order {' '.join(map(str, order.tolist()))} they lie beside theirs"

    words = f"{whose} heads of {listed(roles)} lie beside others than theirs"
    fix = "put each head of queries beside the key/value head that it reads, and its output with it"
    return Atom(Defect.head_order, words, fix, tuple(names), undo)


def _same_heads(x: Parts, y: Parts, roles: Sequence[str], heads: int) -> Tensor | None:
    """Which of the original's heads each is by the spaces that their rows span; None where those fill all columns."""
    overlap = torch.zeros(heads, heads, dtype=torch.float64)
    for role in roles:
        spans = [part[role].double().unflatten(0, (heads, -1)).mT for part in (x, y)]
        if 2 * spans[0].shape[-1] > spans[0].shape[-2]:
            return None
        ours, theirs = (torch.linalg.qr(span).Q for span in spans)
        overlap += torch.einsum("adi,bdj->baij", ours, theirs).square().sum((-2, -1))
    return torch.as_tensor(linear_sum_assignment(-overlap)[1])


def lost(role: str, whole: str) -> Atom:
    """A bias, or another parameter, that is missing or zero."""

    def undo(x: Parts, y: Parts) -> Undone | None:
        return ({role: x[role]}, "") if not bool(y[role].any()) and bool(x[role].any()) else None

    words = f"{spelled(role)} is missing or zero, and not in the original"
    return Atom(Defect.lost, words, f"copy {whole} of the original", (role,), undo, restores=True, first=False)


def spelled(role: str) -> str:
    """A role in words."""
    return f"the bias of {role.removesuffix('_bias')}" if role.endswith("_bias") else role.replace("_", " ")


def listed(roles: Sequence[str]) -> str:
    """Roles in words; of many experts only how many."""
    names = list(dict.fromkeys(map(spelled, roles)))
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 4 else ", ".join(names)
