"""`isobasin gauge`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from isobasin.choices import Costs, Device, Dtype, Rounding, Scope
from isobasin.cli import options
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.dry_run import dry_run as dry_run_of
from isobasin.cli.examples import learned_data
from isobasin.quantisation.recipe import LEARNING
from isobasin.refinement.recipe import Refining

if TYPE_CHECKING:
    from rich.console import RenderableType

    from isobasin.quantisation.gauge import Gauged

EXAMPLE = 'isobasin gauge MODEL --for rtn4 --group 128 --data wikitext --split "train[:5%]" -o gauged'

CHANNEL = "channel"


def _group(text: str | None) -> int | None:
    """A number of inputs, or 0 for all of an output."""
    if text is None or text == CHANNEL:
        return None if text is None else 0
    if not text.isdecimal() or not int(text):
        raise typer.BadParameter(f"{text!r}: give a number of inputs from 1 on, or {CHANNEL}")
    return int(text)


def gauge(
    model: options.Model,
    rounding: Annotated[Rounding, options.choose("--for", Rounding)],
    output: options.Output,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar=f"N|{CHANNEL}",
            help=f"Inputs of an output that share a scale, for integers; {CHANNEL}: all, the default but of rtn2.",
        ),
    ] = None,
    by: Annotated[
        Costs | None,
        options.choose("--by", Costs, "By default predictions where there are --data, and otherwise weights."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Data as in `barrier`: learn by what the model makes of them."),
    ] = None,
    split: options.Split = None,
    name: options.Name = None,
    columns: options.Columns = None,
    max_examples: options.LearnedExamples = None,
    length: options.Length = None,
    task: options.Task = None,
    tokenizer: options.Tokenizer = None,
    skip_unknown: options.SkipUnknown = False,
    scope: Annotated[
        Scope | None, options.choose("--scope", Scope, "By default the widest that is known for the model.")
    ] = None,
    untie: options.Untie = False,
    tries: Annotated[int, typer.Option("--tries", metavar="N", min=0, help="Random gauges to start from, too.")] = 4,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Steps, at most.")] = LEARNING.steps,
    minutes: Annotated[
        float, typer.Option("--minutes", metavar="N", min=0, help="How long to learn, at most; 0: as long as it takes.")
    ] = LEARNING.minutes,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Examples of a step.")
    ] = LEARNING.batch_size,
    rate: Annotated[float, typer.Option("--rate", metavar="X", help="Highest learning rate.")] = LEARNING.rate,
    patience: Annotated[
        int | None,
        typer.Option("--patience", metavar="N", min=1, help="Looks at held-out data without gain, then it ends."),
    ] = LEARNING.patience,
    seed: options.Seed = 0,
    device: options.Device = Device.auto,
    dtype: options.Dtype = Dtype.keep,
    force: options.Force = False,
    no_verify: options.NoVerify = False,
    allow_pickle: options.AllowPickle = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Write the same function in the gauge where rounding its weights to a few bits costs least.

    OUT is an ordinary checkpoint, not rounded: give it to the tool that quantises. Rounded are the projections of all
    blocks, as tools do it; embeddings, normalisations, routers and the head stay as they are.
    """
    arguments, sharing = options.given(locals()), _group(group)
    if dry_run:
        return dry_run_of((model,), arguments | {"as_json": as_json}, "gauge", learns=True)
    with working("reading") as progress:
        from isobasin.quantisation.gauge import gauge
        from isobasin.verbs.settings import Running

        found = gauge(
            model,
            rounding,
            output,
            group=sharing,
            data=None if data is None else learned_data(arguments),
            by=by,
            tries=tries,
            scope=scope,
            untie=untie,
            how=options.record(Refining, arguments, both=LEARNING.both, noise=LEARNING.noise),
            running=options.record(Running, arguments, progress=progress),
            allow_pickle=allow_pickle,
        )
    if as_json:
        show_json({"output": str(output), **found.to_json()})
        return
    from isobasin.cli.alignment_report import untied_line, verification_line

    show(*_report(found), *untied_line(found.alignment), verification_line(found.verified))
    show_path("Written to", output)


def _report(found: Gauged) -> Iterator[RenderableType]:
    """What rounding costs before and after, and how that was found."""
    from isobasin.cli.tables import table

    measured = not math.isnan(found.loss)
    shown = table(found.rounding, "error of weights", *(["loss", "KL"] if measured else []))
    if measured:
        shown.add_row("not rounded", "0", f"{found.loss:.4f}", "0")
    for name, cost in (("as trained", found.before), ("in this gauge", found.after)):
        shown.add_row(name, f"{cost.error:.4f}", *([f"{cost.loss:.4f}", f"{cost.divergence:.4f}"] if measured else []))
    yield shown
    if found.after.divergence > found.before.divergence:
        yield Text("On these data, which nothing was learned from, it is no better than as trained.", "yellow")
    went, starts = found.learned, found.starts
    best = min(starts, key=starts.__getitem__)
    place = ", on what was held out" if measured else ""
    yield (
        f"Cost by {found.by}{place}: {starts['as trained']:.4g} as trained, {went.before:.4g} at the "
        f"best of {len(starts)} starts ({best}), {went.after:.4g} learned (step {went.best_step} of {went.steps})."
    )
