"""What a written model says of itself: the recipe that made it, to be run again, and a model card for the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isobasin.beside import ALIGNMENT, CARD, RECIPE
from isobasin.canonical import Canonical
from isobasin.checkpoints.files import WatchedFile
from isobasin.errors import CheckpointError
from isobasin.recipes import Recipe, followed, version
from isobasin.text import markdown

_NEW = (
    "It computes something new: scores of the models above are not its own, and neither their cards nor the logs of "
    "their trainings were copied."
)
_SAME = (
    "It computes what {models} computes, with other weights. Its own scores were not measured: the card of that model "
    "says which it had."
)
# What is said of a command's result; every other one mixes models.
_MOVES = {
    "align": "moved next to {others} by symmetries that keep the function",
    "apply": "moved as `alignment.isobasin` says, which keeps the function",
    "scramble": "moved by a random element of its symmetry group, which keeps the function",
    "canonicalize": "in the gauge that all its moved copies share; the function is kept",
    "diagnose": "as {others} stored it, without the defects of that conversion",
    "gauge": "in the gauge where rounding its weights to a few bits costs least; the function is kept",
    "refine": "moved by symmetries that were learned on data so that the line to {others} is low; the function is kept",
}
_MIXES = {
    "interpolate": "a point of the straight line between them",
    "merge": "their weighted mean after alignment",
    "transport": "a fine-tune's change carried to another base",
}
_LARGEST = 2**20
_METADATA = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def leave(
    folder: Path, models: Sequence[Canonical], others: Sequence[Canonical] = (), *, library: str = "transformers"
) -> None:
    """Write recipe and card into a folder, where a recipe is followed; the same bytes for the same recipe and models.

    Args:
        folder: Has the model, and the alignment if there is one.
        models: What the result computes, or what it was mixed from.
        others: What else was read.
        library: What loads the result.
    """
    recipe = followed()
    if recipe is None or recipe.command not in _MOVES | _MIXES:
        return  # of a model that is written to be looked at and goes again
    if "alignment" in recipe.options and (folder / ALIGNMENT).exists():
        unsaid = tuple(name for name in recipe.unsaid if name != "alignment")
        recipe = replace(recipe, options={**recipe.options, "alignment": ALIGNMENT}, unsaid=unsaid)
    if not recipe.unsaid:
        (folder / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / CARD).write_text(_card(recipe, models, others, library), encoding="utf-8")


def _card(recipe: Recipe, models: Sequence[Canonical], others: Sequence[Canonical], library: str) -> str:
    from huggingface_hub import ModelCardData

    licenses = {_license(model) for model in (*models, *others)}
    data = ModelCardData(
        base_model=[named for model in models if (named := _base(model))] or None,
        library_name=library,
        license=licenses.pop() if len(licenses) == 1 else None,
        tags=["isobasin", *(["merge"] if recipe.command in _MIXES else [])],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_text(recipe, models, others)}"


def _text(recipe: Recipe, models: Sequence[Canonical], others: Sequence[Canonical]) -> str:
    ends, beside = (" and ".join(_shown(model) for model in which) for which in (models, others))
    what = (_MOVES | _MIXES)[recipe.command].format(others=beside)
    told = (_NEW if recipe.command in _MIXES else _SAME).format(models=ends)
    if recipe.unsaid:
        again = f"Made from Python, with {', '.join(recipe.unsaid)} that no file can hold. The rest was:"
    else:
        again = f"`isobasin run {RECIPE} -o OUT` makes it again; paths are as they were given. The file says:"
    return (
        f"# {ends}: isobasin {recipe.command}\n\n{ends}, {what}; written by isobasin {version()}.\n\n"
        f"{told}\n\n## How it was made\n\n{again}\n\n```yaml\n{recipe.to_yaml()}```\n"
    )


def _shown(model: Canonical) -> str:
    return markdown(model.name)


def _base(model: Canonical) -> str | None:
    """What the hub is told of where a model comes from: its id; of a folder a path that can't be taken for an id."""
    folder = os.fspath(model.checkpoint.folder)
    if not os.path.isdir(model.name):
        # An id leads to a folder of another name. A model in memory has none, but what it is called has spaces.
        return None if " " in model.name else model.name.partition("@")[0]
    return model.name if os.path.isabs(folder) or model.name.startswith(".") else os.path.join(".", model.name)


def _license(model: Canonical) -> str | None:
    """The licence that a model's own card states, if it is one that its name says all of."""
    found = _metadata(model.checkpoint.folder / CARD).get("license")
    return found if isinstance(found, str) and found not in ("other", "unknown") else None


def _metadata(card: Path) -> dict[str, Any]:
    """What somebody's card says for machines; nothing where it says nothing that can be read."""
    import yaml

    try:
        file = WatchedFile.of(card)
        if file.size > _LARGEST:
            return {}
        text = bytearray(file.size)
        with file.open() as opened:
            file.fill(opened, 0, memoryview(text))
        found = _METADATA.match(text.decode("utf-8", "replace"))
        content: Any = yaml.safe_load(found[1]) if found else None
    except (CheckpointError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
