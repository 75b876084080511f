import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from measured_models import Models, tiny_vit

from isobasin import interpolate
from isobasin.choices import WAYS
from isobasin.errors import ArchitectureError, IsobasinError, OutputError, RecordError
from isobasin.lines import ends as measured_by
from isobasin.lines.ends import Measuring
from isobasin.lines.measure import measure
from isobasin.records.file import Measured, RecordFile
from isobasin.tasks.losses import evaluate

_QUICK = Measuring(points=5, batch_size=25)


@pytest.fixture(scope="module")
def ran(models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Measured]:
    """All pairs of three models in all ways."""
    output = tmp_path_factory.mktemp("measured") / "out"
    return output, measure([models.a, models.b, models.c], models.examples(), output, _QUICK, settings={"seed": 0})


def content(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder without what time it took, which their checksums cover too."""
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    times = {"seconds", "interpolation_seconds", "overhead", "checksum"}
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


def stop_after(count: int) -> Callable[[str, int, int], None]:
    """A progress callback that interrupts when so many losses are there."""

    def progress(what: str, done: int, total: int) -> None:
        if what == "losses" and done >= count:
            raise KeyboardInterrupt

    return progress


def test_every_pair_method_and_point_is_recorded(ran: tuple[Path, Measured]):
    _, found = ran
    keys = {(pair, method) for pair in ((0, 1), (0, 2), (1, 2)) for method in WAYS}
    assert found.points.keys() == found.curves.keys() == keys
    assert found.alignments.keys() == {key for key in keys if key[1] != "none"}
    assert all(tuple(p.t for p in points) == (0, 0.25, 0.5, 0.75, 1) for points in found.points.values())
    assert found.run.group_weights == (1,) * 60
    assert [len(record.sha256) for record in found.run.models] == [64] * 3
    assert len({record.sha256 for record in found.run.models}) == 3


def test_an_equivalent_model_has_a_barrier_until_it_is_aligned(ran: tuple[Path, Measured]):
    curves = ran[1].curves
    naive, ours = curves[(0, 1), "none"], curves[(0, 1), "gauss-newton"]
    assert naive.barrier is not None
    assert naive.barrier > 0.1
    assert naive.relative == 1
    assert ours.barrier == pytest.approx(0, abs=1e-5)
    layers = ran[1].alignments[(0, 1), "gauss-newton"].layers
    assert all(layer.distance_after < 1e-4 < layer.distance_before for layer in layers)
    for layer in layers:
        costs = torch.tensor(layer.head_costs)
        assert costs.shape == (4, 4)
        assert costs.argmin(1).tolist() == list(layer.head_permutation)


def test_a_move_changes_no_loss(ran: tuple[Path, Measured]):
    points = ran[1].points
    for (pair, method), line in points.items():
        unmoved = points[pair, "none"]
        assert line[0].loss == unmoved[0].loss
        assert line[-1].loss == pytest.approx(unmoved[-1].loss, rel=1e-4), method


def test_every_loss_is_that_of_the_interpolated_checkpoint(models: Models, ran: tuple[Path, Measured], tmp_path: Path):
    for index, t in enumerate((0, 0.25, 0.5, 0.75, 1)):
        interpolate(models.a, models.c, t, tmp_path / str(index))
        model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / str(index))
        expected = evaluate(model, models.examples(), batch_size=25)
        point = ran[1].points[(0, 2), "none"][index]
        assert point.loss == pytest.approx(expected.loss, rel=1e-6)
        assert point.group_losses == pytest.approx(expected.group_losses, rel=1e-6)
        assert point.metrics == expected.metrics
        assert point.calibrated_loss == pytest.approx(expected.calibrated_loss, rel=1e-5)


@pytest.mark.parametrize("count", [1, 3, 13])
def test_an_interrupted_run_goes_on_where_it_stopped(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
):
    arguments = [models.a, models.c], models.examples()
    how = Measuring(("none", "heads", "gauss-newton"), points=5, batch_size=25)
    measure(*arguments, tmp_path / "whole", how)
    with pytest.raises(KeyboardInterrupt):
        measure(*arguments, tmp_path / "stopped", how, progress=stop_after(count))
    torn = tmp_path / "stopped" / "records.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"kind": "poi')
    evaluations: list[object] = []

    def counted(*args: Any, **options: Any) -> Any:
        evaluations.append(args)
        return evaluate(*args, **options)

    monkeypatch.setattr(measured_by, "evaluate", counted)
    measure(*arguments, tmp_path / "stopped", how)
    # Of 15 points, three are the unmoved A, and those that were recorded.
    assert len(evaluations) == 13 - len({1: [0], 3: [0, 1, 2], 13: range(11)}[count])
    unique = {json.dumps(line): line for line in content(tmp_path / "stopped")}
    assert sorted(unique) == sorted(json.dumps(line) for line in content(tmp_path / "whole"))


def test_a_finished_run_evaluates_nothing(models: Models, ran: tuple[Path, Measured], monkeypatch: pytest.MonkeyPatch):
    before = (ran[0] / "records.jsonl").read_bytes()
    monkeypatch.setattr(measured_by, "evaluate", None)
    again = measure([models.a, models.b, models.c], models.examples(), ran[0], _QUICK, settings={"seed": 0})
    assert (ran[0] / "records.jsonl").read_bytes() == before
    assert again.curves == ran[1].curves


def test_the_records_of_another_run_are_kept_unless_forced(models: Models, tmp_path: Path):
    how = Measuring(("none",), points=3)
    measure([models.a, models.b], models.examples(), tmp_path, how)
    before = (tmp_path / "records.jsonl").read_bytes()
    for others, data, other, what in (
        ([models.a, models.c], models.examples(), how, "models"),
        ([models.a, models.b], models.examples(10), how, "data"),
        ([models.a, models.b], models.examples(), Measuring(("none",), points=5), "t"),
        ([models.a, models.b], models.examples(), Measuring(("none",), points=3, batch_size=7), "settings"),
    ):
        with pytest.raises(RecordError, match=rf"another run \(its {what} differ\).*--force"):
            measure(others, data, tmp_path, other)
        assert (tmp_path / "records.jsonl").read_bytes() == before
    found = measure([models.a, models.c], models.examples(), tmp_path, how, force=True)
    assert RecordFile.read(tmp_path).run == found.run
    assert found.run.models[1].name == str(models.c)


def test_what_can_not_be_measured_is_refused_before_any_work(models: Models, tmp_path: Path):
    examples = models.examples()
    other = tiny_vit(tmp_path / "other", 2, heads=2)
    with pytest.raises(IsobasinError, match="at least two"):
        measure([models.a], examples, tmp_path / "out")
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ArchitectureError, match="A is a vit model, B a bert model: give two that agree"):
        measure([models.a, tmp_path / "bert"], examples, tmp_path / "out")
    with pytest.raises(ArchitectureError, match="num_attention_heads is 4 in A and 2 in B"):
        measure([models.a, other], examples, tmp_path / "out", Measuring(("none",), points=2))
    assert not (tmp_path / "out").exists()


def test_records_may_lie_beside_the_data(models: Models, tmp_path: Path):
    """As those of a study do whose file names the folder that it is run in."""
    examples: Any = models.examples()
    examples = replace(examples, facts=replace(examples.facts, source=str(tmp_path)))
    for _ in range(2):
        measure([models.a, models.b], examples, tmp_path / "out", Measuring(("none",), points=2, batch_size=25))
    with pytest.raises(OutputError, match="is, holds or lies in the input"):
        measure([models.a, models.b], examples, models.a, Measuring(("none",), points=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("nonsense",)}, "way 'nonsense': did you mean 'none'"),
        ({"methods": ()}, "name at least one"),
        ({"points": 1}, "points is 1: give a number from 2 to 10,001"),
        ({"points": 10**9}, "points is 1000000000: give a number from 2 to 10,001"),
        ({"batch_size": 0}, "batch size is 0: give a number from 1 to 65,536"),
        ({"batch_size": 10**12}, "batch size is 1000000000000: give a number from 1"),
        ({"batch_size": 0}, "batch size is 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str):
    with pytest.raises(IsobasinError, match=message):
        Measuring(**options)


def test_an_older_file_is_gone_on_with_by_its_batches(models: Models, tmp_path: Path):
    arguments, how = ([models.a, models.c], models.examples()), Measuring(("none",), points=5, batch_size=25)
    whole = measure(*arguments, tmp_path / "whole", how).points[(0, 1), "none"]
    batches = (slice(0, 25), slice(25, 50), slice(50, 60))
    means = [
        tuple(sum(point.group_losses[part]) / len(point.group_losses[part]) for part in batches) for point in whole
    ]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "records.jsonl").read_text().splitlines()][:3]
    for line, old in zip(lines, ((25, 25, 10), *means[:2]), strict=True):
        del line["checksum"], line["group_weights" if line["kind"] == "run" else "group_losses"]
        line["batch_weights" if line["kind"] == "run" else "batch_losses"] = old
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = measure(*arguments, tmp_path / "old", how)
    assert found.run.group_weights == (25, 25, 10)
    for point, same, losses in zip(found.points[(0, 1), "none"], whole, means, strict=True):
        assert (point.loss, point.metrics) == (same.loss, same.metrics)
        assert point.group_losses == pytest.approx(losses, rel=1e-6)
    assert found.curves[(0, 1), "none"].barrier_error is not None
