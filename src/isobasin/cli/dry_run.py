"""What `--dry-run` says, of every command that has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from isobasin.choices import Scope
from isobasin.cli import options
from isobasin.cli.console import show, show_json, working
from isobasin.cli.tables import table
from isobasin.text import size

if TYPE_CHECKING:
    from isobasin.verbs.outline import Outline


def dry_run(
    models: Sequence[str],
    arguments: Mapping[str, Any],
    command: str,
    *,
    matches: bool = True,
    written: int = 1,
    learns: bool = False,
    moved: str | None = None,
) -> None:
    """Say what a command would do with its arguments, as `given` has them."""
    with working("reading"):
        from isobasin.verbs.outline import outline
        from isobasin.verbs.settings import Matching, Running

        widened = matches and arguments["scope"] is None
        chosen = {**arguments, "scope": Scope.model} if widened else arguments
        found = outline(
            models,
            arguments["output"],
            matching=options.record(Matching, chosen) if matches else None,
            running=options.record(Running, arguments),
            allow_pickle=arguments["allow_pickle"],
            written=written,
            learns=learns,
            widened=widened,
            moved=moved,
        )
    if arguments["as_json"]:
        show_json({"of": command, "output": str(arguments["output"]), **found.to_json()}, "dry-run")
    else:
        show(*_report(found, arguments["output"], learns))


def _report(found: Outline, output: Path, learns: bool) -> Iterator[RenderableType]:
    read = table("model", "type", "parameters", "size", left=("model", "type"), title="What is read")
    for model in found.models:
        read.add_row(model.model, model.model_type, f"{model.parameters:,}", size(model.bytes))
    yield read
    if found.matched:
        parts = table("what", "blocks", "parameters", "group", left=("what", "group"), title="What would be matched")
        parts.columns[-1].no_wrap = False
        for part in found.matched:
            parts.add_row(part.what, str(part.blocks), f"{part.parameters:,}", part.group)
        yield parts
    fits = found.free > found.writes
    yield Text(f"Would write {size(found.writes)} to {output}; {size(found.free)} are free.", "" if fits else "yellow")
    batches = ", and what batches of examples need" if learns else ""
    yield f"Memory: about {size(found.memory)}{batches}."
    near, far = map(_time, found.seconds)
    apart = f" where the models are near each other, {far} where they were trained apart" if far != near else ""
    yield f"Time on two cores: about {near}{apart}{', besides learning' if learns else ''}."
    yield "Only configurations and headers were read, and nothing was written."


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
