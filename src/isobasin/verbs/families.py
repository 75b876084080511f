"""The groups of every supported model type in formulas, from the facts of the families.

`python -m isobasin.verbs.families` prints the page docs/families.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from isobasin.architectures.configuration import build
from isobasin.architectures.examples import tiny
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.layouts import half_planes
from isobasin.architectures.registry import Family, families
from isobasin.plain import Plain
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup
from isobasin.symmetries.stream import StreamGroup

COLUMNS = ("model type", "attention", "feed-forward", "residual stream", "not moved")
LETTERS = (
    "d: width of the stream; h: query heads, of d_h features, r of which rotate where only some do; g: key/value heads "
    "where they are fewer; f: feed-forward units; e: experts, in k groups where there are some. Tied: where the head "
    "is the embedding. Latent attention: keys of d_n features and values of d_v in a head, r features of the one "
    "rotary key, latents of c_q and c features."
)
_UNKNOWN = "not known"
# Sizes that letters stand for: no two of them, nor sums and halves that formulas have, are equal.
_HEADS, _QUERIES, _ROTATED, _FEATURES, _VALUES, _QUERY_LATENT, _LATENT, _WIDTH = (
    7,
    50,
    400,
    1000,
    1100,
    3001,
    3002,
    9000,
)
_PAGE = f"""# Families

Made by `make pages` from what the families state. {LETTERS}

The groups are those of a model type's usual form. Its configuration may have other biases, share of rotating features,
grouped queries or activation: `isobasin symmetry MODEL` prints the groups of a checkpoint, and
[`isobasin certify`](certify.md) measures that they are exact. [The mathematics](maths.md) explains them.

What the last column lists stays as it is in every scope. Layers of a model with several stacks are counted through all
of them: text tower, then vision tower; encoder, then decoder, then the decoder's cross-attention. Layers that share
their tensors are one block. An expert that all tokens share is a block of its own beside the others.

"""


@dataclass(frozen=True)
class FamilySymmetry(Plain):
    """The groups of a model type's usual form.

    Attributes:
        model_type: As in `config.json`.
        attention: The different groups of its attention blocks, in the order of the layers.
        feedforward: Those of its feed-forward blocks; none where they aren't known.
        stream: The group of its residual stream, "not known" where it isn't.
        not_moved: What stays as it is in every scope.
    """

    model_type: str
    attention: tuple[str, ...]
    feedforward: tuple[str, ...]
    stream: str
    not_moved: tuple[str, ...]

    def row(self) -> tuple[str, ...]:
        """The entries of `COLUMNS`."""
        feedforward = "; ".join(self.feedforward) or _UNKNOWN
        return self.model_type, "; ".join(self.attention), feedforward, self.stream, ", ".join(self.not_moved) or "–"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = super().to_json()
        return found | {"residual": None if found.pop("stream") == _UNKNOWN else self.stream}


def all_families() -> tuple[FamilySymmetry, ...]:
    """What every family states of its tiny model."""
    return tuple(_stated(entry) for entry in families())


def _stated(entry: Family) -> FamilySymmetry:
    config = build(entry.model_type, tiny(entry.model_type).config)
    blocks, feedforwards = entry.blocks(config), entry.feedforwards(config)
    fixed = {
        "order of heads": not all(block.group.permuted for block in blocks),
        "feed-forward blocks": not feedforwards,
        "residual stream": entry.stream is None,
    }
    return FamilySymmetry(
        entry.model_type,
        tuple(dict.fromkeys(attention_formula(block.group) for block in blocks)),
        tuple(dict.fromkeys(feedforward_formula(block) for block in feedforwards)),
        _stream_formula(entry, config, blocks[0].width),
        (*(part for part, stays in fixed.items() if stays), *entry.beyond),
    )


def attention_formula(group: AttentionGroup) -> str:
    """The group as it prints, with letters for its sizes."""
    latent, queries = group.latent, _QUERIES if group.queries_per_kv > 1 else 1
    like = replace(
        group,
        kv_heads=_HEADS,
        queries_per_kv=queries,
        query_key=_like(group.query_key, _FEATURES),
        value_output=_like(group.value_output, _FEATURES if latent is None else _VALUES),
        latent=latent and LatentGroup(latent.query and _QUERY_LATENT, _LATENT, _like(latent.rotary, _ROTATED)),
        means=group.means and _WIDTH,
    )
    letters = {
        **{_HEADS: "h" if queries == 1 else "g", _QUERIES: "(h/g)", _QUERIES + 1: "(h/g + 1)"},
        **{_FEATURES: "d_h" if latent is None else "d_n", _VALUES: "d_v", _QUERY_LATENT: "c_q", _LATENT: "c"},
        **{_ROTATED // 2: "(r/2)", _FEATURES // 2: "(d_h/2)"},
        **{_FEATURES - _ROTATED: "(d_h − r)", _FEATURES - _ROTATED // 2: "(d_h − r/2)"},
        **{2 * _FEATURES: "(2d_h)", (_QUERIES + 1) * _FEATURES: "((h/g + 1)d_h)"},
        **{2 * _WIDTH: "(2d)", (_QUERIES + 1) * _WIDTH: "((h/g + 1)d)"},
    }
    return _lettered(like, letters)


def _like(pair: BilinearGroup, features: int) -> BilinearGroup:
    """A pair of so many features, all of which rotate, or none, or some, as in another."""
    some = features if 2 * len(pair.planes) == pair.features else _ROTATED
    return BilinearGroup(features, half_planes(some if pair.planes else 0))


def feedforward_formula(block: FeedForward) -> str:
    """The group as it prints, with letters for its units, its experts and the stream's width."""
    group, groups = block.group, _HEADS if block.group.expert_groups > 1 else 1
    more = {"experts": _HEADS * _QUERIES, "expert_groups": groups, "shift": group.shift and group.shift + _WIDTH}
    like = replace(group, units=_FEATURES, **({} if group.experts is None else more))
    letters = {_FEATURES: "f", _HEADS * _QUERIES: "e", _QUERIES: "(e/k)", _HEADS: "k"}
    return _lettered(like, letters | {_WIDTH + block.width: "d", _WIDTH + block.width + 1: "(d + 1)"})


def _stream_formula(entry: Family, config: Any, width: int) -> str:
    """The group of the residual stream, and that where the head is the embedding if it may be."""
    if entry.stream is None:
        return _UNKNOWN
    stream = entry.stream(config)
    letters = {width: "d", width - 1: "d − 1"}
    free, tied = (_lettered(StreamGroup(width, stream.basis(kept=kept)), letters) for kept in (False, True))
    return f"{free}; tied: {tied}" if stream.tied else free


def _lettered(group: object, letters: dict[int, str]) -> str:
    """A group as it prints, with letters for these numbers."""
    formula = re.sub(r"\d+", lambda found: letters.get(int(found[0]), found[0]), str(group))
    return re.sub(r"\(\(([^()]*)\)\)", r"(\1)", formula)


def page(found: Iterable[FamilySymmetry]) -> str:
    """The page docs/families.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for family in found:
        *groups, fixed = family.row()
        cells = [cell if cell in (_UNKNOWN, family.model_type) else f"`{cell}`" for cell in groups]
        lines.append("| " + " | ".join([*cells, fixed]) + " |")
    return _PAGE + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(all_families()), end="")
