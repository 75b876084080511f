"""Configurations made so small that they run in seconds, on made-up data: to see that they run, not what comes out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from isobasin.choices import TaskKind, Way
from isobasin.experiments.settings import (
    AblationSettings,
    DataSettings,
    ExperimentSettings,
    ModelSettings,
    SettingSettings,
    TokenizerSettings,
    TrainingSettings,
)
from isobasin.tasks.columns import ROLES

if TYPE_CHECKING:
    import datasets

GENERATED = "generated:"
"""Before the source of data that were made up instead of read."""

_LAYERS, _WIDTH, _HEADS, _OTHER_HEADS, _FEEDFORWARD = 2, 16, 2, 4, 16
_SIDE, _PATCH, _LENGTH = 8, 4, 12
_EXAMPLES = {"train": 24, "test": 12}
_WORDS = ("red", "blue", "old", "new", "boat", "river", "town", "rain", "and", "then")


def shrunk(settings: ExperimentSettings) -> ExperimentSettings:
    """The same experiment with tiny models, made-up data, and a few steps, points and examples.

    scikit-learn's digits stay, since they need no download. One is left of the numbers of heads, of freezing or not,
    and of methods besides "none". Models that differ in size only are now the same, and scopes are dealt out among
    those that are left; every ablation is run by the first setting that asks for it.
    """
    models = {name: _model(model) for name, model in settings.models.items()}
    return settings.model_copy(
        update={
            "title": f"{settings.title} (smoke run: made so small that its figures mean nothing)",
            "models": models,
            "data": {name: _data(data) for name, data in settings.data.items()},
            "training": {name: _training(training) for name, training in settings.training.items()},
            "settings": tuple(_settings(settings, models)),
            "heads": _heads(settings.heads),
            "freeze": settings.freeze[:1],
            "seeds": settings.seeds[:2],
            "methods": (Way.none, *[method for method in settings.methods if method is not Way.none][-1:]),
            "points": 3,
            "batch": 16,
        }
    )


def _model(model: ModelSettings) -> ModelSettings:
    shared = None if model.key_value_heads in (None, model.heads) else 1
    sizes = {"layers": _LAYERS, "width": _WIDTH, "heads": _HEADS, "feedforward": _FEEDFORWARD}
    patch = None if model.patch is None else _PATCH
    return model.model_copy(update={**sizes, "key_value_heads": shared, "patch": patch})


def _data(data: DataSettings) -> DataSettings:
    images = data.task is TaskKind.image_classification
    sizes: dict[str, Any] = {
        "max_train": _EXAMPLES["train"],
        "max_test": _EXAMPLES["test"],
        "length": None if images else _LENGTH,
        "tokenizer": None if data.tokenizer is None else TokenizerSettings(kind=data.tokenizer.kind, size=300),
        "image_size": _SIDE if images else None,
    }
    if data.source != "digits":
        sizes |= {
            "source": f"{GENERATED}{data.source}",
            "name": None,
            "train": "train",
            "test": "test",
            "holdout": None,
        }
    return data.model_copy(update=sizes)


def _training(training: TrainingSettings) -> TrainingSettings:
    return training.model_copy(update={"steps": 2, "batch": 4, "warmup": 0, "save_every": None})


def _settings(settings: ExperimentSettings, models: dict[str, ModelSettings]) -> Iterator[SettingSettings]:
    """The settings, each with its share of the scopes and ablations."""
    distinct = list(dict.fromkeys(models[setting.model].model_dump_json() for setting in settings.settings))
    ablated: set[str] = set()
    for setting in settings.settings:
        ablations = _ablations(setting.ablations, ablated)
        own = setting.scopes or settings.scopes
        share = own[distinct.index(models[setting.model].model_dump_json()) % len(own) :: len(distinct)]
        needed = (ablations.scope,) if ablations.on_pairs else ()
        # All permutations of more heads would take longer than everything else.
        heads = (None,) if ablations.stage_1 else _heads(setting.heads or settings.heads)
        yield setting.model_copy(
            update={
                "scopes": tuple(dict.fromkeys((*share, *needed))),
                "heads": heads,
                "freeze": None if setting.freeze is None else setting.freeze[:1],
                "ablations": ablations,
            }
        )


def _ablations(ablations: AblationSettings, ablated: set[str]) -> AblationSettings:
    """Those that weren't run yet, which are noted."""
    asked = {name for name, value in ablations if name not in ("permutations", "scope") and value}
    off = {name: AblationSettings.model_fields[name].default for name in asked & ablated}
    ablated.update(asked)
    short = None if ablations.alignments is None else ablations.alignments.model_copy(update={"steps": 2, "batch": 2})
    return ablations.model_copy(update={"alignments": short, **off, "permutations": 2})


def _heads(heads: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return (None,) if set(heads) == {None} else (_OTHER_HEADS,)


def generated(data: DataSettings, part: str) -> datasets.Dataset:
    """A few examples in the columns that the real data have.

    Args:
        data: Its source begins with `GENERATED`.
        part: "train" or "test".
    """
    import datasets

    draw = random.Random(f"{data.source} {part}")
    count = _EXAMPLES[part]
    # The number of classes differs between sources, as it does between the real ones.
    classes = 2 + len(data.source) % 3
    labels = [index % classes for index in range(count)]
    made: dict[str, list[Any]] = {"label": labels}
    if data.task is TaskKind.image_classification:
        made["image"] = [_image(label, draw) for label in labels]
    else:
        made["text"] = [_text(label, draw) for label in labels]
    roles = ROLES[data.task] + (("text_pair",) if "text_pair" in data.columns else ())
    made["text_pair"] = [_text(label, draw) for label in labels]
    return datasets.Dataset.from_dict({data.columns.get(role, role): made[role] for role in roles})


def _image(label: int, draw: random.Random) -> Any:
    import numpy as np
    from PIL import Image

    pixels = [[[draw.randrange(128) + 40 * label for _ in range(3)] for _ in range(_SIDE)] for _ in range(_SIDE)]
    return Image.fromarray(np.array(pixels, dtype=np.uint8))


def _text(label: int, draw: random.Random) -> str:
    """Words, of which some tell the label."""
    return " ".join(draw.choice(_WORDS) if index % 3 else _WORDS[label] for index in range(20))
