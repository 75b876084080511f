"""hypothesis strategies for attention blocks: groups of every kind, weights that fit them, and elements.

Shapes, kinds and seeds are drawn; the numbers come from the seed, so that weights are generic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from isobasin.architectures.building import attention_group
from isobasin.architectures.layouts import Projections, Sizes, half_planes, interleaved_planes
from isobasin.architectures.projection import Layout, Projection
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.function import attend
from isobasin.symmetries.groups import AttentionGroup, QueryKeyNorm
from isobasin.symmetries.weights import AttentionWeights

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


@dataclass(frozen=True)
class Block:
    """One attention block.

    Attributes:
        group: Its group.
        weights: Generic weights of it.
        angles: Rotations for `attend`, `(tokens, planes)`, or None; positions don't start at 0.
        hidden: An input for `attend`, `(batch, tokens, width)`.
        seed: What all numbers come from.
    """

    group: AttentionGroup
    weights: AttentionWeights
    angles: torch.Tensor | None
    hidden: torch.Tensor
    seed: int

    def output(self, weights: AttentionWeights | None = None, *, causal: bool = False) -> torch.Tensor:
        """The block's function at its input, of its own weights or of others."""
        return attend(self.weights if weights is None else weights, self.group, self.hidden, self.angles, causal)


def random_weights(
    group: AttentionGroup, width: int, biases: dict[str, bool], seed: int, batch: tuple[int, ...] = ()
) -> AttentionWeights:
    """Generic weights of a group, with the biases that are asked for."""
    generator = torch.Generator().manual_seed(seed)
    g, s, n, m = group.kv_heads, group.queries_per_kv, group.query_key.features, group.value_output.features
    shapes = {"query": (g, s, width, n), "key": (g, width, n), "value": (g, width, m), "output": (g, s, width, m)}
    bias_shapes = {"query": (g, s, n), "key": (g, n), "value": (g, m), "output": (width,)}
    shapes |= {f"{role}_bias": shape for role, shape in bias_shapes.items() if biases.get(role)}
    if group.normed is not None:
        own = group.normed.own
        shapes |= {"query_gain": (g, s, n) if own else (1, 1, n), "key_gain": (g, n) if own else (1, n)}
    shapes |= {"table": (g, s, len(group.table))} if group.table else {}
    shapes |= {"sink": (g, s)} if group.sink else {}
    shapes |= {} if group.latent is None else _latent_shapes(group, width, biases)
    made = {
        name: torch.randn(*batch, *shape, generator=generator, dtype=torch.float64) / width**0.5
        for name, shape in shapes.items()
    }
    # What reads a latent is divided by its gains: none is near 0.
    return AttentionWeights(**{name: x + x.sgn() * name.endswith("down_gain") for name, x in made.items()})


def _latent_shapes(group: AttentionGroup, width: int, biases: dict[str, bool]) -> dict[str, tuple[int, ...]]:
    """Shapes of all that a latent changes; whether the output has a bias says whether what writes latents has some."""
    latent, biased = group.latent, biases.get("output", False)
    assert latent is not None
    heads, rotary = (group.kv_heads, group.queries_per_kv), latent.rotary.features
    widths = {"query": width, "key_value": width} | latent.widths
    shapes = {
        "query": (*heads, widths["query"], group.query_key.features),
        "rotary_query": (*heads, widths["query"], rotary),
        "rotary_key": (width, rotary),
        "key": (group.kv_heads, widths["key_value"], group.query_key.features),
        "value": (group.kv_heads, widths["key_value"], group.value_output.features),
    }
    shapes |= {"rotary_key_bias": (rotary,)} if biased else {}
    for name, size in latent.widths.items():
        shapes |= {f"{name}_down": (width, size), f"{name}_down_gain": (size,)}
        shapes |= {f"{name}_down_bias": (size,)} if biased else {}
    return shapes


def make_block(group: AttentionGroup, width: int, biases: dict[str, bool], seed: int, tokens: int = 6) -> Block:
    """A block with generic weights, an input for it, and distinct rotary frequencies."""
    generator = torch.Generator().manual_seed(seed + 1)
    planes = max(len(group.rotary.planes), len(group.value_output.planes))
    alike = max((group.rotary, group.value_output), key=lambda pair: len(pair.planes)).frequencies
    frequencies = 1.3 ** -torch.tensor(alike, dtype=torch.float64)
    positions = torch.arange(tokens, dtype=torch.float64) + seed % 5
    angles = positions.unsqueeze(-1) * frequencies if planes else None
    hidden = torch.randn(3, tokens, width, generator=generator, dtype=torch.float64)
    return Block(group, random_weights(group, width, biases, seed), angles, hidden, seed)


def make_group(
    groups: int,
    queries: int,
    features: int,
    biases: dict[str, bool],
    planes: tuple[tuple[int, int], ...] = (),
    *,
    rotary_value: bool = False,
    norm: QueryKeyNorm | None = None,
    permuted: bool = True,
    table: tuple[int, ...] = (),
    sink: bool = False,
    means: int = 0,
) -> AttentionGroup:
    """The group of a block from its sizes, its biases, what rotates, and what else its scores depend on."""
    # LayerNorm of other heads has more symmetries, and is refused.
    if norm is QueryKeyNorm.centred and (not planes or features < 3):
        norm = None
    shape = Sizes(1, groups * queries, groups, features)
    has = (role if biases.get(role) else None for role in ("query", "key", "value", "output"))
    projections = Projections(*(Projection("", bias, Layout("", ())) for bias in has))
    facts: dict[str, Any] = {"rotary_value": rotary_value, "permuted": permuted, "table": table, "sink": sink}
    return replace(attention_group(shape, projections, planes, norm=norm, **facts), means=means)


def score_facts() -> SearchStrategy[dict[str, Any]]:
    """What else scores depend on: norms, slopes, tables of position biases, sinks; most blocks have nothing of it."""
    from hypothesis import strategies as st

    return st.one_of(
        st.just({}),
        st.sampled_from(list(QueryKeyNorm)).map(lambda norm: {"norm": norm}),
        st.sampled_from([{"permuted": False}, {"table": (0, 0, 0)}, {"table": (0, 0, 1, 1, 1)}, {"sink": True}]),
        st.sampled_from([{"norm": QueryKeyNorm.head, "sink": True}, {"norm": QueryKeyNorm.full, "table": (0, 0)}]),
    )


def plane_layouts(features: int) -> SearchStrategy[tuple[tuple[int, int], ...]]:
    """No planes, or some or all features in planes of half or interleaved order."""
    from hypothesis import strategies as st

    rotated = st.integers(0, features // 2).map(lambda pairs: 2 * pairs)
    return st.one_of(rotated.map(half_planes), rotated.map(interleaved_planes))


def seeds() -> SearchStrategy[int]:
    """Seeds of generators."""
    from hypothesis import strategies as st

    return st.integers(0, 2**31 - 1)


def biases() -> SearchStrategy[dict[str, bool]]:
    """Which projections have a bias: the usual combinations, and any other."""
    from hypothesis import strategies as st

    return st.fixed_dictionaries({role: st.booleans() for role in ("query", "key", "value", "output")})


def blocks(max_heads: int = 3, max_queries: int = 3, max_features: int = 5) -> SearchStrategy[Block]:
    """Attention blocks: heads, grouped queries, planes of all layouts, biases, rotary values."""
    from hypothesis import strategies as st

    @st.composite
    def draw_block(draw: Any) -> Block:
        features = draw(st.integers(1, max_features))
        has = draw(biases())
        planes = draw(plane_layouts(features))
        group = make_group(
            draw(st.integers(1, max_heads)),
            draw(st.integers(1, max_queries)),
            features,
            has,
            planes,
            rotary_value=draw(st.booleans()) and bool(planes),
            **draw(score_facts()),
        )
        width = draw(st.integers(features, features + 4))
        return make_block(group, width, has, draw(seeds()), draw(st.integers(2, 7)))

    return draw_block()


def element(group: AttentionGroup, seed: int, condition: float = 10.0) -> AttentionElement:
    """A random element from a seed."""
    return group.sample(torch.Generator().manual_seed(seed), condition=condition)


def conditions(limit: float = 1e3) -> SearchStrategy[float]:
    """Condition numbers from 1 to the limit, evenly in their logarithm."""
    from hypothesis import strategies as st

    return st.floats(0, 1).map(lambda x: limit**x)
