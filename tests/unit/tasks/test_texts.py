"""Texts as tokens, and blocks of them."""

from __future__ import annotations

import re

import datasets
import pytest
import torch

from isobasin.errors import DataError, IsobasinError
from isobasin.tasks import texts as module
from isobasin.tasks.data import DataOptions, prepare
from isobasin.tasks.examples import IGNORED
from isobasin.tasks.processors import Processor, build_tokenizer, load_processor

TEXTS = ["the cat sat", "a dog", "on the mat the dog sat"]


def characters(classification, texts=TEXTS):
    return build_tokenizer(texts, "characters", 100, classification=classification)


def rows(texts=TEXTS, labels=None, pairs=None):
    columns = {"text": texts, "label": labels or [0, 1, 1][: len(texts)]}
    return datasets.Dataset.from_dict(columns | ({"text_pair": pairs} if pairs else {}))


def classified(dataset=None, tokenizer=None, config=None, **options):
    processor = Processor(tokenizer=tokenizer or characters(True))
    return prepare(dataset or rows(), "text-classification", processor, DataOptions("set", **options), config=config)


def blocks(texts, tokenizer=None, kind="causal-lm", config=None, **options):
    processor = Processor(tokenizer=tokenizer or characters(kind == "masked-lm", texts))
    dataset = datasets.Dataset.from_dict({"text": texts})
    return prepare(dataset, kind, processor, DataOptions("set", **options), config=config)


def unpadded(batch):
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_to_classify(side):
    tokenizer = characters(True)
    tokenizer.padding_side = side
    found = classified(tokenizer=tokenizer)
    batch = found.fetch([2, 0, 1])
    assert batch["input_ids"].shape == (3, 2 + len(TEXTS[2]))
    assert unpadded(batch) == tokenizer([TEXTS[i] for i in (2, 0, 1)])["input_ids"]
    padded = tokenizer([TEXTS[i] for i in (2, 0, 1)], padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], padded["input_ids"])
    assert torch.equal(batch["attention_mask"], padded["attention_mask"])
    assert batch["labels"].tolist() == [1, 0, 1]
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert (len(found), found.facts.num_labels, found.facts.characters) == (3, 2, None)


def test_padding_of_the_whole_batch_is_left_out():
    batch = classified().fetch([1])
    assert batch["input_ids"].shape == (1, 2 + len(TEXTS[1]))
    assert batch["attention_mask"].all()


def test_padding_changes_no_result(bert):
    model = bert()
    found = classified(config=model.config)
    whole = model(**found.fetch([0, 1, 2])).logits
    for row in range(3):
        torch.testing.assert_close(model(**found.fetch([row])).logits[0], whole[row], atol=1e-6, rtol=0)


def test_pairs():
    tokenizer = characters(True)
    found = classified(rows(pairs=["sat", "", None]), tokenizer)
    assert unpadded(found.fetch(range(3))) == tokenizer(TEXTS, ["sat", "", ""])["input_ids"]


def test_missing_texts_are_empty():
    tokenizer = characters(True)
    found = classified(rows(["the", None, ""]), tokenizer)
    assert unpadded(found.fetch(range(3))) == tokenizer(["the", "", ""])["input_ids"]


@pytest.mark.parametrize(("length", "most"), [(6, 6), (None, 16)])
def test_long_texts_are_cut(length, most, bert):
    config = bert().config
    config.max_position_embeddings = 16
    tokenizer = characters(True)
    found = classified(tokenizer=tokenizer, config=config, length=length)
    assert unpadded(found.fetch(range(3))) == tokenizer(TEXTS, truncation=True, max_length=most)["input_ids"]
    cut = sum(len(text) + 2 >= most for text in TEXTS)
    assert found.facts.notes == (f"{cut} texts fill all of {most} tokens, and may be cut",)


def test_the_tokenizer_may_allow_less(bert):
    tokenizer = characters(True)
    tokenizer.model_max_length = 5
    assert classified(tokenizer=tokenizer, config=bert().config).fetch([2])["input_ids"].shape == (1, 5)


def test_some_texts():
    texts = [c * (i + 1) for i, c in enumerate("abcdefgh")]
    dataset = rows(texts, [0, 1] * 4)
    tokenizer = characters(True, texts)
    found = classified(dataset, tokenizer, max_examples=3, seed=1)
    kept = [len(ids) - 3 for ids in unpadded(found.fetch(range(3)))]
    assert kept == sorted(set(kept))
    assert found.fetch(range(3))["labels"].tolist() == [[0, 1] * 4][0][kept[0] : kept[0] + 1] + [
        k % 2 for k in kept[1:]
    ]
    assert found.facts == classified(dataset, tokenizer, max_examples=3, seed=1).facts
    assert found.facts.sha256 != classified(dataset, tokenizer, max_examples=3, seed=2).facts.sha256


def test_the_hash_is_of_the_tokens():
    shas = [
        classified().facts.sha256,
        classified(rows(labels=[1, 1, 1])).facts.sha256,
        classified(rows(["a dog", *TEXTS[1:]])).facts.sha256,
        classified(length=5).facts.sha256,
    ]
    assert classified().facts.sha256 == shas[0]
    assert len(set(shas)) == len(shas)


def test_subset():
    found = classified()
    part = found.subset([2, 1])
    assert unpadded(part.fetch([0, 1])) == unpadded(found.fetch([2, 1]))
    assert part.facts.examples == len(part) == 2
    assert torch.equal(part[1]["labels"], found[1]["labels"])
    loader = torch.utils.data.DataLoader(found, batch_size=3)
    assert torch.equal(next(iter(loader))["input_ids"], found.fetch(range(3))["input_ids"])


LINES = ["one line\n", "\n", "  another\n", "and the last"]


def test_lines_are_a_running_text():
    tokenizer = characters(False, LINES)
    text = "".join(LINES)
    found = blocks(LINES, tokenizer, length=5)
    ids = found.fetch(range(len(found)))["input_ids"]
    assert ids.shape == (len(text) // 5, 5)
    assert tokenizer.decode(ids.flatten()) == text[: len(text) // 5 * 5]
    assert torch.equal(found.fetch([1])["labels"], ids[1:2])
    assert found.facts.characters == 1
    assert found.facts.notes == ("lines of the text are joined and cut into blocks of 5 tokens",)


def test_long_lines_are_joined_in_order():
    texts = [f"{i} " * 100 + "\n" for i in range(300)]
    tokenizer = characters(False, texts)
    found = blocks(texts, tokenizer, length=50)
    ids = found.fetch(range(len(found)))["input_ids"].flatten()
    assert tokenizer.decode(ids) == "".join(texts)[: len(ids)]


def test_documents_end():
    tokenizer = characters(False)
    found = blocks(TEXTS, tokenizer, length=4)
    joined = [i for text in TEXTS for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    ids = found.fetch(range(len(found)))["input_ids"].flatten().tolist()
    assert ids == joined[: len(ids)]
    assert len(joined) - len(ids) < 4
    assert found.facts.characters == pytest.approx(sum(map(len, TEXTS)) / len(joined))


def test_documents_of_a_tokenizer_without_end(tmp_path):
    (tmp_path / "vocabulary.json").write_text('["' + '", "'.join(sorted(set("".join(TEXTS)))) + '"]')
    tokenizer = load_processor("", "causal-lm", tmp_path / "vocabulary.json").tokenizer
    found = blocks(TEXTS, tokenizer, length=4)
    ids = found.fetch(range(len(found)))["input_ids"].flatten()
    assert tokenizer.decode(ids) == "".join(TEXTS)[: len(ids)]
    with pytest.raises(IsobasinError, match=r"set: has characters that the tokenizer doesn't know, 'Z', 'b', 'r': "):
        blocks(["Zebra", "the"], tokenizer)


def test_default_lengths(gpt2):
    text = ["x" * 5000]
    assert blocks(text).fetch([0])["input_ids"].shape == (1, 1024)
    assert blocks(text, config=gpt2(positions=16).config).fetch([0])["input_ids"].shape == (1, 16)
    assert blocks(["xyz"]).fetch([0])["input_ids"].shape == (1, 3)


def test_some_blocks():
    texts = [chr(97 + i % 26) * 9 for i in range(200)]
    tokenizer = characters(False, texts)
    found = blocks(texts, tokenizer, length=10, max_examples=7)
    assert len(found) == 7
    whole = {tuple(row) for row in blocks(texts, tokenizer, length=10).fetch(range(200))["input_ids"].tolist()}
    assert {tuple(row) for row in found.fetch(range(7))["input_ids"].tolist()} <= whole
    assert found.facts == blocks(texts, tokenizer, length=10, max_examples=7).facts
    assert found.facts.sha256 != blocks(texts, tokenizer, length=10, max_examples=7, seed=1).facts.sha256


def test_blocks_of_a_large_text_come_from_a_sample(monkeypatch):
    """Only some pieces are tokenised, drawn at random, in their order."""
    texts = [f"{i:05} " * 40 + "\n" for i in range(2000)]
    tokenizer = characters(False, texts)
    monkeypatch.setattr(module, "_SAMPLED", 50_000)
    found = blocks(texts, tokenizer, length=100, max_examples=60)
    assert len(found) == 60
    lines = [int(tokenizer.decode(ids).split()[2]) for ids in found.fetch(range(60))["input_ids"]]
    assert lines == sorted(lines)
    assert len({line // 100 for line in lines}) < 15
    assert max(lines) - min(lines) > 1000
    other = blocks(texts, tokenizer, length=100, max_examples=60, seed=1)
    assert other.facts.sha256 != found.facts.sha256


def test_masks():
    texts = ["the cat sat on the mat " * 400]
    tokenizer = characters(True, texts)
    found = blocks(texts, tokenizer, "masked-lm", length=32)
    batch = found.fetch(range(len(found)))
    ids, labels = batch["input_ids"], batch["labels"]
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    assert (ids[:, -1] == tokenizer.sep_token_id).all()
    chosen = labels != IGNORED
    original = torch.where(chosen, labels, ids)[:, 1:-1]
    assert tokenizer.decode(original.flatten()) == texts[0][: original.numel()]
    assert not chosen[:, [0, -1]].any()
    share = chosen[:, 1:-1].double().mean()
    assert abs(share - 0.15) < 0.02
    parts = [(ids == tokenizer.mask_token_id) & chosen, (ids == labels) & chosen]
    masked, same = (part.sum() / chosen.sum() for part in parts)
    assert abs(masked - 0.8) < 0.04
    # A tenth is kept; of the tenth that is replaced a few are drawn as they were.
    assert 0.06 < same < 0.15


def test_masks_are_fixed_by_the_seed():
    texts = ["the cat sat on the mat " * 40]
    found = [blocks(texts, kind="masked-lm", length=32, seed=seed) for seed in (0, 0, 1)]
    assert found[0].facts == found[1].facts
    assert torch.equal(found[0].fetch([3])["input_ids"], found[1].fetch([3])["input_ids"])
    assert found[0].facts.sha256 != found[2].facts.sha256


def test_documents_of_a_masked_model_are_separated():
    tokenizer = characters(True)
    found = blocks(TEXTS, tokenizer, "masked-lm", length=12)
    batch = found.fetch(range(len(found)))
    original = torch.where(batch["labels"] != IGNORED, batch["labels"], batch["input_ids"])[:, 1:-1].flatten()
    joined = [i for t in TEXTS for i in [*tokenizer(t, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]]
    assert original.tolist() == joined[: len(original)]


@pytest.mark.parametrize(("family", "longest"), [("roberta", 13), ("bert", 16), ("mpnet", 138)])
def test_the_longest_text_that_a_model_takes(family, longest):
    from isobasin.architectures.examples import variant

    model = variant(family).build(dtype=torch.float32)
    tokenizer = build_tokenizer(["ab"], "characters", 20, classification=True)
    long = datasets.Dataset.from_dict({"text": ["ab" * 100]})
    found = prepare(long, "masked-lm", Processor(tokenizer=tokenizer), DataOptions("set"), config=model.config)
    assert found.fetch([0])["input_ids"].shape == (1, longest)
    assert torch.isfinite(model(**found.fetch([0])).logits).all()


def fails(said, make):
    with pytest.raises(IsobasinError, match=re.escape(said)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_does_not_fit(bert, gpt2):
    from transformers import GPT2Config

    config = bert().config
    fails("--length 33: the model takes at most 32 tokens", lambda: classified(config=config, length=33))
    fails("set: the text column has 3, not a text", lambda: classified(rows([3, 4, 5])))
    fails("texts need a tokenizer: name one with --tokenizer", lambda: prepare_without("text-classification"))
    fails("texts need a tokenizer: name one with --tokenizer", lambda: prepare_without("causal-lm"))
    small = bert(vocabulary=10).config
    fails("the model knows 10: name its own with --tokenizer", lambda: classified(config=small))
    fails("the model knows 5: name its own", lambda: blocks(TEXTS, config=gpt2(vocabulary=5).config))
    fails("configuration has no pad_token_id", lambda: classified(config=GPT2Config(num_labels=2)))
    fails("the tokenizer has no mask token", lambda: blocks(TEXTS, characters(False), "masked-lm"))
    fails("--length 3 leaves no tokens", lambda: blocks(TEXTS, kind="masked-lm", length=3))
    fails("set: 0 tokens of text, too few", lambda: blocks([""], characters(False)))
    fails("set: 1 tokens of text, too few", lambda: blocks(["a"], characters(False)))
    fails("--length 1 leaves no tokens to predict", lambda: blocks(["a"], characters(False), length=1))


def prepare_without(kind):
    return prepare(rows(), kind, Processor(), DataOptions("set"))


@pytest.fixture
def abc(tmp_path):
    (tmp_path / "abc.json").write_text('["a", "b", "c", " "]')
    return load_processor("nowhere", "causal-lm", tmp_path / "abc.json")


def test_characters_that_a_map_lacks_are_named_or_left_out(abc):
    texts = ["a cab—", "bébé", "ab" * 9 + "éøßæð", ""]
    with pytest.raises(DataError) as caught:
        blocks(texts, abc.tokenizer, length=4)
    assert str(caught.value) == (
        "set: has characters that the tokenizer doesn't know, '—', 'é', 'ø', 'ß', 'æ' and 1 more: add them to it, "
        "or leave them out with --skip-unknown"
    )
    found = blocks(texts, abc.tokenizer, length=4, skip_unknown=True)
    clean = blocks(["a cab", "bb", "ab" * 9, ""], abc.tokenizer, length=4)
    every = range(len(clean))
    assert torch.equal(found.fetch(every)["input_ids"], clean.fetch(every)["input_ids"])
    assert len(found) == len(clean)
    assert found.facts.characters == 1
    note = "8 characters that the tokenizer doesn't know are left out: 'é', 'ß', 'æ', 'ð', 'ø' and 1 more"
    assert found.facts.notes == (*clean.facts.notes, note)


def test_texts_to_classify_likewise(abc):
    with pytest.raises(DataError, match="doesn't know, 'é': add them"):
        classified(rows(["abé", "cc"]), abc.tokenizer)
    found = classified(rows(["abé", "cc"]), abc.tokenizer, skip_unknown=True)
    assert found.fetch([0, 1])["input_ids"].tolist() == [[0, 1], [2, 2]]


def test_what_stands_for_all_others_leaves_nothing_out():
    assert Processor(tokenizer=characters(False)).characters is None
    assert Processor(tokenizer=build_tokenizer(TEXTS, "bpe", 300, classification=False)).characters is None
