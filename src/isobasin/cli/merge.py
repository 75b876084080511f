"""`isobasin merge`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from isobasin.choices import Device, Dtype, HeadCost, MergeMethod, Method, Objective, Readout, Scope, Space
from isobasin.cli import options
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.dry_run import dry_run as dry_run_of
from isobasin.cli.examples import calibration_for, examples_for
from isobasin.cli.tables import change, number, table

if TYPE_CHECKING:
    from rich.table import Table

    from isobasin.alignment import Alignment
    from isobasin.verbs.merge import Merged
    from isobasin.verbs.settings import Progress

# The least difference of losses that four digits show.
_SEEN = 1e-4

EXAMPLE = "isobasin merge runs/seed0 runs/seed1 -t 0.5 -o merged"


def merge(
    models: options.Models,
    output: options.Output,
    t: Annotated[
        list[str] | None,
        typer.Option(
            "-t",
            "--at",
            metavar="T",
            help="Place on the line between two models, 0 is A, 1 is B; or a weight for each model, W1,W2,... or "
            "repeated, of which the ratios count. By default all weigh the same.",
        ),
    ] = None,
    space: Annotated[Space, options.choose("--space", Space)] = Space.weights,
    merge_method: Annotated[MergeMethod, options.choose("--merge-method", MergeMethod)] = MergeMethod.mean,
    density: Annotated[
        float | None,
        typer.Option("--density", metavar="X", help="With --merge-method ties: share of the largest changes kept."),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option("--refine", help="Learn the alignment on --data first, as `isobasin refine` does by default."),
    ] = False,
    minutes: Annotated[
        float,
        typer.Option("--minutes", metavar="N", min=0, help="With --refine: how long to learn, at most; 0: no limit."),
    ] = 30.0,
    method: options.Method = Method.gauss_newton,
    head_cost: options.HeadCost = HeadCost.rotary,
    scope: options.Scope = Scope.attention,
    keep_gains: options.KeepGains = False,
    objective: options.Objective = Objective.weights,
    force_unrelated: Annotated[
        bool, typer.Option("--force-unrelated", help="Write the mean of models that have nothing in common.")
    ] = False,
    data: options.Calibration = None,
    split: options.Split = None,
    name: options.Name = None,
    columns: options.Columns = None,
    max_examples: options.MaxExamples = 512,
    length: options.Length = None,
    task: options.Task = None,
    tokenizer: options.Tokenizer = None,
    skip_unknown: options.SkipUnknown = False,
    take_config: options.TakeConfig = False,
    by_name: options.ByName = False,
    common_rows: options.CommonRows = False,
    head: Annotated[
        Readout | None, options.choose("--head", Readout, "Without it models with other heads are refused.")
    ] = None,
    untie: options.Untie = False,
    device: options.Device = Device.auto,
    dtype: options.Dtype = Dtype.keep,
    max_condition: options.MaxCondition = None,
    force: options.Force = False,
    no_verify: options.NoRun = False,
    allow_pickle: options.AllowPickle = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Align models to A without changing what they compute, and write their mean in A's form."""
    arguments = options.given(locals())
    if dry_run:
        return dry_run_of(models, arguments | {"as_json": as_json}, "merge", learns=refine)
    with working("reading") as progress:
        from isobasin.verbs.merge import merge

        arguments["t"] = _numbers(t)
        learning = {name: arguments.pop(name) for name in ("refine", "minutes")}
        if learning["refine"]:
            arguments["alignments"] = [_learned(models, arguments, learning["minutes"], progress)]
        calibration = calibration_for(models, arguments, progress)
        found = merge(**arguments, calibration=calibration, progress=progress)
    if as_json:
        show_json({"output": str(output), "space": space, **found.to_json()})
        return
    show(*_report(found, models))
    show_path("Written to", output)


def _learned(models: list[str], arguments: dict[str, Any], minutes: float, progress: Progress) -> Alignment:
    """The move of the second model to the first that `refine` learns, those of both models as one."""
    if len(models) != 2 or arguments["data"] is None:
        raise typer.BadParameter("--refine learns the line between two models on --data: give both models and data")
    from isobasin.checkpoints import temporary_folder
    from isobasin.refinement.recipe import Refining
    from isobasin.refinement.refine import refine
    from isobasin.verbs.settings import Matching, Running

    with temporary_folder() as folder:
        found = refine(
            models[0],
            models[1],
            examples_for(models, arguments | {"seed": Refining.seed}, progress),
            Path(folder) / "refined",
            how=Refining(minutes=minutes),
            matching=options.record(Matching, arguments),
            running=Running(arguments["device"], verify=False, progress=progress),
            take_config=arguments["take_config"],
            allow_pickle=arguments["allow_pickle"],
        )
    return found.alignment if found.reference is None else found.reference.inverse().compose(found.alignment)


def _numbers(given: list[str] | None) -> list[float] | None:
    """The numbers of all occurrences of `-t`, with commas between or not."""
    from isobasin.errors import IsobasinError

    try:
        return [float(part) for text in given for part in text.split(",")] if given else None
    except ValueError as error:
        raise IsobasinError(f"-t {' -t '.join(given or ())}: give a number, or several with commas between") from error


def _report(found: Merged, models: list[str]) -> Iterator[RenderableType]:
    for relation in found.relations:
        yield Text(f"{relation.model}: {relation.words}.", "" if relation.related else "yellow")
    if found.distances:
        start, end = found.distances[0], min(found.distances)
        yield f"Distance to the common centre: {number(start)} -> {number(end)}, {len(found.distances)} rounds."
    elif not found.alignments:
        yield "All weight is on a model that can't be merged with the others: it is written as it is."
    else:
        gap = found.alignments[0].total_distance()
        before, after = gap["before"], gap["after"]
        yield f"Distance of what was matched: {number(before)} -> {number(after)} ({change(before, after)})."
    if found.truncation:
        yield "Share of the mean circuits that heads of this width can't hold:"
        yield _truncation(found)
    yield from _losses(found, models)
    if found.checked is None:
        yield "Not run."
    else:
        yield f"It loads, and its outputs are finite ({found.checked})."
        if found.alignments:
            yield "It computes something new: no more can be verified."


def _losses(found: Merged, models: list[str]) -> Iterator[Text]:
    if len(found.losses) > 1:
        *ends, result = found.losses
        named = ", ".join(f"{loss:.4f} ({name})" for name, loss in zip(models, ends, strict=True))
        gap = result - max(ends)
        above = f", {gap:.4f} above the worst of them" if gap >= _SEEN else ""
        yield Text(f"Loss on the data: {named}; of the result {result:.4f}{above}.", "yellow" if above else "")


def _truncation(found: Merged) -> Table:
    shown = table("layer", "Q-K", "V-O")
    for layer in found.truncation:
        shown.add_row(str(layer.layer), f"{100 * layer.query_key:.1f}%", f"{100 * layer.value_output:.1f}%")
    return shown
