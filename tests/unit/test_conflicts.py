"""Ends whose tensors are alike and mean other things: refused, or brought together as asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.errors import ArchitectureError, IsobasinError, TensorError
from isobasin.lines.ends import Measuring
from isobasin.lines.measure import measure
from isobasin.refinement.refine import refine
from isobasin.testing.assertions import assert_function_preserved
from isobasin.verbs.conflicts import Conflict
from situations.forms import read_config

Tensors = dict[str, Tensor]
LABELS = ["entailment", "neutral", "contradiction"]
ORDER = torch.tensor([2, 0, 1])


def tensors(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def rewritten(source: Path, folder: Path, change: Callable[[Tensors], Tensors] | None = None, **entries: Any) -> Path:
    """A copy with its tensors changed, and some entries of its configuration."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**read_config(source), **entries}))
    found = tensors(source) if change is None else change(tensors(source))
    save_file({name: x.contiguous() for name, x in found.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def tokenizer(folder: Path, words: list[str], merges: list[str] | None = None) -> Path:
    """Give a folder a tokenizer.json that numbers these words in order."""
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": merges or []}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return folder


def labelled(names: list[str]) -> dict[str, Any]:
    """The entries of a configuration that name labels."""
    numbered = {str(i): name for i, name in enumerate(names)}
    return {"id2label": numbered, "label2id": {name: i for i, name in enumerate(names)}}


def classifier(folder: Path, seed: int, names: list[str]) -> Path:
    """A tiny BERT that classifies."""
    from transformers import BertConfig, BertForSequenceClassification

    from isobasin.architectures.tiny import randomise

    config = BertConfig(**tiny("bert").config, num_labels=len(names), **labelled(names))
    randomise(BertForSequenceClassification(config).double().eval(), seed).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("llamas")
    return tiny("llama").save(home / "a"), tiny("llama").save(home / "b", seed=1)


def words(count: int = 50) -> list[str]:
    return [f"t{i}" for i in range(count)]


def other_rope(a: Path, b: Path, home: Path) -> tuple[Path, Path]:
    return a, rewritten(b, home / "b", rope_parameters={"rope_type": "default", "rope_theta": 2e7})


def other_epsilon(a: Path, b: Path, home: Path) -> tuple[Path, Path]:
    return a, rewritten(b, home / "b", rms_norm_eps=1e-3)


def other_tokens(a: Path, b: Path, home: Path) -> tuple[Path, Path]:
    return tokenizer(rewritten(a, home / "a"), words()), tokenizer(rewritten(b, home / "b"), words()[::-1])


def renamed_token(a: Path, b: Path, home: Path) -> tuple[Path, Path]:
    return tokenizer(rewritten(a, home / "a"), words()), tokenizer(rewritten(b, home / "b"), [*words()[:-1], "new"])


def other_merges(a: Path, b: Path, home: Path) -> tuple[Path, Path]:
    one, other = rewritten(a, home / "a"), rewritten(b, home / "b")
    return tokenizer(one, words(), ["t 1"]), tokenizer(other, words(), ["t 2"])


def larger_vocabulary(a: Path, b: Path, home: Path) -> tuple[Path, Path]:
    return a, rewritten(b, home / "b", vocab_size=77)


def quantised(a: Path, b: Path, home: Path) -> tuple[Path, Path]:
    return a, rewritten(b, home / "b", quantization_config={"quant_method": "fp8"})


CASES = (
    (other_rope, "rope_parameters.rope_theta is 10000.0 in A and 20000000.0 in B"),
    (other_epsilon, "rms_norm_eps is 1e-06 in A and 0.001 in B"),
    (other_tokens, "token 't0' is 0 in tokenizer.json of A and 49 in tokenizer.json of B"),
    (renamed_token, "token 49 is 't49' in tokenizer.json of A and 'new' in tokenizer.json of B"),
    (other_merges, "cut words by other merges"),
    (larger_vocabulary, "B doesn't fit its own config.json (tensor 'lm_head.weight' has shape (50, 32)"),
    (quantised, "quantis"),
)


@pytest.mark.parametrize(("make", "message"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_what_disagrees_is_refused_by_every_verb_that_averages(make, message, llamas, tmp_path):
    a, b = make(*llamas, tmp_path)
    no_data: Any = None
    for verb in (
        lambda out: isobasin.merge([a, b], out),
        lambda out: isobasin.interpolate(a, b, 0.5, out),
        lambda out: measure([a, b], no_data, out, Measuring(methods=("none",))),
        lambda out: refine(a, b, no_data, out),
    ):
        with pytest.raises((ArchitectureError, TensorError)) as error:
            verb(tmp_path / "out")
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()
    found = isobasin.check([a, b]).pairs[0]
    assert not found.clear
    assert any(message in conflict.message for conflict in found.conflicts)


def test_every_verb_says_whose_configuration_is_absurd(llamas, tmp_path):
    a, b = llamas
    broken = tmp_path / "broken"
    shutil.copytree(b, broken)
    config = read_config(broken) | {"num_hidden_layers": 10**7}
    (broken / "config.json").write_text(json.dumps(config))
    for verb in (
        lambda: isobasin.interpolate(a, broken, 0.5, tmp_path / "out"),
        lambda: isobasin.check([a, broken]),
        lambda: measure([a, broken], "unread", tmp_path / "out"),
        lambda: isobasin.compare(a, broken),
    ):
        with pytest.raises(ArchitectureError) as error:
            verb()
        assert str(error.value).startswith(f"{broken}: config.json has num_hidden_layers")


@pytest.mark.parametrize("make", [other_rope, other_tokens, renamed_token, other_merges, larger_vocabulary])
def test_the_first_models_meaning_is_taken_on_purpose(make, llamas, tmp_path):
    a, b = make(*llamas, tmp_path)
    isobasin.interpolate(a, b, 0.5, tmp_path / "out", take_config=True)
    isobasin.merge([a, b], tmp_path / "merged", take_config=True, force_unrelated=True)
    assert read_config(tmp_path / "out") == read_config(tmp_path / "merged") == read_config(a)
    ends, found = (tensors(a), tensors(b)), tensors(tmp_path / "out")
    assert all(torch.allclose(found[n], (ends[0][n] + ends[1][n]) / 2, 1e-14, 1e-14) for n in ends[0])


def test_default_names_of_labels_and_a_missing_tokenizer_say_nothing(llamas, tmp_path):
    a, b = llamas
    named = rewritten(b, tmp_path / "b", **labelled(["x", "y"]))
    tokenizer(named, words())
    found = isobasin.check([a, named]).pairs[0]
    assert found.clear
    assert found.notes == ("A has no tokenizer files, so its tokens are taken for those of the other",)
    c, d = classifier(tmp_path / "c", 0, LABELS), classifier(tmp_path / "d", 1, ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert isobasin.check([c, d]).clear


def test_labels_in_another_order_are_refused_or_reordered(tmp_path):
    a = classifier(tmp_path / "a", 0, LABELS)
    names = [LABELS[i] for i in ORDER]
    b = rewritten(
        a,
        tmp_path / "b",
        lambda t: {n: x[ORDER] if n.startswith("classifier") else x for n, x in t.items()},
        **labelled(names),
    )
    with pytest.raises(ArchitectureError, match=r"label 0 is 'entailment' in A and 'contradiction' in B: --by-name"):
        isobasin.merge([a, b], tmp_path / "out")
    for name, write in (
        ("line", lambda out: isobasin.interpolate(a, b, 0.5, out, by_name=True)),
        ("merged", lambda out: isobasin.merge([a, b], out, by_name=True)),
    ):
        write(tmp_path / name)
        found, expected = tensors(tmp_path / name), tensors(a)
        assert all(torch.allclose(found[n], expected[n], 1e-9, 1e-12) for n in expected)
        assert read_config(tmp_path / name)["id2label"] == {str(i): x for i, x in enumerate(LABELS)}


def test_labels_of_other_names_have_no_order(tmp_path):
    a, b = classifier(tmp_path / "a", 0, LABELS), classifier(tmp_path / "b", 1, ["x", "y", "z"])
    with pytest.raises(ArchitectureError, match="label 0 is 'entailment' in A and 'x' in B: --take-config"):
        isobasin.merge([a, b], tmp_path / "out", by_name=True)


@pytest.mark.parametrize("scope", ["attention", "model"])
def test_rows_of_tokens_follow_their_names(scope, llamas, tmp_path):
    """B is A with other numbers and without the last three tokens: the mean is A, whatever B lacks."""
    a = tokenizer(rewritten(llamas[0], tmp_path / "a"), words())
    order = torch.randperm(47, generator=torch.Generator().manual_seed(0))
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    b = rewritten(a, tmp_path / "b", lambda t: {n: x[order] if n in tables else x for n, x in t.items()}, vocab_size=47)
    tokenizer(b, [f"t{i}" for i in order])
    with pytest.raises(ArchitectureError, match="token 't0' is 0"):
        isobasin.merge([a, b], tmp_path / "out", common_rows=True)
    isobasin.interpolate(a, b, 0.5, tmp_path / "line", by_name=True)
    isobasin.merge([a, b], tmp_path / "merged", scope=scope, by_name=True)
    expected = tensors(a)
    assert all(torch.equal(tensors(tmp_path / "line")[n], x) for n, x in expected.items())
    assert all(torch.allclose(tensors(tmp_path / "merged")[n], x, 1e-6, 1e-9) for n, x in expected.items())
    for n in tables:
        assert torch.equal(tensors(tmp_path / "merged")[n][47:], expected[n][47:])


@pytest.mark.parametrize(
    ("family", "change", "names"),
    [
        ("llama", {"vocab_size": 53}, ("model.embed_tokens.weight", "lm_head.weight")),
        ("gpt2", {"n_positions": 20}, ("transformer.wpe.weight",)),
        ("bert", {"vocab_size": 53}, ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias")),
    ],
)
def test_tables_of_other_lengths_share_their_leading_rows(family, change, names, tmp_path):
    a, b = tiny(family).save(tmp_path / "a"), tiny(family, config=change).save(tmp_path / "b", seed=1)
    with pytest.raises(TensorError, match=r"has shape .* in A and .* in B: --common-rows") as error:
        isobasin.interpolate(a, b, 0.5, tmp_path / "out")
    assert any(repr(name) in str(error.value) for name in names)
    for one, other in ((a, b), (b, a)):
        out = tmp_path / f"from-{one.name}"
        isobasin.interpolate(one, other, 0.25, out, common_rows=True)
        ends, found = (tensors(one), tensors(other)), tensors(out)
        assert found.keys() == ends[0].keys()
        for name, x in found.items():
            first, second = (end[name] for end in ends)
            count = min(len(first), len(second))
            assert torch.allclose(x[:count], 0.75 * first[:count] + 0.25 * second[:count], 1e-14, 1e-14)
            assert torch.equal(x[count:], first[count:])
            assert (len(first) != len(second)) == (name in names)


@pytest.mark.parametrize("scope", ["attention", "model"])
def test_whole_models_with_tables_of_other_lengths(scope, tmp_path):
    a = tiny("llama").save(tmp_path / "a")
    isobasin.scramble(a, tmp_path / "s", scope=scope, verify=False)
    cut = rewritten(
        tmp_path / "s",
        tmp_path / "b",
        lambda t: {n: x[:47] if len(x) == 50 else x for n, x in t.items()},
        vocab_size=47,
    )
    isobasin.merge([a, cut], tmp_path / "out", scope=scope, common_rows=True)
    assert_function_preserved(a, tmp_path / "out", 1e-5)


def other_head(source: Path, folder: Path, count: int) -> Path:
    """The body of a classifying BERT under a head of so many labels."""
    generator = torch.Generator().manual_seed(count)
    new = {
        "classifier.weight": torch.randn(count, 32, generator=generator, dtype=torch.float64),
        "classifier.bias": torch.randn(count, generator=generator, dtype=torch.float64),
    }
    return rewritten(source, folder, lambda t: {**t, **new}, **labelled([f"l{i}" for i in range(count)]))


@pytest.mark.parametrize("scope", ["attention", "block", "model"])
def test_bodies_under_other_heads(scope, tmp_path):
    """Equal bodies in other gauges: the result is the model whose head it has."""
    if scope == "model":
        a = tiny("llama").save(tmp_path / "a")
        head = {"score.weight": torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
        names = {"architectures": ["LlamaForSequenceClassification"], **labelled([f"l{i}" for i in range(5)])}
        other = rewritten(
            a, tmp_path / "o", lambda t: {n: x for n, x in {**t, **head}.items() if n != "lm_head.weight"}, **names
        )
    else:
        a = classifier(tmp_path / "a", 0, LABELS)
        other = other_head(a, tmp_path / "o", 5)
    b = isobasin.scramble(other, tmp_path / "b", scope=scope).path
    with pytest.raises(TensorError, match=r"--head reference or own"):
        isobasin.merge([a, b], tmp_path / "out", scope=scope)
    for head, whose in (("reference", a), ("own", b)):
        isobasin.merge([a, b], tmp_path / head, scope=scope, head=head)
        assert read_config(tmp_path / head) == read_config(whose)
        assert_function_preserved(whose, tmp_path / head, 1e-5, hidden=False)
    # The heads stay as they are; between them nothing is averaged.
    name = "classifier.weight" if scope != "model" else "lm_head.weight"
    assert torch.equal(tensors(tmp_path / "reference")[name], tensors(a)[name])


def test_whose_head_is_clear_only_between_two(llamas, tmp_path):
    with pytest.raises(IsobasinError, match="head own is about two models, not 3"):
        isobasin.merge([*llamas, llamas[0]], tmp_path / "out", head="own")


@pytest.mark.parametrize("verb", ["merge", "interpolate"])
def test_all_weight_on_one_end_is_that_end(verb, tmp_path):
    a, b = classifier(tmp_path / "a", 0, LABELS), tiny("bert", config={"layer_norm_eps": 1e-3}).save(tmp_path / "b")
    for t, end in ((0, a), (1, b)):
        out = tmp_path / f"{t}"
        if verb == "merge":
            isobasin.merge([a, b], out, t=t)
        else:
            isobasin.interpolate(a, b, t, out)
        assert read_config(out) == read_config(end)
        assert_function_preserved(end, out)


def test_conflicts_say_what_resolves_them_and_nothing_is_written(tmp_path):
    a = tokenizer(classifier(tmp_path / "a", 0, LABELS), words())
    b = tokenizer(other_head(a, tmp_path / "b", 5), words()[::-1])
    before = sorted(tmp_path.rglob("*"))
    found = isobasin.check([a, b, a])
    assert [pair.clear for pair in found.pairs] == [False, True]
    assert [(one.what, [str(o) for o in one.options]) for one in found.pairs[0].conflicts] == [
        ("tokenizer", ["--by-name", "--take-config"]),
        ("head", ["--head"]),
        ("head", ["--head"]),
    ]
    assert [one.blocks for one in found.pairs[0].matchable] == [2, 4, 4]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_shape_that_no_option_brings_together(llamas, tmp_path):
    b = rewritten(llamas[1], tmp_path / "b", lambda t: {n: x[:, :24] if "down" in n else x for n, x in t.items()})
    found = isobasin.check([llamas[0], b]).pairs[0].conflicts
    assert [one.what for one in found] == ["tensors", "tensors", "configuration"]
    assert all(isinstance(one, Conflict) and not one.options for one in found[:2])
    with pytest.raises(TensorError, match="give two that agree"):
        isobasin.interpolate(llamas[0], b, 0.5, tmp_path / "out", common_rows=True)


def test_the_first_models_own_misfit_no_option_resolves(llamas, tmp_path):
    b, a = larger_vocabulary(*llamas, tmp_path)
    with pytest.raises(ArchitectureError, match=r"A doesn't fit its own config\.json .*: mend that$"):
        isobasin.interpolate(a, b, 0.5, tmp_path / "out", take_config=True)


def test_what_no_option_resolves_is_said_first(tmp_path):
    """No option is advised that would only lead to the next refusal."""
    vits = [tiny("vit", config={"image_size": n}).save(tmp_path / f"{n}") for n in (8, 16)]
    wide = tiny("llama", config={"hidden_size": 48}).save(tmp_path / "wide")
    usual = tiny("llama").save(tmp_path / "usual")
    for a, b, name in ((*vits, "position_embeddings"), (usual, wide, "weight")):
        with pytest.raises(TensorError, match=rf"tensor '[^']*{name}' has shape .*: give two that agree"):
            isobasin.interpolate(a, b, 0.5, tmp_path / "out")
        entries = [one.entry for one in isobasin.check([a, b]).pairs[0].conflicts]
        assert "image_size" in entries or "hidden_size" in entries
