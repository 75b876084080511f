"""What is left of a head's Q-K group where queries and keys are normalised: signs, turns, and gains that trade.

With `q = norm(x Q) ∘ a` and `k = norm(x K) ∘ b` before they rotate, these leave all scores as they are:

    signs:          q_p <- -q_p, k_p <- -k_p on a plane, or an unrotated feature, of one key/value head
    quarter turns:  q_p <- i q_p, k_p <- i k_p on a plane, while its two gains change places
    permutations:   of unrotated features, gains likewise
    trades:         a <- a c, b <- b / c, with one c ≠ 0 for each plane and each unrotated feature
    column signs:   a feature of q, or of k, with its gain, in all heads that share the gain

Heads that share gains turn and permute together. A trade of -1 is made of signs. Turns, permutations and signs of both
q and k are complex numbers that are ±1 and ±i and a matrix that is a signed permutation, in the places that the maps
of `planes` and `linear` have without a norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.bilinear import BilinearGroup, column_squares, join, linear_part, plane_part
from isobasin.symmetries.factor import Factor, Parts, eye
from isobasin.symmetries.loose import Loose
from isobasin.symmetries.means import READERS

MATRIX, PLANES, TRADES = "query_key.matrix", "query_key.planes", "trades"
SIGNS = {"query": "query_signs", "key": "key_signs"}


@dataclass(frozen=True)
class Normed(Factor):
    """Signs, turns, permutations and trades of heads whose features are divided by their root mean square.

    Attributes:
        pair: The features of queries and keys.
        kv_heads: Number of key/value heads, g.
        queries_per_kv: Query heads of each, s.
        own: Whether every head has gains of its own; otherwise all share them.
    """

    pair: BilinearGroup
    kv_heads: int
    queries_per_kv: int
    own: bool

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """Matrix and planes of every key/value head; trades and column signs as the gains have them."""
        one = ("head",)
        return {MATRIX: one, PLANES: one, TRADES: one, SIGNS["query"]: ("head", "query"), SIGNS["key"]: one}

    @property
    def holders(self) -> int:
        """How many key/value heads have gains of their own."""
        return self.kv_heads if self.own else 1

    @property
    def trades(self) -> int:
        """Gains of a holder that trade: of the planes, then of the unrotated features."""
        return len(self.pair.planes) + len(self.pair.linear)

    @property
    def signs(self) -> int:
        """How many column signs a query, and a key, has."""
        return self.pair.features

    @property
    def _sign_shapes(self) -> dict[str, tuple[int, ...]]:
        queries = self.queries_per_kv if self.own else 1
        return {SIGNS["query"]: (self.holders, queries, self.signs), SIGNS["key"]: (self.holders, self.signs)}

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """Signs and trades of 1."""

        def ones(*shape: int) -> Tensor:
            return torch.ones(*batch, *shape, dtype=torch.float64, device=device)

        return {
            MATRIX: eye(len(self.pair.linear), (*batch, self.kv_heads), device),
            PLANES: ones(self.kv_heads, len(self.pair.planes)).to(torch.complex128),
            TRADES: ones(self.holders, self.trades),
            **{name: ones(*shape) for name, shape in self._sign_shapes.items()},
        }

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """Random signs, turns and permutations, trades up to `condition`, evenly in the logarithm, and column signs."""
        n, p, heads = len(self.pair.linear), len(self.pair.planes), self.holders

        def coins(*shape: int) -> Tensor:
            return torch.randint(2, (*batch, *shape), generator=generator).bool()

        def signs(*shape: int) -> Tensor:
            return torch.where(coins(*shape), 1.0, -1.0).double()

        turns = torch.where(coins(heads, p), torch.tensor(1j), torch.tensor(1.0 + 0j)).to(torch.complex128)
        order = torch.rand(*batch, heads, n, generator=generator, dtype=torch.float64).argsort(-1)
        matrix = torch.nn.functional.one_hot(order, n).double() if n else torch.zeros(*batch, heads, 0, 0).double()
        rows, flips = self._sample_signs(signs)
        size = 2 * torch.rand(*batch, heads, self.trades, generator=generator, dtype=torch.float64) - 1
        return {
            MATRIX: matrix.expand(*batch, self.kv_heads, n, n) * rows.unsqueeze(-1),
            PLANES: turns.expand(*batch, self.kv_heads, p) * flips,
            TRADES: (0.5 * math.log(condition) * size).exp() * signs(heads, self.trades),
            **{name: signs(*shape) for name, shape in self._sign_shapes.items()},
        }

    def _sample_signs(self, signs: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Of every unrotated feature and of every plane."""
        rows = signs(self.kv_heads, len(self.pair.linear))
        return rows, signs(self.kv_heads, len(self.pair.planes))

    def compose(self, second: Parts, first: Parts) -> Parts:
        """Gains of the first go along with the turns and permutations of the second."""
        found = {
            MATRIX: second[MATRIX] @ first[MATRIX],
            PLANES: second[PLANES] * first[PLANES],
            TRADES: self._permuted(second, first[TRADES]) * second[TRADES],
            **{name: sign * second[name] for name, sign in self._carried_signs(second, first).items()},
        }
        return self._settled(found, second, first)

    def inverse(self, element: Parts) -> Parts:
        """Gains of the element go along with its turns and permutations backwards."""
        back = {MATRIX: torch.linalg.inv(element[MATRIX]), PLANES: 1 / element[PLANES]}
        back[TRADES] = self._permuted(back, 1 / element[TRADES])
        return self._settled({**back, **self._carried_signs(back, element)}, element)

    def _permuted(self, element: Parts, trades: Tensor) -> Tensor:
        """Trades after an element's permutation of unrotated features, `(..., holders, p + n)`."""
        planes, linear = trades.split([len(self.pair.planes), len(self.pair.linear)], -1)
        moves = self._held(element)[MATRIX].abs()
        return torch.cat([planes, (moves @ linear.unsqueeze(-1)).squeeze(-1)], -1)

    def _carried_signs(self, element: Parts, signs: Parts) -> Parts:
        """Column signs after an element's turns and permutations."""
        held, query, key = self._held(element), signs[SIGNS["query"]], signs[SIGNS["key"]].unsqueeze(-2)
        return {
            SIGNS["query"]: self.carried_gains(held, query),
            SIGNS["key"]: self.carried_gains(held, key).squeeze(-2),
        }

    def _settled(self, found: Parts, *factors: Parts) -> Parts:
        """A product of elements, or an inverse, as the group writes it."""
        return found

    def _held(self, element: Parts) -> Parts:
        """The heads whose turns and permutations the gains follow: all, or the first where they share."""
        return {MATRIX: element[MATRIX][..., : self.holders, :, :], PLANES: element[PLANES][..., : self.holders, :]}

    def contains(self, element: Parts) -> bool:
        """Whether these are signs, turns and permutations that heads with common gains share, and trades that exist."""
        planes, moves = element[PLANES], element[MATRIX].abs()
        units = planes.real.abs() + planes.imag.abs() == 1
        exact = bool((units & (planes.real * planes.imag == 0)).all())
        exact &= bool(((moves == 0) | (moves == 1)).all() and (moves.sum(-1) == 1).all() and (moves.sum(-2) == 1).all())
        held = self._held(element)
        shared = bool((moves == held[MATRIX].abs()).all() and (turned(planes) == turned(held[PLANES])).all())
        signs = all(bool((element[name].abs() == 1).all()) for name in SIGNS.values())
        return exact and shared and signs and bool((element[TRADES] != 0).all())

    def act(self, element: Parts, weights: Parts) -> Parts:
        """Turns, permutations and signs of Q and K, what gains become by these, trades, and column signs at last."""
        moved, held = dict(weights), self._held(element)
        for name in READERS:
            if name in weights:
                x = weights[name]
                rows = x.reshape(*element[PLANES].shape[:-1], -1, x.shape[-1])
                moved[name] = self._moved(element, rows).reshape(x.shape)
        if "query_gain" in weights:
            trades = self._spread(element[TRADES])
            query, key = weights["query_gain"], weights["key_gain"].unsqueeze(-2)
            moved["query_gain"] = self.carried_gains(held, query) * trades.unsqueeze(-2)
            moved["key_gain"] = self.carried_gains(held, key).squeeze(-2) / trades
        return flipped(moved, *(element[name] for name in SIGNS.values()))

    def _moved(self, element: Parts, rows: Tensor) -> Tensor:
        """Q or K, `(*batch, g, rows, features)`: a signed permutation, and turns."""
        linear = linear_part(self.pair, rows) @ element[MATRIX].mT
        if not self.pair.planes:
            return linear
        return join(self.pair, linear, plane_part(self.pair, rows) * element[PLANES].unsqueeze(-2))

    def carried_gains(self, held: Parts, gains: Tensor) -> Tensor:
        """Gains, `(*batch, holders, rows, features)`, that go along with the holders' turns and permutations."""
        linear = linear_part(self.pair, gains) @ held[MATRIX].abs().mT
        if not self.pair.planes:
            return linear
        planes = plane_part(self.pair, gains)
        return join(
            self.pair, linear, torch.where(turned(held[PLANES]).unsqueeze(-2), self._turned_gains(planes), planes)
        )

    def _turned_gains(self, planes: Tensor) -> Tensor:
        """A plane's two gains after its quarter turn."""
        return swapped(planes)

    def _spread(self, trades: Tensor) -> Tensor:
        """One factor per feature, `(..., features)`, from one per plane and then one per unrotated feature."""
        planes, linear = trades.split([len(self.pair.planes), len(self.pair.linear)], -1)
        return join(self.pair, linear.unsqueeze(-2), torch.complex(planes, planes).unsqueeze(-2)).squeeze(-2)

    @property
    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """Logarithms of trades."""
        return {TRADES: (self.holders, self.trades)}

    def exponential(self, coordinates: Tensor) -> Tensor:
        """`exp(l)`."""
        return coordinates.exp()

    def sizes(self, element: Parts) -> dict[str, Tensor]:
        """Signed permutations and turns: all 1, or what makes a file's parts none."""
        return {"query_key": torch.cat([torch.linalg.svdvals(element[MATRIX]), element[PLANES].abs()], -1)}

    def deciding(self, weights: Parts) -> tuple[Tensor, Tensor]:
        """The numbers of queries and of keys whose signs column signs choose: gains."""
        return weights["query_gain"], weights["key_gain"]

    def unsigned(self, weights: Parts) -> Parts:
        """The weights with the column signs that make all `deciding` numbers positive: what matching compares."""
        return flipped(weights, *(signs_of(x) for x in self.deciding(weights)))

    def tall(self, weights: Parts) -> tuple[Tensor, Tensor]:
        """Queries, those of one key below each other, and keys, `(..., g, rows, features)`, biases as last rows."""
        query, key = (
            torch.cat([weights[n], weights[f"{n}_bias"].unsqueeze(-2)], -2) if f"{n}_bias" in weights else weights[n]
            for n in ("query", "key")
        )
        return query.flatten(-3, -2), key

    def canonical(self, weights: Parts, loose: Loose) -> Parts:
        """Larger halves of planes first, features by size, signs as `Loose.phase` has them, gains of equal norms."""
        plain = self.unsigned(weights)
        columns = self.tall(plain)
        gains = plain["query_gain"], plain["key_gain"].unsqueeze(-2)
        turns, moves = self._canonical_order(columns, gains, loose)
        found = {**self.identity((), moves.device), **self._canonical_signs(columns, turns, moves, loose)}
        found[TRADES] = self._canonical_trades(found, gains, loose)
        numbers = self.deciding(self.act(found, weights))
        for x in numbers:
            loose.check("gains", x == 0)
        return found | dict(zip(SIGNS.values(), map(signs_of, numbers), strict=True))

    def _canonical_order(
        self, columns: tuple[Tensor, Tensor], gains: tuple[Tensor, Tensor], loose: Loose
    ) -> tuple[Tensor, Tensor]:
        """Turns of planes and permutations of features, by what no sign, turn or trade changes of them."""

        def strengths(of: Callable[[Tensor], Tensor]) -> Tensor:
            """Of every feature, `(holders, n)`: heads with common gains together."""
            squares = column_squares(of(columns[0])) * column_squares(of(columns[1]))
            shared = squares if self.own else squares.sum(0, keepdim=True)
            return shared * column_squares(of(gains[0])) * column_squares(of(gains[1]))

        real = strengths(lambda x: plane_part(self.pair, x).real)
        imaginary = strengths(lambda x: plane_part(self.pair, x).imag)
        loose.check("turns", (imaginary - real).abs() <= loose.eps * imaginary.maximum(real))
        turns = torch.where(imaginary > real, torch.tensor(1j, device=real.device), 1.0).to(torch.complex128)
        order = loose.order("features", strengths(lambda x: linear_part(self.pair, x)))
        return turns, torch.eye(len(self.pair.linear)).to(columns[0])[order]

    def _canonical_signs(self, columns: tuple[Tensor, Tensor], turns: Tensor, moves: Tensor, loose: Loose) -> Parts:
        """Turns and permutations with the signs of every plane and feature."""
        planes = (plane_part(self.pair, x) * turns.unsqueeze(-2) for x in columns)
        signs = loose.phase(*(part for x in planes for part in (x.real, x.imag)))
        flips = loose.phase(*(linear_part(self.pair, x) @ moves.mT for x in columns))
        return {MATRIX: moves * flips.unsqueeze(-1), PLANES: turns * signs}

    def _canonical_trades(self, element: Parts, gains: tuple[Tensor, Tensor], loose: Loose) -> Tensor:
        """What gives the gains of queries and keys equal norms, and those of queries a positive sum of cubes."""
        carried = [self.carried_gains(self._held(element), x) for x in gains]
        parts: list[Tensor] = []
        if self.pair.planes:
            planes = [plane_part(self.pair, x) for x in carried]
            parts.append(_trade([torch.cat([x.real, x.imag], -2) for x in planes], loose))
        parts.append(_trade([linear_part(self.pair, x) for x in carried], loose))
        return torch.cat(parts, -1)

    @property
    def columns(self) -> int:
        """Column signs of a key/value head: a key's and its queries', or one key's and one query's."""
        return ((self.queries_per_kv + 1) if self.own else 2) * self.signs

    @property
    def maps(self) -> str:
        """What is left of the maps of Q and K, as it prints."""
        return f"{{±1}}^{self.trades}"

    def __str__(self) -> str:
        return f"(R_{{>0}})^{self.trades} × {{±1}}^{self.columns} (gains)"


def turned(planes: Tensor) -> Tensor:
    """Which planes make a quarter turn, `(..., p)`."""
    return planes.imag.abs() > planes.real.abs()


def swapped(planes: Tensor) -> Tensor:
    """Planes whose two features changed places."""
    return torch.complex(planes.imag, planes.real)


def flipped(weights: Parts, query: Tensor, key: Tensor) -> Parts:
    """The weights with queries' and keys' columns, biases and gains times signs that lie as gains do."""
    found = dict(weights)
    for role, signs in (("query", query), ("key", key)):
        for name in (f"{role}_bias", f"{role}_gain"):
            if name in found:
                found[name] = found[name] * signs
        found[role] = found[role] * signs.unsqueeze(-2)
    return found


def signs_of(x: Tensor) -> Tensor:
    """1 and -1; 1 of zero."""
    return torch.where(x < 0, -1.0, 1.0).to(x)


def _trade(given: list[Tensor], loose: Loose) -> Tensor:
    """One trade for each column of both gains."""
    squares = [column_squares(x) for x in given]
    alive = (squares[0] > 0) & (squares[1] > 0)
    loose.check("gains", ~alive)
    return loose.phase(given[0]) * torch.where(alive, squares[1] / squares[0], 1.0).pow(0.25)
