"""In what precision forward passes are, and by which attention."""

from __future__ import annotations

import pytest
import torch
from refined_pairs import LANGUAGE, UNTIED, pair, sentences

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.choices import TaskKind
from isobasin.model import open_model
from isobasin.refinement.line import ModuleLine
from isobasin.tasks import precision
from isobasin.tasks.precision import ShortAttention, quicker_in_bfloat16


def test_where_bfloat16_is_quicker(monkeypatch):
    """Where a processor multiplies it, in matrices of 64 rows and columns at least."""
    wide, narrow = [torch.zeros(64, 300), torch.zeros(7)], [torch.zeros(5000, 32), torch.zeros(3, 63, 64)]
    for able in ("avx512_bf16", "amx_bf16", "avx512_f"):
        monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda able=able: {able: True})
        assert quicker_in_bfloat16(wide, "cpu") is (able != "avx512_f")
        assert not quicker_in_bfloat16(narrow, "cpu")
    monkeypatch.setattr(precision.torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert quicker_in_bfloat16(wide, "cuda:0")
    assert not quicker_in_bfloat16([torch.zeros(())], "cuda:0")


@pytest.mark.parametrize(("dtype", "wanted"), [(torch.float32, True), (torch.float64, False)])
def test_models_in_double_are_learned_in_double(dtype, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr("isobasin.refinement.line.quicker_in_bfloat16", lambda *_: True)
    a = tiny("llama", "refined-double", config=UNTIED).save(tmp_path / "a", dtype=dtype)
    with open_model(a) as one, open_model(a) as other:
        start = isobasin.random_alignment(a, condition=1.5, scope="model")
        for asked, got in ((None, wanted), (False, False), (True, True)):
            of = ModuleLine.between(one, other, start, TaskKind.causal_lm, mixed_precision=asked)
            assert of.mixed_precision is got


@pytest.mark.parametrize("mixed", [True, False])
def test_short_texts_go_through_attention_written_out(mixed, tmp_path, monkeypatch):
    """In bfloat16 only, and as far as texts are short; losses are those of torch's own attention."""
    monkeypatch.setattr(precision, "_SHORT", 8)
    a, b = pair(LANGUAGE[1], tmp_path)
    short, long = ({name: x[:, :length] for name, x in sentences().fetch(range(8)).items()} for length in (8, 9))
    with open_model(a) as one, open_model(b) as other:
        start = isobasin.random_alignment(b, condition=1.5, scope="model")
        line = ModuleLine.between(one, other, start, TaskKind.causal_lm, mixed_precision=mixed)
    used: list[str] = []
    losses = []
    for batch in (short, long, short):
        losses.append(line.divergence(0.5, batch).item())
        used.append(line.module.config._attn_implementation)
    assert used == (["eager", "sdpa", "eager"] if mixed else ["sdpa"] * 3)
    monkeypatch.setattr(precision, "_SHORT", 0)
    assert losses[0] == pytest.approx(line.divergence(0.5, short).item(), rel=0.02)
    assert line.module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("model_type", ["gemma2", "falcon"])
def test_attention_that_cannot_be_chosen_stays(model_type, capfd):
    """Another one than torch's own may compute something else, and some classes have one that stays."""
    model = tiny(model_type)
    module = model.architecture()(model.architecture().config_class(**model.config))
    had = module.config._attn_implementation
    attention = ShortAttention(module)
    for length in (4, 4000, 4):
        attention.fit(length)
        assert module.config._attn_implementation == had
    assert capfd.readouterr() == ("", "")
