"""What the symmetry group of one attention block is, as data, and the product of factors that follows.

A group says which maps leave the block's function unchanged; it knows no model names. Conventions are
those of the whole package: tokens are row vectors, head `i` computes

    softmax_n( x_m Q_i R_{m-n} K_i^T x_n^T / scale ) x_n V_i O_i^T,      Q, K, V, O of shape (width, features)

and heads come in `kv_heads` key/value heads with `queries_per_kv` query heads each (1: ordinary
multi-head attention). What else attention may do to its scores changes the group: see `AttentionGroup`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.bilinear import Bilinear, BilinearGroup as BilinearGroup, Roles
from isobasin.symmetries.centred import Centred
from isobasin.symmetries.factor import Factor, Parts
from isobasin.symmetries.linear import Linear
from isobasin.symmetries.means import Means
from isobasin.symmetries.normed import Normed
from isobasin.symmetries.permutation import Heads
from isobasin.symmetries.planes import Planes
from isobasin.symmetries.product import Product
from isobasin.symmetries.rotation import Rotation
from isobasin.symmetries.scale import GainScaling, Scale
from isobasin.symmetries.shared_planes import SharedPlanes
from isobasin.symmetries.shift import KeyShift, Shift, Tables, ValueShift
from isobasin.symmetries.weights import AttentionWeights

# The pairs of a block, and what reads each latent.
QUERY_KEY, VALUE_OUTPUT, ROTARY = "query_key", "value_output", "latent.rotary"
READERS = {"query": ("query", "rotary_query"), "key_value": ("key", "value")}


def pair_factors(
    name: str, pair: BilinearGroup, roles: Roles, heads: tuple[int, ...], planes: str = ""
) -> tuple[Bilinear, ...]:
    """The factors of one pair: of the features that don't rotate, and of those that do.

    Args:
        name: Of the pair.
        pair: Its features.
        roles: Its weights.
        heads: How many maps, see `Bilinear`.
        planes: The name of the part of planes in elements, if it is another than usual.
    """
    found: list[Bilinear] = (
        [Linear(f"{name}.matrix", name, pair, roles, heads, len(pair.linear))] if pair.linear else []
    )
    # Softmax cancels no bias that rotates.
    roles, planes = replace(roles, free=None), planes or f"{name}.planes"
    if pair.alone:
        found.append(Planes(planes, name, pair, roles, heads, 1))
    for size in sorted(set(map(len, pair.alike))):
        found.append(SharedPlanes(f"{planes}_{size}", name, pair, roles, heads, size))
    return tuple(found)


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
    def rotary_factors(self) -> tuple[Bilinear, ...]:
        """The maps of all rotary queries with the one rotary key."""
        roles = Roles(("rotary_query",), ("rotary_key", "rotary_key_bias"))
        return pair_factors(ROTARY, self.rotary, roles, (), ROTARY)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Of each latent its rotation and the scales of its gains."""
        found: list[Factor] = []
        for name, width in self.widths.items():
            down = f"{name}_down"
            part, gain, readers = f"latent.{name}", f"{down}_gain", READERS[name]
            found.append(Rotation(part, width, (down, f"{down}_bias"), readers))
            found.append(GainScaling(f"{part}_trades", (width,), Scale.signed, (gain,), readers=readers))
        return tuple(found)

    def __str__(self) -> str:
        latents = [f"O({n}) × (R*)^{n} ({name.replace('_', '-')} latent)" for name, n in self.widths.items()]
        return " × ".join([f"{_formula(self.rotary_factors)} (rotary key)", *latents])


@dataclass(frozen=True)
class AttentionGroup(Product[AttentionElement, AttentionWeights]):
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
        kv_heads: Number of key/value heads, g.
        queries_per_kv: Query heads per key/value head, s.
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
            vector of ones for each. 0 where no LayerNorm takes that away. `AttentionBlock` leaves these as they are.
    """

    kv_heads: int
    queries_per_kv: int
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

    element = AttentionElement

    def __post_init__(self) -> None:
        if self.norm is not None and self.query_key.alike:
            raise ValueError("of normalised queries and keys no planes may turn alike: their group isn't known")

    @property
    def rotary(self) -> BilinearGroup:
        """The pair that rotary positions turn: of every head, or the one that all share."""
        return self.query_key if self.latent is None else self.latent.rotary

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.kv_heads * self.queries_per_kv

    @property
    def table_shifts(self) -> int:
        """How many constants of a query head's table are free."""
        return max(self.table, default=-1) + 1

    @cached_property
    def normed(self) -> Normed | None:
        """What is left of the maps of queries and keys where something normalises them."""
        if self.norm is None:
            return None
        kind = Centred if self.norm is QueryKeyNorm.centred else Normed
        return kind(self.query_key, self.kv_heads, self.queries_per_kv, own=self.norm is not QueryKeyNorm.head)

    @cached_property
    def pairs(self) -> dict[str, tuple[Bilinear, ...]]:
        """What a head computes with, by name: the factors of each pair, whether a norm leaves them or not."""
        key = Roles(("query", "query_bias"), ("key", "key_bias"), "key_bias" if self.key_shift else None)
        value = Roles(("value", "value_bias"), ("output",), "value_bias" if self.value_shift else None)
        heads, rotary = (self.kv_heads,), () if self.latent is None else self.latent.rotary_factors
        return {
            QUERY_KEY: (*pair_factors(QUERY_KEY, self.query_key, key, heads), *rotary),
            VALUE_OUTPUT: pair_factors(VALUE_OUTPUT, self.value_output, value, heads),
        }

    def build(self) -> tuple[Factor, ...]:
        """Heads first; then latents, maps of every pair, what is free to shift, and what a norm leaves."""
        heads = (self.kv_heads,)
        free = self.query_key.linear
        key = "key_shift", "key_bias", (*heads, len(free)), self.key_shift, self.query_key.features, free
        value = "value_shift", "value_bias", (*heads, self.value_output.features), self.value_shift
        shape = (*heads, self.queries_per_kv, self.table_shifts)
        return (
            Heads(self.kv_heads, self.queries_per_kv, self.permuted),
            *(() if self.latent is None else self.latent.factors),
            *(self.pairs[QUERY_KEY] if self.normed is None else ()),
            *self.pairs[VALUE_OUTPUT],
            KeyShift(*key),
            ValueShift(*value),
            *([Tables("table_shift", "table", shape, numbers=self.table)] if self.table else []),
            *(() if self.normed is None else (self.normed,)),
        )

    @property
    def drawn(self) -> Sequence[Factor]:
        """Planes come before what doesn't rotate, and what heads share comes last.

        The maps that a norm doesn't leave are drawn first and then forgotten.
        """
        pair, value = (
            sorted(self.pairs[name], key=lambda factor: isinstance(factor, Linear))
            for name in (QUERY_KEY, VALUE_OUTPUT)
        )
        shared = () if self.latent is None else self.latent.factors
        own = [factor for factor in self.factors[1:] if factor not in (*pair, *value, *shared)]
        pair, rotary = ([x for x in pair if bool(x.heads) is alone] for alone in (True, False))
        return (self.factors[0], *pair, *value, *own, *rotary, *shared)

    @property
    def unread(self) -> tuple[Factor, ...]:
        """The means of queries and keys."""
        return (Means(self.kv_heads, self.queries_per_kv, self.means),) if self.means else ()

    @property
    def inside(self) -> frozenset[str]:
        """The weights that read a latent, and not the stream."""
        return frozenset(name for factor in self.factors if isinstance(factor, Rotation) for name in factor.readers)

    def unsigned(self, weights: Parts) -> Parts:
        """The weights that matching compares: gains, where there are any, made positive by column signs."""
        return weights if self.normed is None else self.normed.unsigned(weights)

    def __str__(self) -> str:
        query_key = _formula([factor for factor in self.pairs[QUERY_KEY] if factor.heads])
        shifts = [factor for factor in self.factors if isinstance(factor, Shift) and factor.dimension]
        inside = [*shifts, *self.unread]
        if self.normed is not None:
            query_key, inside = self.normed.maps, [*inside, *([self.normed] if self.normed.own else [])]
        own = [f"QK {query_key}", f"VO {_formula(self.pairs[VALUE_OUTPUT])}", *map(str, inside)]
        found = f"({' × '.join(own)})^{self.kv_heads}" + (f" ⋊ {self.factors[0]}" if self.permuted else "")
        shared = [self.latent] if self.latent else [self.normed] if self.normed and not self.normed.own else []
        return " × ".join([found, *map(str, shared)])


def _formula(factors: Sequence[Factor]) -> str:
    return " × ".join(map(str, factors)) or "1"
