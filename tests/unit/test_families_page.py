"""The groups of all families in formulas, and the page that is made of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from isobasin.architectures.configuration import build
from isobasin.architectures.examples import EXAMPLES
from isobasin.architectures.registry import family
from isobasin.architectures.tiny import TinyModel
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, QueryKeyNorm
from isobasin.verbs.families import all_families, attention_formula, page

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(all_families()), "run make pages"


def with_numbers(formula: str, group: AttentionGroup) -> str:
    """A formula with this group's sizes for its letters."""
    features, planes = group.query_key.features, len(group.rotary.planes)
    sizes = {"d_h": features, "r": 2 * planes, "h": group.heads, "g": group.kv_heads}
    if group.latent is not None:
        values = group.value_output.features
        sizes |= {"d_n": features, "d_v": values, "c_q": group.latent.query, "c": group.latent.key_value}
    sums = {
        "((h/g + 1)d)": (group.queries_per_kv + 1) * group.means,
        "(2d)": 2 * group.means,
        "((h/g + 1)d_h)": (group.queries_per_kv + 1) * features,
        "(2d_h)": 2 * features,
        "(h/g + 1)": group.queries_per_kv + 1,
        "(d_h/2)": features // 2,
        "(d_h − r/2)": features - planes,
        "(r/2)": planes,
        "(h/g)": group.queries_per_kv,
    }
    for letters, number in sums.items():
        formula = formula.replace(letters, str(number))
    formula = re.sub(r"(GL|\^)\(d_h − r\)", rf"\1({features - 2 * planes})", formula)
    formula = re.sub(r"\^\((\d+)\)", r"^\1", formula)
    for letters, number in sizes.items():
        formula = re.sub(rf"(?<=[_(^]){letters}\b", str(number), formula)
    return formula


@pytest.mark.parametrize("model", EXAMPLES, ids=str)
def test_formulas_are_the_groups(model: TinyModel):
    """With the sizes for the letters they are what the groups print."""
    for block in family(model.model_type).blocks(build(model.model_type, model.config)):
        assert with_numbers(attention_formula(block.group), block.group) == str(block.group)


def test_formulas_of_groups_that_no_family_has():
    planes = ((0, 1),)
    pair, plain = BilinearGroup(6, planes), BilinearGroup(6)
    assert "QK {±1}^(d_h − r/2)" in attention_formula(AttentionGroup(2, 1, pair, plain, norm="head"))  # pyright: ignore[reportArgumentType]
    normed = AttentionGroup(2, 1, pair, plain, norm=QueryKeyNorm.centred, means=12)
    assert with_numbers(attention_formula(normed), normed) == str(normed)
    table = AttentionGroup(2, 1, plain, plain, table=(0, 0, 1))
    assert with_numbers(attention_formula(table), table) == str(table)
