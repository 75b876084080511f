"""Texts that models write themselves are drawn from what they predict, whatever their checkpoints say of writing."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import chisquare

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.choices import TaskKind
from isobasin.errors import DataError, IsobasinError, IsobasinWarning
from isobasin.refinement.recipe import Refining
from isobasin.tasks.data import examples_of
from isobasin.tasks.examples import IGNORED, TensorExamples
from isobasin.tasks.kind import load_model
from isobasin.tasks.options import DataOptions
from isobasin.tasks.processors import build_tokenizer, load_processor
from isobasin.verbs.settings import Running

QUIET = Running(progress=lambda *_: None)
CHARACTERS = "abcdefghijklmnopqrstuvwxyz"
MODEL = tiny("llama", "writing", config={"tie_word_embeddings": False})


def having(folder: Path, **entries: object) -> Path:
    """The same checkpoint with other entries in its configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("writers")
    return [having(MODEL.save(folder / str(seed), seed, dtype=torch.float32), bos_token_id=None) for seed in (0, 1)]


def masked(folder: Path, seed: int = 0, family: str = "bert", **options) -> Path:
    """A masked language model, with a tokenizer of characters between special tokens."""
    build_tokenizer([CHARACTERS], "characters", 64, classification=True).save_pretrained(folder)
    return tiny(family, "writing", **options).save(folder, seed, dtype=torch.float32)


def written(models, count: int = 12, length: int | None = 6, seed: int = 0, **options) -> torch.Tensor:
    options = DataOptions("generated", max_examples=count, length=length, seed=seed, **options)
    return examples_of(options, *models).fetch(range(count))["input_ids"]


def test_tokens_are_drawn_from_predictions(models, tmp_path):
    """Frequencies of second tokens, and of third ones after the likeliest; settings of writing don't count."""
    count = 20000
    folder = having(MODEL.save(tmp_path / "a", dtype=torch.float32), bos_token_id=7, eos_token_id=3)
    settings = {"do_sample": False, "top_k": 2, "temperature": 0.3, "eos_token_id": 3, "max_length": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    texts = written([folder], count, 3)
    assert texts.shape == (count, 3)
    assert texts[:, 0].unique().tolist() == [7]
    model = load_model(folder, TaskKind.causal_lm)
    with torch.no_grad():
        likely = model(torch.tensor([[7]])).logits[0, -1, :].double().softmax(-1)
    expected = count * likely
    kept = expected > 5
    seen = texts[:, 1].bincount(minlength=len(likely)).double()
    assert chisquare(seen[kept], expected[kept] * seen[kept].sum() / expected[kept].sum()).pvalue > 1e-4
    most = int(likely.argmax())
    with torch.no_grad():
        then = model(torch.tensor([[7, most]])).logits[0, -1].double().softmax(-1)
    after = texts[texts[:, 1] == most, 2].bincount(minlength=len(then)).double()
    kept = then * after.sum() > 5
    expected = then[kept] * after[kept].sum() / then[kept].sum()
    assert chisquare(after[kept], expected).pvalue > 1e-4


def test_without_a_first_token_texts_begin_with_any(models):
    assert len(written(models, 200, 2)[:, 0].unique()) > 40


def test_a_seed_says_which_texts(models):
    state = torch.get_rng_state()
    first = written(models)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(written(models), first)
    assert not torch.equal(written(models, seed=1), first)


def test_every_model_writes_its_share(models, monkeypatch):
    """Alone it writes what it writes beside others, as far as that goes."""
    both, alone = written(models, 13), written(models[:1], 7)
    assert torch.equal(both[:7], alone)
    assert not torch.equal(both[7:], written(models[:1], 13)[7:])


def test_tokens_that_only_one_of_them_knows_are_not_written(models, tmp_path):
    """Tables padded to more rows, as after new tokens."""
    longer = having(MODEL.save(tmp_path / "longer", dtype=torch.float32), bos_token_id=None)
    stored = load_file(longer / "model.safetensors")
    size = json.loads((longer / "config.json").read_text())["vocab_size"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        stored[name] = torch.cat([stored[name], 3 * stored[name][:30]])
    save_file(stored, longer / "model.safetensors", {"format": "pt"})
    having(longer, vocab_size=size + 30)
    assert int(written([longer], 100).max()) >= size
    assert int(written([models[0], longer], 100).max()) < size


def test_how_long_and_how_many(models):
    longest = json.loads((models[0] / "config.json").read_text())["max_position_embeddings"]
    found = examples_of(DataOptions("generated"), models[0])
    assert found.fetch(range(3))["input_ids"].shape == (3, min(128, longest))
    assert len(found) == 1024
    assert found.facts.source == "generated"
    assert found.facts.notes == (f"texts of {min(128, longest)} tokens, written by 1 model of this run",)
    with pytest.raises(DataError, match=f"length {longest + 1}: the models take at most {longest} tokens"):
        written(models, length=longest + 1)
    with pytest.raises(DataError, match="length 1 leaves no tokens to predict"):
        written(models, length=1)


@pytest.mark.parametrize(
    "options",
    [{"split": "train"}, {"name": "a"}, {"columns": {"text": "a"}}, {"tokenizer": "a"}, {"skip_unknown": True}],
)
def test_nothing_is_read(options, models):
    said = next(iter(options)).replace("_", "-")
    with pytest.raises(DataError, match=f"generated: nothing is read, so there is no --{said}"):
        written(models, **options)


@pytest.mark.parametrize(
    ("model", "task"), [(tiny("vit", "writing"), None), (tiny("bert", "writing"), "text-classification")], ids=str
)
def test_only_language_models_write(model, task, tmp_path):
    folder = model.save(tmp_path / "a", dtype=torch.float32)
    with pytest.raises(DataError, match="generated: texts are written by language models only: name data with --data"):
        written([folder], task=task)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "mixtral", "deepseek_v3", "gemma2", "isobasin_gpt2"])
def test_families_write(family, tmp_path):
    folder = tiny(family, "writing").save(tmp_path / "a", dtype=torch.float32)
    texts = written([folder], 40, 5)
    assert texts.shape == (40, 5)
    assert len(texts.unique()) > 10


def test_lines_are_learned_from_them(models, tmp_path):
    """Without any data the line gets lower on texts that were held out, and the functions stay."""
    a, b = models
    how = Refining(steps=30, batch_size=8, every=10, rate=2e-2, warmup=3, minutes=0)
    found = isobasin.refine(a, b, DataOptions("generated", max_examples=64, length=8), tmp_path / "out", how=how)
    assert found.refined.after < 0.9 * found.refined.before
    assert all(verified.equal for verified in found.verified)
    assert found.alignment.provenance["data"] == "generated"


def test_progress_is_told(models):
    """Up to the number of texts."""
    seen: list[tuple[str, int, int]] = []
    examples_of(DataOptions("generated", max_examples=10, length=4), *models, progress=lambda *told: seen.append(told))
    assert seen == [("writing texts", 5, 10), ("writing texts", 10, 10)]


def test_a_class_that_can_not_write(models, monkeypatch):
    monkeypatch.setattr("isobasin.tasks.generated.load_model", lambda *_: torch.nn.Linear(2, 2))
    with pytest.raises(IsobasinError, match="generated: Linear has no method that writes texts"):
        written(models)


def test_masked_models_fill_in_what_they_predict(tmp_path):
    """Of two tokens, drawn uniformly first, one of both at random is drawn anew after the other one, 24 times."""
    folder, count = masked(tmp_path / "a"), 20000
    tokenizer = load_processor(folder, TaskKind.masked_lm).tokenizer
    found = examples_of(DataOptions("generated", max_examples=count, length=4), folder).fetch(range(count))
    texts = torch.where(found["labels"] == IGNORED, found["input_ids"], found["labels"])
    assert texts[:, 0].unique().tolist() == [tokenizer.cls_token_id]
    assert texts[:, 3].unique().tolist() == [tokenizer.sep_token_id]
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(CHARACTERS)))
    model = load_model(folder, TaskKind.masked_lm)

    def predicted(place: int) -> torch.Tensor:
        """Of each letter in the other place, what is predicted in this one."""
        rows = torch.tensor([[tokenizer.cls_token_id, 0, 0, tokenizer.sep_token_id]]).repeat(len(letters), 1)
        rows[:, place], rows[:, 3 - place] = tokenizer.mask_token_id, letters
        with torch.no_grad():
            return model(rows).logits[:, place, letters].double().softmax(-1)

    first, second = predicted(1), predicted(2)
    both = torch.full((len(letters),) * 2, len(letters) ** -2.0, dtype=torch.float64)
    for _ in range(24):
        both = (both.sum(0)[:, None] * first).mT / 2 + both.sum(1)[:, None] * second / 2
    for place, expected in ((1, both.sum(1)), (2, both.sum(0))):
        seen = (texts[:, place, None] == letters).sum(0).double()
        assert int(seen.sum()) == count
        assert chisquare(seen, count * expected).pvalue > 1e-4
        assert chisquare(seen).pvalue < 1e-6


def test_of_filled_texts_some_tokens_are_to_be_predicted(tmp_path):
    models = [masked(tmp_path / str(seed), seed) for seed in (0, 1)]
    both = examples_of(DataOptions("generated", max_examples=100, length=12), *models)
    share = (both.fetch(range(100))["labels"] != IGNORED).double().mean()
    assert 0.08 < share < 0.18
    again = examples_of(DataOptions("generated", max_examples=100, length=12), *models)
    assert both.facts == again.facts
    other = examples_of(DataOptions("generated", max_examples=100, length=12, seed=1), *models)
    assert other.facts.sha256 != both.facts.sha256
    with pytest.raises(DataError, match="length 3 leaves no tokens to predict"):
        examples_of(DataOptions("generated", length=3), *models)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "modernbert", "electra", "albert", "roformer", "mpnet"])
def test_masked_families_write(family, tmp_path):
    found = examples_of(DataOptions("generated", max_examples=20, length=8), masked(tmp_path / "a", family=family))
    assert found.fetch(range(20))["input_ids"].shape == (20, 8)
    assert len(found.fetch(range(20))["input_ids"].unique()) > 10


def test_what_masked_models_need_of_a_tokenizer(tmp_path):
    """One at all, and a mask; another one may be named."""
    folder = tiny("bert", "writing").save(tmp_path / "a", dtype=torch.float32)
    with pytest.raises(DataError, match="has no tokenizer: name one with --tokenizer"):
        written([folder])
    letters = tmp_path / "letters.json"
    letters.write_text(json.dumps(list(CHARACTERS)))
    with pytest.raises(DataError, match="the tokenizer has no mask token"):
        written([folder], tokenizer=str(letters))
    assert written([folder], tokenizer=str(masked(tmp_path / "b"))).shape == (12, 6)


def test_lines_of_encoders_are_learned_from_them(tmp_path):
    models = [masked(tmp_path / str(seed), seed) for seed in (0, 1)]
    how = Refining(steps=30, batch_size=8, every=10, rate=2e-2, warmup=3, minutes=0)
    found = isobasin.refine(*models, DataOptions("generated", max_examples=64, length=16), tmp_path / "out", how=how)
    assert found.refined.after < 0.9 * found.refined.before
    assert all(verified.equal for verified in found.verified)


@pytest.mark.parametrize(("dtype", "quicker"), [("float32", True), ("float32", False), ("float64", True)])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_texts_are_written_in_bfloat16_where_that_is_quicker(family, dtype, quicker, tmp_path, monkeypatch):
    """Models that are stored in double write in double."""
    folder, used = masked(tmp_path / "a", family=family), list[torch.dtype]()
    tiny(family, "writing").save(folder, dtype=getattr(torch, dtype))
    real = load_model

    def loaded(*given):
        model = real(*given)
        model.register_forward_pre_hook(lambda module, *_: used.append(module.dtype))
        return model

    monkeypatch.setattr("isobasin.tasks.generated.load_model", loaded)
    monkeypatch.setattr("isobasin.tasks.generated.quicker_in_bfloat16", lambda *_: quicker)
    assert written([folder]).shape == (12, 6)
    assert {*used} == {torch.bfloat16 if quicker and dtype == "float32" else getattr(torch, dtype)}


def test_writing_texts_takes_of_the_minutes_to_learn(models, tmp_path, monkeypatch):
    """A command ends when it said it would, whatever its minutes went into; data that are read take none."""
    from isobasin.refinement import refine as module

    given: list[float] = []

    def stop(line, examples, how, **options):
        given.append(how.minutes)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "descend", stop)
    monkeypatch.setattr(module.time, "perf_counter", iter(range(0, 10**6, 90)).__next__)
    data = DataOptions("generated", max_examples=8, length=8)
    found = examples_of(data, *models)
    ready = TensorExamples.of(found.fetch(range(8)), replace(found.facts, source="elsewhere"))
    for minutes, source in ((10.0, data), (2.0, data), (1.0, data), (0.0, data), (1.0, ready)):
        how = Refining(minutes=minutes)
        said = source is data and 0 < minutes < 3
        slow = pytest.warns(IsobasinWarning, match="writing texts took") if said else nullcontext()
        with slow, pytest.raises(KeyboardInterrupt):
            isobasin.refine(*models, source, tmp_path / "out", how=how, running=QUIET)
    assert given == [8.5, 0.5, module._HARDLY, 0.0, 1.0]
