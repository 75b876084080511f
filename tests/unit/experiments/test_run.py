"""Running experiments: real cells, resuming, failures, and what stays of models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experiments import CONFIGURATION, Seen, small

from isobasin.choices import Redrawn
from isobasin.errors import ArchitectureError, ConfigurationError, DataError, IsobasinError, OutputError
from isobasin.execution.local import Here, Processes
from isobasin.experiments import work
from isobasin.experiments.cells import Cell, comparable
from isobasin.experiments.data import data_root, rows
from isobasin.experiments.run import Experiment, Summary, run
from isobasin.experiments.scopes import reinitialise
from isobasin.experiments.settings import DataSettings, ExperimentSettings
from isobasin.experiments.work import Job, RunOptions
from isobasin.records.file import RecordFile
from isobasin.tasks.kind import load_model

OPTIONS = RunOptions("cpu", data_root())
LABELS = [
    "vit on digits: pretraining",
    "vit on digits: first-attention, seed 1",
    "vit on digits: first-attention, seed 2",
    "vit on digits: first-attention, seeds 1 and 2",
]


def records(experiment: Experiment) -> dict[str, Any]:
    found = {cell.label: experiment.store.record(cell) for cell in experiment.cells()}
    return {label: comparable(record) for label, record in found.items() if record is not None}


def go(experiment: Experiment, watcher: Seen | None = None, **options: Any) -> Summary:
    return run(experiment, experiment.cells(), Here(), OPTIONS, watcher or Seen(), **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A small experiment, done in this process."""
    experiment = Experiment.begin(small(), tmp_path_factory.mktemp("done") / "out")
    watcher = Seen()
    assert go(experiment, watcher) == Summary(cells=4, kept=0, done=4)
    assert watcher.done_cells == watcher.started_cells == LABELS
    return experiment


def test_records_say_what_was_done(done: Experiment):
    found = records(done)
    assert list(found) == LABELS
    for cell, record in zip(done.cells(), found.values(), strict=True):
        assert record["kind"] == cell.kind
        assert record["key"] == cell.key
        assert record["spec"] == cell.spec
        assert record["needs"] == [need.key for need in cell.needs]
        assert record["versions"]["torch"] == torch.__version__
    trained = found[LABELS[1]]["result"]
    assert trained["train_data"]["examples"] == 40
    assert trained["test_data"]["examples"] == 20
    assert [step for step, _ in trained["training"]["losses"]] == [1, 2]


def test_the_losses_of_a_pair_are_those_of_its_models_and_of_its_records(done: Experiment):
    found, cells = records(done), done.cells()
    result = found[LABELS[3]]["result"]
    ends = [found[label]["result"]["test"]["loss"] for label in LABELS[1:3]]
    assert result["t"] == [0, 0.5, 1]
    for line in result["lines"].values():
        assert [line["losses"][0], line["losses"][-1]] == pytest.approx(ends, rel=1e-5)
    measured = RecordFile.read(done.store.path(cells[3]))
    assert [point.loss for point in measured.points[(0, 1), "none"]] == result["lines"]["none"]["losses"]
    assert measured.curves[(0, 1), "gauss-newton"].barrier == result["lines"]["gauss-newton"]["barrier"]
    assert not any(Path(model.name).is_absolute() for model in measured.run.models)


def test_only_the_scope_differs_between_models(done: Experiment):
    cells = done.cells()
    models = [load_model(done.store.path(cell) / "model", "image-classification") for cell in cells[:3]]
    states = [model.state_dict() for model in models]
    for name, tensor in states[0].items():
        first = "layers.0.attention" in name or "layer.0.attention" in name
        for other in states[1:]:
            assert torch.equal(tensor, other[name]) != first, name
    assert any("0.attention" in name for name in states[0])


def test_every_seed_draws_its_own_layer(tmp_path: Path):
    still = {"steps": 1, "batch": 8, "rate": 1e-9}
    setting = {**CONFIGURATION["settings"][0], "finetune": "still"}
    settings = small(training={**CONFIGURATION["training"], "still": still}, settings=[setting], heads=[4])
    experiment = Experiment.begin(settings, tmp_path / "out")
    cells = experiment.cells()[:3]
    assert run(experiment, cells, Here(), OPTIONS, Seen()).done == 3
    models = [load_model(experiment.store.path(cell) / "model", "image-classification") for cell in cells]
    for seed, model in enumerate(models[1:], start=1):
        drawn = reinitialise(models[0], Redrawn.first_attention, seed, 4).state_dict()
        assert model.state_dict().keys() == drawn.keys()
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor, drawn[name], rtol=0, atol=1e-6), name
    first, second = (model.state_dict() for model in models[1:])
    assert max((first[name] - second[name]).abs().max().item() for name in first) > 1e-3


def test_nothing_is_done_twice(done: Experiment):
    watcher = Seen()
    assert go(Experiment.begin(small(), done.folder), watcher) == Summary(cells=4, kept=4)
    assert watcher.started_cells == []


@pytest.mark.long
def test_other_processes_get_the_same_records(done: Experiment, tmp_path: Path):
    other = Experiment.begin(small(), tmp_path / "out")
    summary = run(other, other.cells(), Processes(2, threads=1), OPTIONS, Seen())
    assert (summary.done, summary.failed) == (4, {})
    assert records(other) == records(done)


def test_a_pair_is_enough_without_models(done: Experiment, tmp_path: Path):
    folder = tmp_path / "out"
    shutil.copytree(done.folder, folder)
    for model in folder.glob("cells/*/model"):
        shutil.rmtree(model)
    copied = Experiment.open(folder)
    assert go(copied) == Summary(cells=4, kept=4)
    # If it is gone, its models are trained again, with the same result.
    before = records(copied)
    shutil.rmtree(copied.store.path(copied.cells()[3]))
    assert go(copied) == Summary(cells=4, kept=0, done=4)
    assert records(copied) == before


def test_another_classifier_for_other_data(tmp_path: Path):
    data = {
        name: {"source": f"generated:{name}", "task": "image-classification", "image_size": 8}
        for name in ("before", "other")
    }
    one = {"model": "vit", "pretrain_data": "before", "data": "other", "pretrain": "quick", "finetune": "quick"}
    experiment = Experiment.begin(small(data=data, settings=[one]), tmp_path / "out")
    classes = {
        name: max(rows(DataSettings.model_validate(part), "train", "")["label"]) + 1 for name, part in data.items()
    }
    assert classes["before"] != classes["other"]
    assert go(experiment).failed == {}
    base, first, second, _ = experiment.cells()
    states = [
        load_model(experiment.store.path(cell) / "model", "image-classification").state_dict()
        for cell in (base, first, second)
    ]
    shapes = [state["classifier.weight"].shape[0] for state in states]
    assert shapes == [classes["before"], classes["other"], classes["other"]]
    # It is trained although everything else is frozen.
    assert not torch.equal(states[1]["classifier.weight"], states[2]["classifier.weight"])
    embeddings = [name for name in states[0] if "embeddings" in name]
    assert embeddings
    assert all(torch.equal(states[0][name], states[1][name]) for name in embeddings)


Fake = Callable[[Job], dict[str, Any]]


def trained(job: Job) -> dict[str, Any]:
    (job.folder / "model").mkdir(exist_ok=True)
    (job.folder / "model" / "config.json").touch()
    return {"seed": job.spec["seed"]}


def paired(job: Job) -> dict[str, Any]:
    assert all((model / "config.json").exists() for model in job.models)
    return {"nan": float("nan")}


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    """Work that takes no time; tests may replace parts of it."""
    found: dict[str, Fake] = {"pretrain": trained, "finetune": trained, "pair": paired}
    monkeypatch.setattr("isobasin.experiments.run.WORK", found)
    return found


def three() -> ExperimentSettings:
    return small(seeds=[1, 2, 3])


def test_failures_stop_what_needs_them_and_are_tried_again(faked: dict[str, Fake], tmp_path: Path):
    def fails(job: Job) -> dict[str, Any]:
        if job.spec["seed"] == 2:
            raise IsobasinError("no luck today")
        if job.spec["seed"] == 3:
            raise ZeroDivisionError("a bug")
        return trained(job)

    experiment, watcher = Experiment.begin(three(), tmp_path / "out"), Seen()
    faked["finetune"] = fails
    summary = go(experiment, watcher)
    second, third = ("vit on digits: first-attention, seed 2", "vit on digits: first-attention, seed 3")
    assert (summary.cells, summary.done, summary.blocked) == (7, 2, 3)
    assert set(summary.failed) == {second, third}
    assert summary.failed[second] == "no luck today"
    trace = summary.failed[third].removeprefix("unexpected ZeroDivisionError: a bug (see ").removesuffix(")")
    assert "raise ZeroDivisionError" in Path(trace).read_text()
    assert experiment.failures() == {second: "no luck today", third: "unexpected ZeroDivisionError: a bug"}
    assert experiment.state()["finetune"] == {"done": 1, "failed": 2}
    assert experiment.state()["pair"] == {"to do": 3}

    faked["finetune"] = trained
    assert go(experiment) == Summary(cells=7, kept=2, done=5)
    assert experiment.failures() == {}
    assert list((tmp_path / "out" / "failures").iterdir()) == []


def test_values_that_are_no_numbers_are_null(faked: dict[str, Fake], tmp_path: Path):
    experiment = Experiment.begin(small(), tmp_path / "out")
    go(experiment)
    assert records(experiment)[LABELS[3]]["result"] == {"nan": None}


def test_models_are_removed_once_nothing_needs_them(faked: dict[str, Fake], tmp_path: Path):
    there: list[int] = []

    def counted(job: Job) -> dict[str, Any]:
        there.append(len(list((tmp_path / "out" / "cells").glob("*/model"))))
        return paired(job)

    faked["pair"] = counted
    experiment = Experiment.begin(three(), tmp_path / "out")
    assert go(experiment, keep_models=False).done == 7
    # The base is needed until the last one is made from it; the first two models wait for the third.
    assert there == [3, 3, 2]
    assert list((tmp_path / "out" / "cells").glob("*/model")) == []
    assert experiment.left(experiment.cells()) == []
    go(Experiment.begin(three(), tmp_path / "kept"))
    assert len(list((tmp_path / "kept" / "cells").glob("*/model"))) == 4


def test_an_interrupted_run_goes_on(faked: dict[str, Fake], tmp_path: Path):
    def interrupted(job: Job) -> dict[str, Any]:
        raise KeyboardInterrupt

    experiment = Experiment.begin(small(), tmp_path / "out")
    faked["pair"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        go(experiment)
    faked["pair"] = paired
    watcher = Seen()
    assert go(experiment, watcher) == Summary(cells=4, kept=3, done=1)
    assert watcher.done_cells == LABELS[3:]


def test_some_settings_only(tmp_path: Path):
    settings = [{**CONFIGURATION["settings"][0], "model": model} for model in ("vit", "rotary")]
    experiment = Experiment.begin(small(settings=settings), tmp_path / "out")
    assert len(experiment.cells()) == 8
    assert [cell.label for cell in experiment.cells(["vit on"])] == LABELS
    assert len(experiment.cells(["rotary", "vit on"])) == 8
    with pytest.raises(
        ConfigurationError, match=r"setting 'rotarry on digits': there is none; did you mean 'rotary on digits'"
    ):
        experiment.cells(["rotarry on digits"])


def test_a_model_that_can_not_be_made_is_refused_before_any_is_trained(tmp_path: Path):
    models = CONFIGURATION["models"]
    wrong = {name: {key: x for key, x in model.items() if key != "patch"} for name, model in models.items()}
    with pytest.raises(
        ArchitectureError, match=r"^rotary on digits: a vit model needs `patch`, the side of its patches"
    ):
        Experiment.begin(
            small(
                models={**models, "rotary": wrong["rotary"]},
                settings=[{**CONFIGURATION["settings"][0], "model": m} for m in ("vit", "rotary")],
            ),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_folders_of_others_are_refused(tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(OutputError, match="isn't an experiment's"):
        Experiment.begin(small(), folder)
    with pytest.raises(ConfigurationError, match=r"has no experiment\.json"):
        Experiment.open(folder)
    assert [path.name for path in folder.iterdir()] == ["mine"]
    Experiment.begin(small(), tmp_path / "full")
    with pytest.raises(OutputError, match="holds a full run"):
        Experiment.begin(small(), tmp_path / "full", smoke=True)
    (tmp_path / "full" / "experiment.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="isn't readable"):
        Experiment.open(tmp_path / "full")


def test_what_is_opened_is_what_was_begun(tmp_path: Path):
    begun = Experiment.begin(three(), tmp_path / "out")
    opened = Experiment.open(tmp_path / "out")
    assert opened.settings == begun.settings
    assert [cell.key for cell in opened.cells()] == [cell.key for cell in begun.cells()]
    assert opened.smoke is False
    assert json.loads((tmp_path / "out" / "experiment.json").read_text())["schema_version"] == 1


def test_missing_data_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ISOBASIN_DATA", str(tmp_path / "nowhere"))
    assert data_root() == str(tmp_path / "nowhere")
    data = DataSettings(source="{data}/mnist/mnist.npz", task="image-classification")
    with pytest.raises(DataError) as caught:
        rows(data, "train", data_root())
    assert "\n" not in str(caught.value)
    for part in ("{data}/mnist/mnist.npz", str(tmp_path / "nowhere" / "mnist" / "mnist.npz"), "ISOBASIN_DATA"):
        assert part in str(caught.value)
    monkeypatch.delenv("ISOBASIN_DATA")
    monkeypatch.chdir(tmp_path)
    assert data_root() == str(tmp_path.parent / "shared" / "data")


def test_a_part_that_is_held_out(tmp_path: Path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"text {i},{i % 3}\n" for i in range(40)))
    data = DataSettings.model_validate(
        {
            "source": "{data}/rows.csv",
            "task": "text-classification",
            "test": None,
            "holdout": 0.25,
            "length": 8,
            "tokenizer": {},
        }
    )
    parts = {part: rows(data, part, str(tmp_path))["text"] for part in ("train", "test")}
    assert [len(texts) for texts in parts.values()] == [30, 10]
    assert sorted([*parts["train"], *parts["test"]]) == sorted(f"text {i}" for i in range(40))
    assert list(parts["test"]) != [f"text {i}" for i in range(30, 40)]


def test_every_kind_of_cell_is_known():
    ablations = {"stage_1": True, "stage_2": True, "head_costs": True, "reinitialise": True}
    ablations |= {"symmetry_breaking": [1], "alignments": {"steps": 1}}
    setting = {**CONFIGURATION["settings"][0], "model": "rotary", "ablations": ablations}
    experiment = Experiment(small(settings=[setting]), Path("nowhere"))
    assert {cell.kind for cell in experiment.cells()} == set(work.WORK)
    assert all(isinstance(cell, Cell) for cell in experiment.cells())
    assert {group.scope for group in experiment.plans[0].groups} == {Redrawn.first_attention}
