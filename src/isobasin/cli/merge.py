"""`isobasin merge`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from isobasin.choices import Device, HeadCost, Method, Readout, Scope, Space
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.options import (
    AllowPickleOption,
    ByNameOption,
    CommonRowsOption,
    DeviceOption,
    ForceOption,
    HeadCostOption,
    JsonOption,
    MethodOption,
    OutputOption,
    ScopeOption,
    TakeConfigOption,
    choose,
)
from isobasin.cli.tables import change, number, table

if TYPE_CHECKING:
    from rich.table import Table

    from isobasin.verbs.merge import Merged

EXAMPLE = "isobasin merge runs/seed0 runs/seed1 -t 0.5 -o merged"


def merge(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODELS", help="Local folders or hub ids of two or more checkpoints: A B C ..."),
    ],
    output: OutputOption,
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
    space: Annotated[
        Space,
        choose("--space", Space),
    ] = Space.weights,
    method: MethodOption = Method.gauss_newton,
    head_cost: HeadCostOption = HeadCost.rotary,
    scope: ScopeOption = Scope.attention,
    take_config: TakeConfigOption = False,
    by_name: ByNameOption = False,
    common_rows: CommonRowsOption = False,
    head: Annotated[
        Readout | None,
        choose("--head", Readout, "Without it models with other heads are refused."),
    ] = None,
    device: DeviceOption = Device.cpu,
    force: ForceOption = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Don't verify the moves, and don't run the result.")
    ] = False,
    allow_pickle: AllowPickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Align models to A without changing what they compute, and write their mean in A's form."""
    with working("reading") as progress:
        from isobasin.verbs.merge import merge

        found = merge(
            models,
            output,
            t=_numbers(t),
            space=space,
            method=method,
            head_cost=head_cost,
            scope=scope,
            take_config=take_config,
            by_name=by_name,
            common_rows=common_rows,
            head=head,
            device=device,
            verify=not no_verify,
            force=force,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    if as_json:
        show_json({"output": str(output), "space": space, **found.to_json()})
        return
    show(*_report(found))
    show_path("Written to", output)


def _numbers(given: list[str] | None) -> list[float] | None:
    """The numbers of all occurrences of `-t`, with commas between or not."""
    from isobasin.errors import IsobasinError

    try:
        return [float(part) for text in given for part in text.split(",")] if given else None
    except ValueError as error:
        raise IsobasinError(f"-t {' -t '.join(given or ())}: give a number, or several with commas between") from error


def _report(found: Merged) -> Iterator[RenderableType]:
    if min(found.weights) < 0:
        weights = " and ".join(map(number, found.weights))
        yield Text(f"Not a mean: with weights {weights} it lies beyond the two models.", "yellow")
    if found.distances:
        start, end = found.distances[0], min(found.distances)
        yield f"Distance to the common centre: {number(start)} → {number(end)}, {len(found.distances)} rounds."
    elif not found.alignments:
        yield "All weight is on a model that can't be merged with the others: it is written as it is."
    else:
        gap = found.alignments[0].total_distance()
        before, after = gap["before"], gap["after"]
        yield f"Distance of what was matched: {number(before)} → {number(after)} ({change(before, after)})."
    if found.truncation:
        yield "Share of the mean circuits that heads of this width can't hold:"
        yield _truncation(found)
    if found.checked is None:
        yield "Not run."
    else:
        yield f"It loads, and its outputs are finite ({found.checked})."
        if found.alignments:
            yield "It computes something new: no more can be verified."


def _truncation(found: Merged) -> Table:
    shown = table("layer", "Q-K", "V-O")
    for layer in found.truncation:
        shown.add_row(str(layer.layer), f"{100 * layer.query_key:.1f}%", f"{100 * layer.value_output:.1f}%")
    return shown
