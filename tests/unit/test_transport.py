"""Fine-tunes carried to other bases: what a moved copy of the base, no change at all, and other heads must give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.architectures.tiny import randomise
from isobasin.errors import ArchitectureError, IsobasinError, IsobasinWarning, OutputError
from isobasin.testing.assertions import assert_function_preserved

# The widest scope by default; and the narrower ones once each.
CASES = [
    ("gpt2", None, 1e-12),
    ("gpt2", "attention", 1e-12),
    ("llama", None, 1e-6),
    ("llama", "block", 1e-6),
    ("bert", None, 1e-12),
    ("vit", None, 1e-11),
]
quiet = pytest.mark.filterwarnings("ignore:.*--untie stores the two apart")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def stored(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def near(original: Path, folder: Path, seed: int = 1) -> Path:
    """A fine-tune: a little noise on every tensor."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    (folder / "config.json").write_text((original / "config.json").read_text())
    noisy = {
        n: x + 0.02 * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        for n, x in tensors(original).items()
    }
    save_file(noisy, folder / "model.safetensors", {"format": "pt"})
    return folder


@quiet
@pytest.mark.parametrize(("family", "scope", "tolerance"), CASES)
def test_to_a_moved_copy_of_its_base_the_whole_fine_tune_arrives(
    family: str, scope: str | None, tolerance: float, tmp_path: Path
):
    base = tiny(family).save(tmp_path / "base")
    tuned = near(base, tmp_path / "tuned")
    isobasin.scramble(base, tmp_path / "target", scope=scope or "model", verify=False)
    found = isobasin.transport(base, tuned, tmp_path / "target", tmp_path / "out", scope=scope)
    assert_function_preserved(tuned, tmp_path / "out", tolerance, hidden=scope is not None)
    with pytest.raises(AssertionError, match="differs by"):
        assert_function_preserved(base, tmp_path / "out", 0.01, hidden=scope is not None)
    assert [check.equal for check in found.verified] == [True, True]
    assert found.distance < 1e-10 < 1e-2 < found.change
    assert (found.scale, found.new, found.losses) == (1.0, (), {})


@quiet
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_without_a_change_the_target_stays_to_the_byte(dtype: torch.dtype, tmp_path: Path):
    base, target = (tiny("gpt2").save(tmp_path / name, seed, dtype=dtype) for seed, name in enumerate(("a", "b")))
    # Zeros of either sign: a sum would lose that.
    signed = {name: torch.where(x < -0.2, torch.zeros_like(x).neg(), x) for name, x in tensors(target).items()}
    save_file(signed, target / "model.safetensors", {"format": "pt"})
    found = isobasin.transport(base, base, target, tmp_path / "out", verify=False)
    assert stored(tmp_path / "out") == stored(target)
    assert found.change == 0
    isobasin.transport(base, near(base, tmp_path / "tuned"), target, tmp_path / "zero", scale=0, verify=False)
    assert stored(tmp_path / "zero") == stored(target)


def test_the_scale_multiplies_what_is_added(tmp_path: Path):
    base, target = (tiny("llama").save(tmp_path / name, seed) for seed, name in enumerate(("base", "target")))
    tuned = near(base, tmp_path / "tuned")
    for scale in (1.0, -0.5):
        isobasin.transport(base, tuned, target, tmp_path / f"{scale}", scale=scale, scope="block", verify=False)
    start, once, back = (tensors(folder) for folder in (target, tmp_path / "1.0", tmp_path / "-0.5"))
    for name, x in start.items():
        assert not torch.equal(once[name], x), name
        assert torch.allclose(back[name] - x, -0.5 * (once[name] - x), rtol=0, atol=1e-13), name


def test_models_in_memory_give_a_model_in_memory(tmp_path: Path):
    base, target = (tiny("llama").build(seed, dtype=torch.float32) for seed in (0, 1))
    found = isobasin.transport(base, target, base, scope="attention")
    assert found.path is None
    assert found.model is not None
    assert type(found.model) is type(base)
    assert_function_preserved(target, found.model, 1e-4)
    with pytest.raises(IsobasinError, match="name the folder to write to"):
        isobasin.transport(base, target, tiny("llama").save(tmp_path / "folder"), scope="attention")


@quiet
def test_an_alignment_that_was_made_before_moves_the_change(tmp_path: Path):
    base, target = (tiny("gpt2").save(tmp_path / name, seed) for seed, name in enumerate(("base", "target")))
    tuned, alignment = near(base, tmp_path / "tuned"), isobasin.random_alignment(base, scope="model")
    isobasin.transport(base, tuned, target, tmp_path / "out", alignment=alignment)
    for folder in (base, tuned):
        alignment.apply(folder, tmp_path / f"moved-{folder.name}", verify=False)
    start, before, after = (tensors(f) for f in (target, tmp_path / "moved-base", tmp_path / "moved-tuned"))
    out = tensors(tmp_path / "out")
    for name, x in start.items():
        assert torch.allclose(out[name], x + after[name] - before[name], rtol=0, atol=1e-13), name


def test_the_loss_chooses_the_scale_and_0_where_nothing_helps(tmp_path: Path):
    base, target = (tiny("llama").save(tmp_path / name, seed) for seed, name in enumerate(("base", "target")))
    tuned, seen = near(base, tmp_path / "tuned"), list[dict[str, torch.Tensor]]()
    how: dict[str, Any] = {"alignment": isobasin.align(target, base), "verify": False}

    def losses(best: float):
        def along(first: Path, last: Path, scales: Sequence[float]) -> list[float]:
            seen.extend((tensors(first), tensors(last)))
            return [float("nan") if scale == best == 1 else abs(scale - best) for scale in scales]

        return along

    found = isobasin.transport(base, tuned, target, tmp_path / "half", losses=losses(0.5), **how)
    assert found.scale == 0.5
    assert found.losses[0.25] == 0.25
    isobasin.transport(base, tuned, target, tmp_path / "again", scale=0.5, **how)
    assert stored(tmp_path / "half") == stored(tmp_path / "again")
    assert all(torch.equal(x, seen[0][name]) for name, x in tensors(target).items())
    found = isobasin.transport(base, tuned, target, tmp_path / "none", losses=losses(-1), **how)
    assert found.scale == 0
    assert stored(tmp_path / "none") == stored(target)
    # What is no number is no least loss: 1 is that here, and 0.75 next to it.
    assert isobasin.transport(base, tuned, target, tmp_path / "nan", losses=losses(1), **how).scale == 0.75


def headed(family: str, name: str, folder: Path, seed: int, **more: int) -> Path:
    """A tiny random model of this class."""
    kind = getattr(transformers, name)
    config = kind.config_class(**{**tiny(family).config, **more})
    randomise(kind(config).double().eval(), seed).save_pretrained(folder)
    return folder


def on_body(body: Path, headed: Path) -> Path:
    """A model that has another one's tensors where it has any of that name and shape."""
    known, own = tensors(body), tensors(headed)
    mixed = {name: known[name] if name in known and known[name].shape == x.shape else x for name, x in own.items()}
    save_file(mixed, headed / "model.safetensors", {"format": "pt"})
    return headed


HEADS = [
    (
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2ForSequenceClassification",
        {"num_labels": 3, "pad_token_id": 0},
        {"score.weight"},
    ),
    (
        "bert",
        "BertForMaskedLM",
        "BertForSequenceClassification",
        {"num_labels": 3},
        {"classifier.weight", "classifier.bias", "pooler.dense.weight", "pooler.dense.bias"},
    ),
    (
        "vit",
        "ViTForImageClassification",
        "ViTForImageClassification",
        {"num_labels": 5},
        {"classifier.weight", "classifier.bias"},
    ),
]


@pytest.mark.filterwarnings("ignore::isobasin.errors.IsobasinWarning")
@pytest.mark.parametrize(("family", "kind", "other", "more", "new"), HEADS)
def test_a_new_head_comes_with_the_fine_tune(
    family: str, kind: str, other: str, more: dict[str, int], new: set[str], tmp_path: Path
):
    base = headed(family, kind, tmp_path / "base", 0)
    tuned = near(on_body(base, headed(family, other, tmp_path / "first", 1, **more)), tmp_path / "tuned")
    isobasin.scramble(base, tmp_path / "target", scope="model", verify=False)
    found = isobasin.transport(base, tuned, tmp_path / "target", tmp_path / "out")
    assert set(found.new) == new
    assert_function_preserved(tuned, tmp_path / "out", 1e-11, hidden=False)
    assert (tmp_path / "out" / "config.json").read_text() == (tuned / "config.json").read_text()


def test_a_tied_fine_tune_is_carried_to_an_untied_target(tmp_path: Path):
    base = tiny("gpt2").save(tmp_path / "base")
    tuned = near(base, tmp_path / "tuned")
    isobasin.align(base, base, tmp_path / "apart", untie=True, verify=False)
    isobasin.scramble(tmp_path / "apart", tmp_path / "target", scope="model", verify=False)
    found = isobasin.transport(base, tuned, tmp_path / "target", tmp_path / "out")
    assert found.new == ()
    assert_function_preserved(tuned, tmp_path / "out", 1e-11, hidden=False)
    with pytest.warns(IsobasinWarning, match="base: the result has its tied tensors by themselves"):
        isobasin.transport(base, tmp_path / "apart", base, tmp_path / "again", scope="attention")


def test_what_cannot_be_carried_is_refused_in_one_line(tmp_path: Path):
    base = tiny("gpt2").save(tmp_path / "base")
    strange = tiny("llama").save(tmp_path / "strange")
    wider = tiny("gpt2", config={"vocab_size": 77}).save(tmp_path / "wider")
    out, before = tmp_path / "out", stored(base)
    cases: list[Any] = [
        ((base, strange, base), {}, ArchitectureError, "strange: A is a gpt2 model, B a llama model"),
        ((base, base, strange), {}, ArchitectureError, "strange: A is a gpt2 model, B a llama model"),
        ((base, wider, base), {}, IsobasinError, "wider: "),
        ((base, base, wider), {}, IsobasinError, "wider: "),
        ((base, base, base), {"scale": float("inf")}, IsobasinError, "scale is inf"),
        ((base, base, base), {"scale": 1, "losses": print}, IsobasinError, "scale is 1, and data would"),
        (
            (base, base, base),
            {"alignment": isobasin.align(base, base), "scope": "block"},
            IsobasinError,
            "leave out --s",
        ),
    ]
    for (first, second, third), how, kind, naming in cases:
        with pytest.raises(kind, match=naming) as raised:
            isobasin.transport(first, second, third, out, **how)
        assert "\n" not in str(raised.value)
        assert not out.exists()
    with pytest.raises(OutputError):
        isobasin.transport(base, base, base, base)
    assert stored(base) == before
