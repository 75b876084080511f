"""One function in several files: every verb sees the function, and writes the first file's form."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.canonical import open_canonical
from isobasin.choices import TaskKind
from isobasin.errors import TensorError
from isobasin.model import open_model
from isobasin.refinement.names import names_in_memory
from isobasin.testing.assertions import assert_function_preserved
from situations.forms import Tensors, edit_tensors

WEIGHTS = "model.safetensors"


def as_on_the_hub(tensors: Tensors) -> Tensors:
    """A GPT-2 without prefix, and with its masks."""
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    return bare | {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril() for layer in range(2)}


def tied_twice(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def head_alone(tensors: Tensors) -> Tensors:
    return {n.replace("model.embed_tokens", "lm_head"): tensor for n, tensor in tensors.items()}


def older_bert(tensors: Tensors) -> Tensors:
    """As transformers wrote it first: gamma and beta, the decoder once more, and the numbers of positions."""
    old = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for new, name in old:
        tensors = {n.replace(new, name): tensor for n, tensor in tensors.items()}
    return tensors | {
        "bert.embeddings.position_ids": torch.arange(16)[None],
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone(),
    }


def as_in_memory(tensors: Tensors) -> Tensors:
    """A ViT under the names that it has in memory since transformers 5."""
    pairs = (
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    )
    for old, new in pairs:
        tensors = {n.replace(old, new): tensor for n, tensor in tensors.items()}
    return tensors


def inside_another(tensors: Tensors) -> Tensors:
    """Llama's base model as a part of something that is called as it is."""
    return {f"model.{n}" if n.startswith("model.") else n: tensor for n, tensor in tensors.items()}


FORMS = [
    ("llama", {"tie_word_embeddings": False}, inside_another),
    ("gpt2", {}, as_on_the_hub),
    ("llama", {"tie_word_embeddings": True}, tied_twice),
    ("llama", {"tie_word_embeddings": True}, head_alone),
    ("bert", {}, older_bert),
    ("vit", {}, as_in_memory),
]


def rewritten(folder: Path, new: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a folder with other tensors in its file."""
    shutil.copytree(folder, new)
    edit_tensors(new, change)
    return new


def models(model_type: str, config: dict[str, object], change: Callable[[Tensors], Tensors], place: Path):
    """Two models, and the second in another form."""
    a, b = (tiny(model_type, config=config).save(place / name, seed) for seed, name in enumerate("ab"))
    return a, b, rewritten(b, place / "form", change)


@pytest.mark.parametrize(("model_type", "config", "change"), FORMS)
def test_a_form_is_its_function(model_type, config, change, tmp_path: Path):
    a, b, form = models(model_type, config, change, tmp_path)
    assert load_file(form / WEIGHTS).keys() != load_file(b / WEIGHTS).keys()
    assert_function_preserved(b, form, 0.0)
    assert isobasin.equivalent(b, form).equivalent
    assert isobasin.compare(form, b).verdict == "same function"
    assert not isobasin.equivalent(a, form).equivalent


@pytest.mark.parametrize(("model_type", "config", "change"), FORMS)
def test_what_is_written_has_the_first_ones_form_and_the_same_function(model_type, config, change, tmp_path: Path):
    a, b, form = models(model_type, config, change, tmp_path)
    found = isobasin.merge([a, form], tmp_path / "into-a", scope="model").alignments[0]
    assert load_file(tmp_path / "into-a" / WEIGHTS).keys() == load_file(a / WEIGHTS).keys()
    isobasin.merge([a, b], tmp_path / "usual", scope="model")
    assert_function_preserved(tmp_path / "usual", tmp_path / "into-a", 1e-12)
    for name, first in (("form", form), ("usual", b)):
        isobasin.interpolate(first, a, 0.3, tmp_path / f"line-{name}")
        found.apply(first, tmp_path / f"moved-{name}")
    for made in ("line", "moved"):
        tensors = load_file(tmp_path / f"{made}-form" / WEIGHTS)
        assert tensors.keys() == load_file(form / WEIGHTS).keys()
        assert_function_preserved(tmp_path / f"{made}-usual", tmp_path / f"{made}-form", 0.0)
        for copy, read in _copies(form).items():
            assert torch.equal(tensors[copy], tensors[read])
    assert_function_preserved(b, tmp_path / "moved-form", 1e-5, hidden=False)


def _copies(folder: Path) -> dict[str, str]:
    with open_model(folder) as opened:
        return dict(opened.view.copies)


def test_a_tied_head_with_values_of_its_own_is_not_tied(tmp_path: Path):
    """So does transformers: its values are read, and it has a part of its own in the stream."""
    config = {"tie_word_embeddings": True}
    b = tiny("llama", config=config).save(tmp_path / "b")
    own = rewritten(b, tmp_path / "own", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] * 2})
    with open_model(own) as opened:
        assert not opened.view.copies
        assert "lm_head.weight" in opened.view.tensors
        assert str(opened.stream().group.basis) == "orthogonal"
    found = isobasin.equivalent(b, own)
    assert found.other_tensors == ("lm_head.weight",)
    isobasin.scramble(own, tmp_path / "moved", scope="model")
    assert_function_preserved(own, tmp_path / "moved", 1e-5, hidden=False)
    with pytest.raises(
        TensorError, match=r"'lm_head.weight' is in A but not in B, where 'model.embed_tokens.weight' stands"
    ):
        isobasin.interpolate(own, b, 0.5, tmp_path / "line")


@pytest.mark.parametrize("change", [tied_twice, head_alone])
def test_a_module_is_filled_from_what_is_read(change, tmp_path: Path):
    _, b, form = models("llama", {"tie_word_embeddings": True}, change, tmp_path)
    names = []
    for folder in (b, form):
        with open_model(folder) as opened:
            found = names_in_memory(opened, TaskKind.causal_lm)
            places = {name: [place.parameter for place in some] for name, some in found.items()}
            names.append({opened.view.canonical[name]: keys for name, keys in places.items()})
    assert names[0] == names[1]
    assert names[0]["embed_tokens.weight"] == ["model.embed_tokens.weight", "lm_head.weight"]


def test_models_of_no_family_have_forms_too(tmp_path: Path):
    """CodeGen: what transformers says of its class is enough for points between two files."""
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    config = transformers.CodeGenConfig(**sizes, tie_word_embeddings=True)
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        transformers.CodeGenForCausalLM(config).save_pretrained(folder)

    def bare(tensors: Tensors) -> Tensors:
        named = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return named | {"lm_head.weight": named["wte.weight"].clone(), "h.0.attn.rotary_emb.inv_freq": torch.ones(2)}

    form = rewritten(folders[1], tmp_path / "form", bare)
    isobasin.interpolate(folders[0], folders[1], 0.3, tmp_path / "usual")
    isobasin.interpolate(folders[0], form, 0.3, tmp_path / "line")
    usual, line = (load_file(tmp_path / name / WEIGHTS) for name in ("usual", "line"))
    assert usual.keys() == line.keys()
    assert all(torch.equal(tensor, line[name]) for name, tensor in usual.items())
    isobasin.interpolate(form, folders[0], 0.3, tmp_path / "back")
    back = load_file(tmp_path / "back" / WEIGHTS)
    assert torch.equal(back["lm_head.weight"], back["wte.weight"])
    isobasin.interpolate(form, folders[0], 0.3, tmp_path / "apart", untie=True)
    with open_canonical(tmp_path / "apart") as apart:
        assert not apart.view.ties
        assert {"lm_head.weight", "wte.weight"} <= set(apart.view.tensors)
    assert_function_preserved(tmp_path / "back", tmp_path / "apart", 0.0)
