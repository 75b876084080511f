"""What the symmetry group of one attention block is, as data.

A group says which maps leave the block's function unchanged; it knows no model names. Conventions are
those of the whole package: tokens are row vectors, head `i` computes

    softmax_n( x_m Q_i R_{m-n} K_i^T x_n^T / scale ) x_n V_i O_i^T,      Q, K, V, O of shape (width, features)

and heads come in `groups` key/value heads with `queries` query heads each (`queries == 1`: ordinary
multi-head attention). What else attention may do to its scores changes the group: see `AttentionGroup`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

Columns = slice | list[int]


def _columns(indices: Sequence[int]) -> Columns:
    """Indices as a slice where they are evenly spaced, which makes a view of a tensor instead of a copy."""
    first, step = (indices[0], indices[1] - indices[0]) if len(indices) > 1 else (indices[0] if indices else 0, 1)
    even = list(range(first, first + step * len(indices), step)) if step > 0 else None
    return slice(first, first + step * len(indices), step) if even == list(indices) else list(indices)


@dataclass(frozen=True)
class BilinearGroup:
    """The maps that leave `L R^T` (or `L R_θ R^T` for every rotation angle) of one head unchanged.

    A map `U` acts as `L <- L U^T`, `R <- R U^{-1}`. On coordinates that are not rotated `U` is any
    invertible matrix, GL(n); on the pairs of coordinates in `planes`, which rotary positions rotate at
    pairwise distinct frequencies, it is one non-zero complex number per pair, H = (C*)^p
    (arXiv 2606.17830, Theorems 2.1, 4.1 and 4.2).

    Attributes:
        features: Width of a head, d_h.
        planes: Pairs `(a, b)` of feature indices that rotate together as `a + ib`.
    """

    features: int
    planes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        flat = [i for plane in self.planes for i in plane]
        if len(set(flat)) != len(flat) or any(not 0 <= i < self.features for i in flat):
            raise ValueError(f"planes must be disjoint pairs of indices below {self.features}: {self.planes}")

    @cached_property
    def linear(self) -> tuple[int, ...]:
        """The feature indices that no plane holds, in order: GL(len(linear)) acts on them."""
        rotated = {i for plane in self.planes for i in plane}
        return tuple(i for i in range(self.features) if i not in rotated)

    @cached_property
    def columns(self) -> tuple[Columns, Columns, Columns]:
        """How to index the unrotated features, and the real and the imaginary ones of the planes."""
        return _columns(self.linear), _columns([a for a, _ in self.planes]), _columns([b for _, b in self.planes])

    @property
    def dimension(self) -> int:
        """Real dimension: n² for GL(n) and 2 for each plane."""
        return len(self.linear) ** 2 + 2 * len(self.planes)

    def __str__(self) -> str:
        parts = [f"GL({len(self.linear)})"] if self.linear else []
        if self.planes:
            parts.append(f"(C*)^{len(self.planes)}")
        return " × ".join(parts) or "1"


class QueryKeyNorm(StrEnum):
    """A normalisation of queries and keys, with learned gains, before they rotate.

    * head: by the root mean square of each head's features; all heads share one gain per feature.
    * full: by that of all heads' features together; each has a gain of its own.
    * centred: LayerNorm over the features of each head, which has gains of its own.
    """

    head = "head"
    full = "full"
    centred = "centred"


@dataclass(frozen=True)
class LatentGroup:
    """What latent attention shares among its heads, and what is free of it.

    Keys k and values v read a latent `z = norm(x D) ∘ a` of the stream x, and queries q and rotary queries r another
    one, or the stream itself. One rotary key `t = x T` serves all heads:

        softmax_n( q_m k_n^T + r_m R_{m-n} t_n^T ) v_n O^T

    With its gains folded into what reads it, the root-mean-square norm of a latent lets orthogonal maps pass,
    `D <- D P`, readers `W <- P^T W`; gains are then free, and trade with the readers' rows. (A scale of D is a symmetry
    only if the norm's epsilon is zero.)

    Attributes:
        query: Width of the queries' latent; 0 where they read the stream.
        key_value: Width of the latent of keys and values.
        rotary: Continuous symmetry of all heads' rotary queries with the one key; all of its features rotate.
    """

    query: int
    key_value: int
    rotary: BilinearGroup

    @property
    def widths(self) -> dict[str, int]:
        """The latents that there are, by name."""
        return {name: width for name in ("query", "key_value") if (width := getattr(self, name))}

    @property
    def dimension(self) -> int:
        """Dimension of the continuous part: rotations and gains of the latents, and the rotary maps."""
        return self.rotary.dimension + sum(n * (n + 1) // 2 for n in self.widths.values())

    def __str__(self) -> str:
        latents = [f"O({n}) × (R*)^{n} ({name.replace('_', '-')} latent)" for name, n in self.widths.items()]
        return " × ".join([f"{self.rotary} (rotary key)", *latents])


@dataclass(frozen=True)
class AttentionGroup:
    """The symmetry group of one attention block.

    With normalised queries and keys, `q = norm(x Q) ∘ a`, `k = norm(x K) ∘ b`, no continuous map of a head's Q and K
    commutes with norm and gains. What is left of U: the sign of every plane (of every unrotated feature) of a
    key/value head; and, where gains go along, quarter turns of planes and permutations of unrotated features, of all
    heads at once where they share the gains. The gains themselves trade, `a <- a c`, `b <- b / c` with one c for every
    plane and every unrotated feature. A feature of queries alone, or of keys alone, changes its sign with its gain: of
    all heads that share the gain. (Scales of Q and K are symmetries only if the norm's epsilon is zero, so they are
    left out.)

    LayerNorm doesn't see what is added to all features of a head's queries, or of its keys, at once. What else it lets
    pass keeps the vector of ones up to its sign: the sign is one of all features, and a quarter turn lets a plane's
    features change places while one of its gains changes sign. Each query head, and each key, changes its sign with
    all of its gains.

    Attributes:
        groups: Number of key/value heads, g.
        queries: Query heads per key/value head, s.
        query_key: Continuous symmetry of each key/value head's Q-K pair, if nothing normalises it.
        value_output: Continuous symmetry of each key/value head's V-O pair.
        key_shift: The key bias is free on the unrotated features, since softmax cancels it.
        value_shift: The value bias trades with the output bias: `b_V += v`, `b_O -= v O^T`.
        norm: How queries and keys are normalised; None if they aren't.
        permuted: Whether heads may be permuted; not where each has a slope of its own that is no parameter (ALiBi).
        table: For each entry of a query head's table of relative position biases, the number of the constant that it
            shares; softmax cancels what is added to all entries of one number. Empty without such tables.
        sink: Whether every query head has a score that attention may go to instead of any token.
        latent: What heads share in latent attention, where their Q-K pair is all that doesn't rotate; None elsewhere.
        means: The numbers that a head's queries, and its keys, read, their bias among them: one free multiple of the
            vector of ones for each. 0 where no LayerNorm takes that away. `AttentionSite` leaves these as they are.
    """

    groups: int
    queries: int
    query_key: BilinearGroup
    value_output: BilinearGroup
    key_shift: bool = False
    value_shift: bool = False
    norm: QueryKeyNorm | None = None
    permuted: bool = True
    table: tuple[int, ...] = ()
    sink: bool = False
    latent: LatentGroup | None = None
    means: int = 0

    @property
    def rotary(self) -> BilinearGroup:
        """The pair that rotary positions turn: of every head, or the one that all share."""
        return self.query_key if self.latent is None else self.latent.rotary

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.groups * self.queries

    @property
    def table_shifts(self) -> int:
        """How many constants of a query head's table are free."""
        return max(self.table, default=-1) + 1

    @property
    def own_gains(self) -> bool:
        """Whether every head has gains of its own."""
        return self.norm in (QueryKeyNorm.full, QueryKeyNorm.centred)

    @property
    def trades(self) -> tuple[int, int]:
        """How many gains trade: heads that have their own, and for each the planes and the unrotated features."""
        if self.norm is None:
            return 0, 0
        features = len(self.query_key.planes) + len(self.query_key.linear)
        return (self.groups if self.own_gains else 1), features

    @property
    def signs(self) -> int:
        """How many signs of a query, and of a key, change with gains: of every feature, or one under LayerNorm."""
        if self.norm is None:
            return 0
        return 1 if self.norm is QueryKeyNorm.centred else self.query_key.features

    @property
    def dimension(self) -> int:
        """Dimension of the continuous part; the discrete one adds nothing."""
        shifts = len(self.query_key.linear) * self.key_shift + self.value_output.features * self.value_shift
        query_key = self.query_key.dimension if self.norm is None else 0
        heads, trades = self.trades
        tables = self.heads * self.table_shifts
        shared = 0 if self.latent is None else self.latent.dimension
        shared += (self.heads + self.groups) * self.means
        return self.groups * (query_key + self.value_output.dimension + shifts) + heads * trades + tables + shared

    def __str__(self) -> str:
        shifts = [f"R^{len(self.query_key.linear)} (key bias)"] if self.key_shift and self.query_key.linear else []
        if self.value_shift:
            shifts.append(f"R^{self.value_output.features} (value bias)")
        if self.table_shifts:
            shifts.append(f"R^{self.queries * self.table_shifts} (position biases)")
        trades = self.trades[1]
        query_key = f"{{±1}}^{trades}" if self.norm else str(self.query_key)
        # Signs of columns make up trades of -1; under LayerNorm a key's sign is made of its queries' and of trades.
        columns = (self.queries + 1 if self.own_gains else 2) * self.signs
        gains = f"(R_{{>0}})^{trades} × {{±1}}^{columns} (gains)"
        if self.norm is QueryKeyNorm.centred:
            query_key, gains = f"{{±1}}^{columns}", f"(R*)^{trades} (gains)"
            shifts.append(f"R^{(self.queries + 1) * self.means} (means)")
        if self.own_gains:
            shifts.append(gains)
        factors = " × ".join([f"QK {query_key}", f"VO {self.value_output}", *shifts])
        discrete = f"S_{self.groups}" if self.queries == 1 else f"S_{self.queries} wr S_{self.groups}"
        found = f"({factors})^{self.groups}" + (f" ⋊ {discrete}" if self.permuted else "")
        found += "" if self.latent is None else f" × {self.latent}"
        return f"{found} × {gains}" if self.norm is QueryKeyNorm.head else found
