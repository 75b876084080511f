"""The groups of every supported model type in formulas, from the facts of the families.

`python -m isobasin.verbs.families` prints the page docs/families.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from isobasin.architectures.configuration import build
from isobasin.architectures.examples import tiny
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.registry import Family, families
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup, QueryKeyNorm
from isobasin.symmetries.stream import StreamGroup

COLUMNS = ("model type", "attention", "feed-forward", "residual stream", "not moved")
LETTERS = (
    "d: width of the stream; h: query heads, of d_h features, r of which rotate where only some do; g: key/value heads "
    "where they are fewer; f: feed-forward units; e: experts, in k groups where there are some. Tied: where the head "
    "is the embedding. Latent attention: keys of d_n features and values of d_v in a head, r features of the one "
    "rotary key, latents of c_q and c features."
)
_UNKNOWN = "not known"
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
class FamilySymmetry:
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
        return {
            "model_type": self.model_type,
            "attention": list(self.attention),
            "feedforward": list(self.feedforward),
            "residual": None if self.stream == _UNKNOWN else self.stream,
            "not_moved": list(self.not_moved),
        }


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
    if group.latent is not None:
        return _latent_formula(group.latent)
    pair = group.query_key
    trades = "d_h" if not pair.planes else "(d_h/2)" if not pair.linear else "(d_h − r/2)"
    shifts = [f"R^{'(d_h − r)' if pair.planes else 'd_h'} (key bias)"] if group.key_shift else []
    shifts += ["R^d_h (value bias)"] if group.value_shift else []
    shifts += [f"R^{group.queries_per_kv * group.table_shifts} (position biases)"] if group.table_shifts else []
    # A key's and its queries', or one key's and one query's.
    columns = "2" if group.queries_per_kv == 1 or not (group.normed and group.normed.own) else "(h/g + 1)"
    gains = f"(R_{{>0}})^{trades} × {{±1}}^({columns}d_h) (gains)"
    query_key = f"{{±1}}^{trades}" if group.norm else _bilinear_formula(pair)
    if group.norm is QueryKeyNorm.centred:
        # With biases d + 1 for d: no usual form has them.
        query_key, gains = f"{{±1}}^{columns}", f"(R*)^{trades} (gains)"
        shifts.append(f"R^({columns}d) (means)")
    shifts += [gains] if (group.normed and group.normed.own) else []
    factors = " × ".join([f"QK {query_key}", f"VO {_bilinear_formula(group.value_output)}", *shifts])
    power, discrete = ("h", "S_h") if group.queries_per_kv == 1 else ("g", "S_(h/g) wr S_g")
    found = f"({factors})^{power}" + (f" ⋊ {discrete}" if group.permuted else "")
    return f"{found} × {gains}" if group.norm is QueryKeyNorm.head else found


def _latent_formula(group: LatentGroup) -> str:
    """The group of latent attention with letters for its sizes."""
    letters = {"query": "c_q", "key_value": "c"}
    latents = (f"O({letters[n]}) × (R*)^{letters[n]} ({n.replace('_', '-')} latent)" for n in group.widths)
    return " × ".join(["(QK GL(d_n) × VO GL(d_v))^h ⋊ S_h", "(C*)^(r/2) (rotary key)", *latents])


def _bilinear_formula(pair: BilinearGroup) -> str:
    if not pair.planes:
        return "GL(d_h)"
    return "(C*)^(d_h/2)" if not pair.linear else "GL(d_h − r) × (C*)^(r/2)"


def feedforward_formula(block: FeedForward) -> str:
    """The group as it prints, with letters for its units, its experts and the stream's width."""
    group = block.group
    unit = _lettered(str(group.expert), {group.units: "f"})
    if group.experts is None:
        return unit
    order = "S_e" if group.expert_groups == 1 else "(S_(e/k) wr S_k)"
    router = f" × R^{'d' if group.shift == block.width else '(d + 1)'} (router)" if group.shift else ""
    return f"({unit})^e ⋊ {order}{router}"


def _stream_formula(entry: Family, config: Any, width: int) -> str:
    """The group of the residual stream, and that where the head is the embedding if it may be."""
    if entry.stream is None:
        return _UNKNOWN
    stream = entry.stream(config)
    letters = {width: "d", width - 1: "d − 1"}
    free, tied = (_lettered(str(StreamGroup(width, stream.basis(kept=kept))), letters) for kept in (False, True))
    return f"{free}; tied: {tied}" if stream.tied else free


def _lettered(formula: str, letters: dict[int, str]) -> str:
    """A formula with letters for these numbers."""
    return re.sub(r"\d+", lambda found: letters.get(int(found[0]), found[0]), formula)


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
