"""Reading configurations: what is wrong is said in one line that names file and entry."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_experiments import CONFIGURATION

from isobasin.choices import Redrawn
from isobasin.errors import ConfigurationError
from isobasin.experiments.configuration import packaged, read


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def check_refused(source: object, *naming: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(str(source))
    message = str(caught.value)
    assert "\n" not in message
    for name in (str(source), *naming):
        assert name in message


def test_a_file_is_read_with_its_defaults(tmp_path: Path):
    settings = read(write(tmp_path / "small.yaml", CONFIGURATION))
    assert settings.title == "small"
    assert settings.models["rotary"].positions == "rotary"
    assert settings.scopes == (Redrawn.first_attention,)
    assert settings.heads == (None,)
    assert settings.settings[0].title == "vit on digits"


def test_a_folder_of_results_does_not_hide_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    assert read("digits").title == packaged()["digits"]


def test_the_papers_are_the_last_of_the_packaged_ones():
    titles = packaged()
    assert list(titles)[:5] == ["apart", "demo", "digits", "scale", "small"]
    assert len(titles) >= 15
    assert "paper/vit-mnist" in titles
    assert titles["paper/gpt2-enwik8"] == read("paper/gpt2-enwik8").title


def test_the_known_recipe_is_the_papers():
    for name in ("paper/gpt2-enwik8", "paper/llama-enwik8"):
        for recipe in read(name).training.values():
            assert (recipe.steps, recipe.batch, recipe.rate) == (60_000, 24, 2.5e-4)
            assert (recipe.schedule, recipe.warmup, recipe.weight_decay) == ("cosine", 0, 0)


def test_the_papers_grid_is_complete():
    found = {
        (model.family, model.positions, model.layers, setting.data)
        for name in packaged()
        if name.startswith("paper/")
        for settings in [read(name)]
        for setting in settings.settings
        for model in [settings.models[setting.model]]
    }
    vit = [(1, "mnist"), (2, "mnist"), *((n, d) for n in (2, 4, 6) for d in ("cifar10", "cifar100")), (12, "imagenet")]
    bert = [(layers, data) for layers in (2, 6) for data in ("agnews", "imdb", "dbpedia")]
    lm = [(12, data) for data in ("enwik8", "wikitext103", "lm1b")]
    wanted = {("vit", p, *rest) for p in ("absolute", "rotary") for rest in [*vit, (12, "cifar10"), (12, "cifar100")]}
    wanted |= {("bert", p, *rest) for p in ("absolute", "rotary") for rest in bert}
    wanted |= {("gpt2", p, *rest) for p in ("absolute", "rotary") for rest in lm}
    wanted |= {("llama", "rotary", *rest) for rest in lm}
    assert found == wanted


@pytest.mark.parametrize("name", [name for name in packaged() if name != "demo"])
def test_packaged_ones_run_all_scopes_with_three_seeds(name: str):
    settings = read(name)
    assert len(settings.seeds) == 3
    assert settings.points == 25
    assert set(settings.scopes) == set(Redrawn)


def change(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        place: Any = content
        for step in path[:-1]:
            place = place[step]
        if to is None:
            del place[path[-1]]
        else:
            place[path[-1]] = to

    return apply


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], tuple[str, ...]]] = {
    "unknown entry": (change("sedes", to=[1, 2]), ("unknown entry sedes", "did you mean 'seeds'?")),
    "unknown entry inside": (
        change("models", "vit", "hedas", to=2),
        ("unknown entry models.vit.hedas", "did you mean 'heads'?"),
    ),
    "unknown entry of a setting": (
        change("settings", 0, "ablations", to={"stage1": True}),
        ("settings.0.ablations.stage1", "did you mean 'stage_1'?"),
    ),
    "missing": (change("models", "vit", "layers", to=None), ("models.vit.layers is missing",)),
    "wrong type": (change("models", "vit", "layers", to="many"), ("models.vit.layers", "integer", "'many'")),
    "too small": (change("points", to=1), ("points", "greater than or equal to 2", "not 1")),
    "unknown model": (change("settings", 0, "model", to="vitt"), ("model 'vitt' isn't defined", "did you mean 'vit'?")),
    "unknown data": (change("settings", 0, "data", to="x"), ("data 'x' isn't defined", "there is 'digits'")),
    "unknown training": (change("settings", 0, "finetune", to="slow"), ("training 'slow' isn't defined",)),
    "unknown scope": (change("scopes", to=["first-atention"]), ("scopes.0", "'first-attention'", "first-atention")),
    "seeds twice": (change("seeds", to=[1, 2, 1]), ("seeds has 1 twice",)),
    "one seed": (change("seeds", to=[1]), ("seeds", "at least 2")),
    "no naive line": (change("methods", to=["paper"]), ('methods lacks "none"',)),
    "heads that don't divide": (change("heads", to=[3]), ("heads has 3", "width 16")),
    "settings alike": (
        lambda content: content["settings"].append(content["settings"][0]),
        ("settings has 'vit on digits' twice",),
    ),
    "task of another family": (
        change("data", "digits", to={"source": "x", "task": "causal-lm", "length": 8, "tokenizer": {}}),
        ("family vit has no task causal-lm",),
    ),
    "positions of another family": (
        lambda content: content.update(
            models={"vit": {"family": "llama", "layers": 1, "width": 16, "heads": 2}},
            data={"digits": {"source": "x", "task": "causal-lm", "length": 8, "tokenizer": {}}},
        ),
        ("family llama has no absolute positions: write `positions: rotary`",),
    ),
    "unknown family": (change("models", "vit", "family", to="qwen33"), ("family 'qwen33'", "did you mean 'qwen3'?")),
    "test and holdout": (change("data", "digits", "holdout", to=0.1), ("data.digits", "either test or holdout")),
    "text without tokenizer": (change("data", "digits", "task", to="causal-lm"), ("length and tokenizer",)),
    "symmetry that isn't broken": (
        change("settings", 0, "ablations", to={"symmetry_breaking": [1]}),
        ("rotary positions only",),
    ),
    "no number": (change("training", "quick", "rate", to=float("nan")), ("training.quick.rate", "finite number")),
    "infinite": (change("training", "quick", "rate", to=float("inf")), ("training.quick.rate", "finite number")),
    "width": (change("models", "vit", "width", to=10**9), ("models.vit.width", "less than or equal to 1048576")),
    "layers": (change("models", "vit", "layers", to=10**7), ("models.vit.layers", "less than or equal to 1000")),
    "parameters": (change("models", "vit", "width", to=2**18), ("models.vit: its layers have 5.5e+11 parameters",)),
    "points": (change("points", to=10**9), ("points", "less than or equal to 10001")),
    "batch": (change("batch", to=10**9), ("batch", "less than or equal to 65536")),
    "image size": (change("data", "digits", "image_size", to=10**9), ("image_size", "less than or equal to 4096")),
    "seed": (change("seeds", to=[1, 10**23]), ("seeds.1", "less than")),
    "cells": (change("seeds", to=list(range(1000))), ("make 500500 cells, more than 20000: divide them",)),
    "offsets": (change("settings", 0, "ablations", to={"symmetry_breaking": [10**18]}), ("symmetry_breaking.0",)),
    "options that are no values": (
        change("models", "vit", "options", to={"a": datetime.date(2001, 1, 1)}),
        ("models.vit.options",),
    ),
    "unknown entry of what may be null": (
        change("settings", 0, "ablations", to={"alignments": {"step": 3}}),
        ("settings.0.ablations.alignments.step", "did you mean 'steps'?"),
    ),
    "ablated scope that isn't run": (
        change("settings", 0, "ablations", to={"stage_1": True, "scope": "first-layer"}),
        ("ablations.scope is first-layer",),
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_entries(kind: str, tmp_path: Path):
    content = copy.deepcopy(CONFIGURATION)
    apply, naming = WRONG[kind]
    apply(content)
    check_refused(write(tmp_path / "wrong.yaml", content), *naming)


def test_several_wrong_entries_are_counted(tmp_path: Path):
    content = {**CONFIGURATION, "points": 1, "batch": 0, "extra": 1}
    check_refused(write(tmp_path / "wrong.yaml", content), "(and 2 more)")


@pytest.mark.parametrize(
    ("content", "naming"),
    [
        ("title: [", ("line 1", "isn't valid YAML")),
        ("title: a\nseeds: [1]\ntitle: b\n", ("line 3", "'title' is there twice")),
        ("just words", ("isn't an experiment",)),
        ("[" * 100_000, ("line 1", "isn't valid YAML (has more than 32 levels)")),
        ("a: &a [*a]", ("isn't valid YAML (has more than 32 levels)",)),
        ("\n".join(["x0: &x0 [1]", *(f"x{i}: &x{i} [*x{i - 1}]" for i in range(1, 40))]), ("more than 32 levels",)),
        (
            "\n".join(["x0: &x0 [1, 1]", *(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, 25))]),
            ("20000 entries",),
        ),
        (
            "\n".join(["x0: &x0 {a: 1}", *(f"x{i}: &x{i} {{<<: [*x{i - 1}, *x{i - 1}]}}" for i in range(1, 15))]),
            ("20000 entries",),
        ),
        ("seeds: [" + "1," * 30_000 + "]", ("20000 entries",)),
        ("title: 2001-99-99", ("isn't valid YAML (month must be in 1..12",)),
        ("title: !!int x", ("isn't valid YAML",)),
        ("title: " + "9" * 5000, ("isn't valid YAML",)),
        ("title: !!python/object/apply:os.system [true]", ("isn't valid YAML",)),
        ("\x01", ("isn't valid YAML",)),
        ("? [a]\n: b", ("isn't valid YAML",)),
        ("", ("isn't an experiment",)),
    ],
)
def test_files_that_are_no_configuration(content: str, naming: tuple[str, ...], tmp_path: Path):
    check_refused(write(tmp_path / "wrong.yaml", content), *naming)


def test_merged_entries_may_be_replaced(tmp_path: Path):
    text = yaml.safe_dump({name: part for name, part in CONFIGURATION.items() if name != "models"})
    text += "models:\n  vit: &vit {family: vit, layers: 2, width: 16, heads: 2, feedforward: 16, patch: 4}\n"
    settings = read(write(tmp_path / "merged.yaml", text + "  deep: {<<: *vit, layers: 5}\n"))
    assert settings.models["deep"] == settings.models["vit"].model_copy(update={"layers": 5})
    check_refused(write(tmp_path / "twice.yaml", text + "  vit: {<<: *vit, layers: 5}\n"), "'vit' is there twice")


def test_what_is_not_there(tmp_path: Path):
    check_refused(tmp_path / "none.yaml", "no such file")
    check_refused("digitz", "did you mean 'digits'?")
    check_refused("paper/vit-minst", "did you mean 'paper/vit-mnist'?")
    check_refused(tmp_path, "is a folder, not a file")
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    check_refused(tmp_path / "device.yaml", "is a pipe or a device")
    (tmp_path / "large.yaml").write_text("#" * 2**21)
    check_refused(tmp_path / "large.yaml", "bytes, more than")
