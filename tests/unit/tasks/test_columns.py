"""Roles of columns, and labels as the model's numbers."""

from __future__ import annotations

import re

import datasets
import pytest
import torch
from transformers import BertConfig

from isobasin.choices import TaskKind
from isobasin.errors import IsobasinError
from isobasin.tasks.columns import with_roles
from isobasin.tasks.data import DataOptions, read_dataset
from isobasin.tasks.labels import read_labels

TEXT = TaskKind.text_classification


def made(**columns):
    return datasets.Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("kind", "columns", "roles"),
    [
        (TEXT, ["text", "label"], {"text": "text", "label": "label"}),
        (TEXT, ["idx", "Sentence", "Labels"], {"text": "Sentence", "label": "Labels"}),
        (TEXT, ["title", "content", "class"], {"text": "content", "label": "class"}),
        (TEXT, ["description", "text", "label"], {"text": "text", "label": "label"}),
        (
            TEXT,
            ["premise", "hypothesis", "label"],
            {"text": "premise", "text_pair": "hypothesis", "label": "label"},
        ),
        (TaskKind.image_classification, ["img", "fine_label", "label"], {"image": "img", "label": "label"}),
        (TaskKind.causal_lm, ["id", "text"], {"text": "text"}),
        (TaskKind.masked_lm, ["content", "label"], {"text": "content"}),
    ],
)
def test_obvious_names(kind, columns, roles):
    dataset = made(**{name: [name] for name in columns})
    found, notes = with_roles(dataset, kind, {}, "set")
    assert not notes
    assert found[0] == roles


def test_named_columns():
    dataset = made(text=["wrong"], headline=["a"], body=["b"], label=[0], topic=[3])
    found, _ = with_roles(dataset, TEXT, {"text": "headline", "text_pair": "body", "label": "topic"}, "set")
    assert found[0] == {"text": "a", "text_pair": "b", "label": 3}


def test_the_only_string_and_the_only_number(written):
    path = written("rows.csv", "2,a long text about nothing\n0,another\n")
    found = read_dataset(DataOptions(str(path)), TEXT)
    assert found["text"][:] == ["a long text about nothing", "another"]
    assert found["label"][:] == [2, 0]
    assert "rows.csv has no header" in found.info.description
    assert "column '1' is taken as the text" in found.info.description


def test_no_header_and_named_columns(written):
    path = written("test.csv", '"3","Fears for pensions","Unions say so"\n"4","A race","A second\\team"\n')
    options = DataOptions(str(path), columns={"label": "0", "text": "1", "text_pair": "2"})
    found = read_dataset(options, TEXT)
    assert found[1] == {"label": 4, "text": "A race", "text_pair": "A second\\team"}
    said = "which column is the text? It has 0 (3), 1 ('Fears for pensions'), 2 ('Unions say so')"
    with pytest.raises(IsobasinError, match=re.escape(said + ": say --columns text=…,label=…")):
        read_dataset(DataOptions(str(path)), TEXT)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"txt": "text"}, "--columns: text-classification has no role 'txt': it has text, label, text_pair"),
        ({"text": "body"}, "set: has no column 'body': it has text ('a'), label (0)"),
    ],
)
def test_wrong_columns(columns, said):
    with pytest.raises(IsobasinError, match=re.escape(said)):
        with_roles(made(text=["a"], label=[0]), TEXT, columns, "set")


def test_a_long_value_is_cut():
    with pytest.raises(IsobasinError, match=re.escape("c ('xxxxxxxxxxxxxxxxxxxx…)")):
        with_roles(made(a=[1], b=[2], c=["x" * 100]), TEXT, {}, "set")


def config(*names, count=None):
    if names:
        return BertConfig(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    return BertConfig(num_labels=count)


def labels(values, features=None, model=None):
    dataset = datasets.Dataset.from_dict({"label": values}, features=features)
    return read_labels(dataset, model, "set")


def classes(*names):
    return datasets.Features({"label": datasets.ClassLabel(names=list(names))})


@pytest.mark.parametrize(
    ("values", "features", "model", "ids", "note"),
    [
        ([0, 2, 1], None, None, [0, 2, 1], ""),
        ([0, 2, 1], None, config(count=3), [0, 2, 1], ""),
        ([True, False], None, config(count=2), [1, 0], ""),
        ([1.0, 0.0], None, config(count=2), [1, 0], ""),
        ([4, 1, 2], None, config(count=4), [3, 0, 1], "labels 1 to 4 are taken as 0 to 3"),
        ([1, 2], None, config(count=4), [1, 2], ""),
        (["no", "yes"], None, config("yes", "no"), [1, 0], ""),
        (["No", "YES"], None, config("yes", "no"), [1, 0], ""),
        (["pos", "neg"], None, config(count=2), [1, 0], "labels are numbered in sorted order: neg, pos"),
        (["pos", "neg"], None, None, [1, 0], "labels are numbered in sorted order: neg, pos"),
        ([0, 1], classes("no", "yes"), config("yes", "no"), [1, 0], "labels are matched with the model's by name"),
        ([0, 1], classes("no", "yes"), config("no", "yes"), [0, 1], ""),
        ([0, 1], classes("b", "a"), config(count=2), [0, 1], ""),
        ([0, 1], classes("b", "a"), None, [0, 1], ""),
    ],
)
def test_labels(values, features, model, ids, note):
    found = labels(values, features, model)
    assert torch.equal(found.ids, torch.tensor(ids))
    assert found.notes == ((note,) if note else ())
    assert found.count == (model.num_labels if model else max(ids) + 1)


def test_names_of_labels():
    assert labels([0, 1], classes("no", "yes"), config("yes", "no")).names == ("yes", "no")
    assert labels(["b", "a"]).names == ("a", "b")
    assert labels([0, 1]).names is None


@pytest.mark.parametrize(
    ("values", "features", "model", "said"),
    [
        ([0, 5], None, config(count=3), "set: label 5 is outside the model's 3 labels, 0 to 2"),
        ([-2, 1], None, None, "set: label -2 is negative"),
        (["a", "b", "c"], None, config(count=2), "set: label 2 is outside the model's 2 labels"),
        ([0, 2], classes("a", "b", "c"), config(count=2), "set: label 2 is outside the model's 2 labels"),
        ([0, -1], None, None, "set: rows without label: choose a split that has labels"),
        ([0, None], None, None, "set: rows without label"),
        ([0.0, float("nan")], None, None, "set: rows without label"),
        ([0.5, 1.0], None, None, "set: row 1 has label 0.5, which is neither a whole number nor a name"),
        ([[1], [0]], None, None, "set: row 1 has label [1], which is neither"),
        ([0, 1], None, config(count=1), "the model has one output"),
    ],
)
def test_labels_that_do_not_fit(values, features, model, said):
    with pytest.raises(IsobasinError, match=re.escape(said)):
        labels(values, features, model)
