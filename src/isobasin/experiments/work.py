"""What is done for a cell of each kind. The results are plain values for JSON."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from isobasin.choices import Redrawn, Scope, TaskKind
from isobasin.execution.tasks import Progress
from isobasin.experiments.cells import MODEL
from isobasin.experiments.data import Part, examples, first_examples, image_shape, new_processor, processor_files, rows
from isobasin.experiments.settings import DataSettings, ModelSettings, RefiningSettings, TrainingSettings
from isobasin.loading import pretrained
from isobasin.tasks.kind import load_model
from isobasin.tasks.processors import load_config

if TYPE_CHECKING:
    from isobasin.lines.ends import Measuring, OpenPair
    from isobasin.records.file import Measured
    from isobasin.tasks.data import Examples

# States that an interrupted training resumes from; removed when the cell is done.
_STATES = "training"


@dataclass(frozen=True)
class RunOptions:
    """What may differ between runs of one experiment without changing what is asked.

    Attributes:
        device: Where the work is done.
        data_root: The folder that `{data}` stands for.
    """

    device: str
    data_root: str


@dataclass(frozen=True)
class Job:
    """One cell, ready to be done.

    Attributes:
        spec: Of the cell.
        needs: Folders of the cells that it needs, in their order.
        folder: Where its files go.
        options: Of the run.
        progress: Called as the work goes on.
    """

    spec: dict[str, Any]
    needs: tuple[Path, ...]
    folder: Path
    options: RunOptions
    progress: Progress

    @property
    def data(self) -> DataSettings:
        """Its data."""
        return DataSettings.model_validate(self.spec["data"])

    @property
    def kind(self) -> TaskKind:
        """What is learnt."""
        return TaskKind(self.data.task)

    @property
    def models(self) -> tuple[Path, ...]:
        """Models of the cells that it needs."""
        return tuple(folder / MODEL for folder in self.needs)

    def load(self, index: int = 0) -> Any:
        """One of those models, on the CPU."""
        return load_model(self.models[index], self.kind)

    def examples(self, part: Part, model: Path, labels: tuple[str, ...] | None) -> Examples:
        """Its training or test examples."""
        return examples(self.data, part, self.options.data_root, model, labels)

    def tests(self) -> Examples:
        """Test examples for the models that it needs."""
        return self.examples("test", self.models[0], _labels(load_config(self.models[0]), self.kind))


def _pretrain(job: Job) -> dict[str, Any]:
    from isobasin.experiments.models import new_model

    data, model = job.data, job.folder / MODEL
    dataset = rows(data, "train", job.options.data_root)
    processor = new_processor(data, dataset)
    (processor.tokenizer or processor.images).save_pretrained(model)
    found = first_examples(data, job.options.data_root, processor)
    facts: dict[str, Any] = {"num_labels": found.facts.num_labels, "length": data.length}
    if job.kind is TaskKind.image_classification:
        facts["image_size"], facts["channels"] = image_shape(data, dataset)
    else:
        facts |= {"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    untrained = new_model(ModelSettings.model_validate(job.spec["model"]), data.task, seed=job.spec["seed"], **facts)
    _name_labels(untrained, found)
    return _trained(job, untrained, found)


def _finetune(job: Job) -> dict[str, Any]:
    from isobasin.experiments.scopes import reinitialise, trainable

    spec, base = job.spec, job.models[0]
    model, fresh = job.load(), set[str]()
    labels = None if spec["new_classifier"] else _labels(model.config, job.kind)
    found = job.examples("train", base, labels)
    if spec["new_classifier"]:
        model, fresh = _with_classifier(base, model, found)
    model = reinitialise(model, Redrawn(spec["scope"]), spec["seed"], spec["heads"])
    trainable(model, Redrawn(spec["scope"]), spec["freeze"])
    for name, parameter in model.named_parameters():
        if name in fresh:
            parameter.requires_grad_(True)
    (job.folder / MODEL).mkdir(exist_ok=True)
    for file in processor_files(base):
        shutil.copyfile(file, job.folder / MODEL / file.name)
    return _trained(job, model, found)


def _trained(job: Job, model: Any, found: Examples) -> dict[str, Any]:
    """Train a model, store it, and say how well it does on the test part."""
    from isobasin.experiments.training import train

    settings = TrainingSettings.model_validate(job.spec["training"])
    states, seed, progress = job.folder / _STATES, job.spec["seed"], partial(job.progress, "training")
    log = train(model, found, settings, seed=seed, folder=states, device=job.options.device, progress=progress)
    shutil.rmtree(states, ignore_errors=True)
    model.save_pretrained(job.folder / MODEL)
    tests = job.examples("test", job.folder / MODEL, _labels(model.config, job.kind))
    test = _evaluated(job, model, tests, settings.batch)
    return {"train_data": _facts(found), "test_data": _facts(tests), "training": asdict(log), "test": test}


def _evaluated(job: Job, model: Any, tests: Examples, batch: int) -> dict[str, Any]:
    from isobasin.tasks.losses import evaluate

    model = model.to(job.options.device).eval()
    found = evaluate(model, tests, batch_size=batch, device=job.options.device, temperature=False)
    return {"loss": found.loss, "metrics": dict(found.metrics)}


def _labels(config: Any, kind: TaskKind) -> tuple[str, ...] | None:
    """Names of a model's classes; None for a language model."""
    return tuple(config.id2label[index] for index in range(config.num_labels)) if kind.classifies else None


def _name_labels(model: Any, found: Examples) -> None:
    """Give a model's classes the names that the data have for them."""
    names = found.facts.label_names
    if names is not None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: index for index, name in enumerate(names)}


def _with_classifier(folder: Path, model: Any, found: Examples) -> tuple[Any, set[str]]:
    """The model with a classifier for other classes, drawn anew where their number differs, and what was drawn."""
    with torch.random.fork_rng(devices=[]):
        # The same for all seeds: only the scope is to differ between them.
        torch.manual_seed(0)
        config = load_config(folder, num_labels=found.facts.num_labels)
        changed, report = pretrained(type(model), folder, config, ignore_mismatched_sizes=True)
    _name_labels(changed, found)
    return changed, {name for name, *_ in report["mismatched_keys"]}


def _facts(found: Examples) -> dict[str, Any]:
    """What is recorded of examples."""
    facts = found.facts
    return {"source": facts.source, "examples": facts.examples, "sha256": facts.sha256, "notes": list(facts.notes)}


def _pair(job: Job) -> dict[str, Any]:
    from isobasin.lines.measure import measure

    how = _measuring(job, methods=tuple(job.spec["methods"]))
    # Records name the models: relative paths say nothing of the machine.
    models = [os.path.relpath(model) for model in job.models]
    return _lines(measure(models, job.tests(), job.folder, how, force=True, progress=job.progress))


def _lines(measured: Measured) -> dict[str, Any]:
    """The lines of a pair by method, without how long they took: losses, metrics, barriers."""
    from isobasin.records.curves import finished_curves

    lines: dict[str, Any] = {}
    for (pair, method), curve in finished_curves(measured).items():
        points = measured.points[pair, method]
        lines[method] = {
            **curve.model_dump(exclude={"kind", "pair", "method", "overhead"}),
            "losses": [point.loss for point in points],
            "metrics": {name: [point.metrics[name] for point in points] for name in points[0].metrics},
        }
    return {
        "models": [model.sha256 for model in measured.run.models],
        "test_data": measured.run.data.model_dump(mode="json"),
        "t": list(measured.run.t),
        "lines": {method: lines[method] for method in measured.run.methods},
    }


def _measuring(job: Job, **more: Any) -> Measuring:
    """How the lines between two models are measured; matched is what was drawn anew."""
    from isobasin.lines.ends import Measuring

    spec = job.spec
    more.setdefault("scope", Scope.block if spec["feedforward"] else Scope.attention)
    return Measuring(points=spec["points"], batch_size=spec["batch"], device=job.options.device, **more)


def _reinitialise(job: Job) -> dict[str, Any]:
    """Losses of the pretrained model as it is, and with the attention of one layer drawn anew."""
    from isobasin.experiments.scopes import reinitialise_layer

    model, tests, batch = job.load(), job.tests(), job.spec["batch"]
    count, seeds = model.config.num_hidden_layers, job.spec["seeds"]
    layers: list[dict[str, Any]] = []
    for layer in range(count):
        drawn = (reinitialise_layer(model, layer, seed) for seed in seeds)
        layers.append({"layer": layer, "draws": [_evaluated(job, one, tests, batch) for one in drawn]})
        job.progress("drawing layers anew", layer + 1, count)
    return {"test_data": _facts(tests), "pretrained": _evaluated(job, model, tests, batch), "layers": layers}


def _on_pair(job: Job, ablated: Callable[[OpenPair], dict[str, Any]], **how: Any) -> dict[str, Any]:
    """One of the ablations on the two models that the cell needs."""
    from isobasin.lines.ends import Losses, OpenPair

    tests, (a, b) = job.tests(), job.models
    with OpenPair.open(a, b, Losses(tests, _measuring(job, temperature=False, **how))) as pair:
        return {"test_data": _facts(tests), **ablated(pair)}


def _ablation(name: str, *entries: str) -> Callable[[Job], dict[str, Any]]:
    """What does the ablation of this name, which is called with these entries of the cell's specification."""

    def work(job: Job) -> dict[str, Any]:
        from isobasin.experiments import ablations

        return _on_pair(job, lambda pair: getattr(ablations, name)(pair, *map(job.spec.__getitem__, entries)))

    return work


def _alignments(job: Job) -> dict[str, Any]:
    from isobasin.experiments.alignments import alignments
    from isobasin.refinement.recipe import Refining

    asked = RefiningSettings.model_validate(job.spec["refining"])
    # In single precision and for as long as it takes, so that it doesn't depend on the machine.
    how = Refining(
        asked.steps,
        asked.batch,
        asked.rate,
        both=asked.both,
        targets=asked.targets,
        noise=asked.noise,
        minutes=0,
        mixed_precision=False,
    )
    measured = {"untie": job.spec.get("untie", False)}
    measured |= {"scope": Scope.model} if Redrawn(job.spec["scope"]) is Redrawn.entire_model else {}

    def found(pair: OpenPair) -> dict[str, Any]:
        train = job.examples("train", job.models[0], pair.losses.examples.facts.label_names)
        return {"train_data": _facts(train), **alignments(pair, train, how, progress=job.progress)}

    return _on_pair(job, found, **measured)


WORK: dict[str, Callable[[Job], dict[str, Any]]] = {
    "pretrain": _pretrain,
    "finetune": _finetune,
    "pair": _pair,
    "reinitialise": _reinitialise,
    "stage-1": _ablation("stage_1", "permutations", "seed"),
    "stage-2": _ablation("stage_2"),
    "head-costs": _ablation("head_costs"),
    "symmetry-breaking": _ablation("symmetry_breaking", "offsets"),
    "alignments": _alignments,
}
"""What is done, by kind."""
