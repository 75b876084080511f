"""Every packaged configuration runs from end to end, made tiny and on made-up data."""

from __future__ import annotations

import gc
import json
from importlib import import_module
from pathlib import Path

import pytest
from small_experiments import Seen

from isobasin.execution.local import Here
from isobasin.experiments.configuration import packaged, read
from isobasin.experiments.data import data_root, rows
from isobasin.experiments.run import Experiment, run
from isobasin.experiments.smoke import GENERATED, shrunk
from isobasin.experiments.work import RunOptions


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Training collects garbage after every model: without what was imported, of which there is far more."""
    for name in ("models", "experiments.training", "experiments.ablations", "lines.measure"):
        import_module(f"isobasin.{name}")
    gc.collect()
    gc.freeze()


# One of every task, and one whose models are trained on other data first.
QUICK = ("digits", "paper/bert-agnews", "paper/llama-enwik8", "paper/vit-imagenet21k")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK)) for name in packaged()]
)
def test_a_packaged_configuration_runs(name: str, tmp_path: Path):
    experiment = Experiment.begin(read(name), tmp_path, smoke=True)
    cells = experiment.cells()
    summary = run(experiment, cells, Here(), RunOptions("cpu", data_root()), Seen(), keep_models=False)
    assert summary.failed == {}
    assert summary.done == len(cells)
    given = read(name)
    asked = {scope for setting in given.settings for scope in setting.scopes or given.scopes}
    assert {group.scope for plan in experiment.plans for group in plan.groups} == asked
    for cell in cells:
        record = json.loads((experiment.store.path(cell) / "record.json").read_text())
        source = record["spec"]["data"]["source"]
        assert source == "digits" or source.startswith(GENERATED)


@pytest.mark.parametrize("name", packaged())
def test_what_is_made_up_has_the_columns_of_the_real_data(name: str):
    original = read(name)
    small = shrunk(original)
    for key, data in small.data.items():
        assert data.columns == original.data[key].columns
        for part in ("train", "test"):
            made = rows(data, part, "")
            wanted = {"image-classification": {"image", "label"}, "text-classification": {"text", "label"}}
            assert set(made.column_names) == wanted.get(data.task, {"text"})
    assert {setting.title for setting in small.settings} == {setting.title for setting in original.settings}
    assert "smoke" in small.title
