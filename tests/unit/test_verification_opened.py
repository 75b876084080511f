"""What random inputs leave out is compared: rows of tables, experts and units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_verification import Tensors, changed

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.verification.parts import changes, products

# Larger than what the random inputs look up, choose or switch on.
WIDE = {"vocab_size": 3000, "max_position_embeddings": 200, "n_positions": 200}


def planted(source: Path, target: Path, name: str, row: Any) -> Path:
    """A copy in which the values of one row, or of one expert, are others of the same size."""

    def change(tensors: Tensors) -> None:
        part = tensors[name][row]
        part.copy_(
            part.flatten()[torch.randperm(part.numel(), generator=torch.Generator().manual_seed(5))].view_as(part)
        )

    return changed(source, target, change)


@pytest.mark.parametrize(
    ("family", "name", "row"),
    [
        ("gpt2", "transformer.wte.weight", 2993),
        ("gpt2", "transformer.wpe.weight", 150),
        ("bert", "bert.embeddings.token_type_embeddings.weight", 1),
        ("roformer", "roformer.encoder.embed_positions.weight", 150),
        ("mixtral", "model.embed_tokens.weight", 2993),
        ("t5", "shared.weight", 2993),
    ],
)
@pytest.mark.parametrize("moved", [False, True])
def test_a_row_that_no_input_looks_up_is_compared(family, name, row, moved, tmp_path):
    """Of tables as they are, and of tables that a map of the residual stream, or of heads, went through."""
    model = tiny(family)
    wide = {entry: size for entry, size in WIDE.items() if entry in model.config}
    a = tiny(family, config=wide).save(tmp_path / "a", dtype=torch.float32)
    b = a
    if moved:
        scope = "block" if family == "t5" else "model"
        b = isobasin.scramble(a, tmp_path / "b", scope=scope).path
    found = isobasin.verify(a, planted(b, tmp_path / "planted", name, row))
    assert isobasin.verify(a, b).equal
    assert not found.equal
    tied = (family == "gpt2" and "wte" in name) or family == "t5"
    assert found.only_opened != tied  # a tied row is a row of the head too
    assert tied or "leave out" in found.reason


def test_a_row_of_16_bits_that_no_input_looks_up_is_compared(tmp_path):
    a = tiny("llama", config=WIDE | {"tie_word_embeddings": False}).save(tmp_path / "a", dtype=torch.bfloat16)
    found = isobasin.verify(a, planted(a, tmp_path / "b", "model.embed_tokens.weight", 2993))
    assert not found.equal
    assert found.rows == ("2993 of 'model.embed_tokens.weight'",)
    assert "row 2993 of 'model.embed_tokens.weight'" in found.reason


def test_a_row_of_a_moved_table_of_16_bits_is_compared(tmp_path):
    """Its rounding hides the row in a blend of many, but not from the map that all others went through."""
    a = tiny("electra", config=WIDE).save(tmp_path / "a", dtype=torch.bfloat16)
    b = isobasin.scramble(a, tmp_path / "b", scope="model").path
    for name, row in (("word_embeddings", 2993), ("position_embeddings", 150)):
        found = isobasin.verify(a, planted(b, tmp_path / name, f"electra.embeddings.{name}.weight", row))
        assert f"{row} of 'electra.embeddings.{name}.weight'" in found.rows
        assert not found.equal


@pytest.mark.parametrize("scope", ["block", "model"])
def test_a_row_of_a_head_of_16_bits_is_compared(scope, tmp_path):
    """One token's logits that are a little off are lost in what rounding does to all others."""
    a = tiny("qwen3_moe", config={"vocab_size": 400}).save(tmp_path / "a", dtype=torch.bfloat16)
    b = isobasin.scramble(a, tmp_path / "b", scope=scope).path
    found = isobasin.verify(
        a, changed(b, tmp_path / "changed", lambda tensors: tensors["lm_head.weight"][303].mul_(1.05))
    )
    assert found.rows == ("303 of 'lm_head.weight'",)
    assert not found.equal
    assert found.explained


@pytest.mark.parametrize(
    ("family", "router", "down", "which"),
    [
        (
            "mixtral",
            "model.layers.0.block_sparse_moe.gate.weight",
            "model.layers.0.block_sparse_moe.experts.2.w2.weight",
            slice(None),
        ),
        ("deepseek_v3", "model.layers.1.mlp.gate.weight", "model.layers.1.mlp.experts.3.down_proj.weight", slice(None)),
        ("gpt_oss", "model.layers.0.mlp.router.bias", "model.layers.0.mlp.experts.down_proj", 3),
    ],
)
def test_an_expert_that_no_token_chooses_is_compared(family, router, down, which, tmp_path):
    """One is chosen; this one's scores are 0, and others' of either sign; or its bias is far below theirs."""
    model = tiny(family, config={"num_experts_per_tok": 1}).save(tmp_path / "whole", dtype=torch.float32)

    def ignore(tensors: Tensors) -> None:
        if router.endswith("bias"):
            tensors[router][3] = -1e3
        else:
            tensors[router][-1] = 0
            tensors[router][0] = -tensors[router][1]

    a = changed(model, tmp_path / "a", ignore)
    found = isobasin.verify(a, planted(a, tmp_path / "b", down, which))
    assert not found.equal
    assert found.only_opened
    assert isobasin.scramble(a, tmp_path / "moved", scope="model").verified.equal


@pytest.mark.parametrize("scope", ["block", "model"])
def test_an_expert_of_16_bits_is_compared_by_itself(scope, tmp_path):
    """A twentieth more of all that it adds is lost in what rounding does to all others."""
    a = tiny("deepseek_v3").save(tmp_path / "a", dtype=torch.bfloat16)
    b = isobasin.scramble(a, tmp_path / "b", scope=scope, seed=3).path
    assert isobasin.verify(a, b).parts == ()
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    found = isobasin.verify(a, changed(b, tmp_path / "changed", lambda t: t[name].mul_(1.05)))
    assert found.explained
    assert not found.equal
    assert found.parts == ("expert 2 of 'model.layers.1'",)
    assert found.reason == "expert 2 of 'model.layers.1' differs"


def test_one_token_says_no_more_of_an_expert_than_another():
    """However large what it gets is: of one number rounding may happen to change next to nothing."""
    added = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    added[3] *= 1000
    found: list[float] = []
    for token in (3, 7):
        other = added.clone()
        other[token] *= 1.1
        found.append(float(changes(products(added)[None], products(other)[None])))
    assert found[1] / 2 < found[0] < 2 * found[1]


def test_a_unit_that_no_input_switches_on_is_compared(tmp_path):
    model = tiny("opt").save(tmp_path / "whole", dtype=torch.float32)
    a = changed(model, tmp_path / "a", lambda t: t["model.decoder.layers.0.fc1.bias"][3:4].fill_(-50))
    b = changed(a, tmp_path / "b", lambda t: t["model.decoder.layers.0.fc2.weight"][:, 3].neg_())
    found = isobasin.verify(a, b)
    assert not found.equal
    assert found.only_opened
    assert isobasin.scramble(a, tmp_path / "moved", scope="model").verified.equal
