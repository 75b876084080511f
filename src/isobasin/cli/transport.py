"""`isobasin transport`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from isobasin.beside import ALIGNMENT
from isobasin.choices import Device, HeadCost, Method, Objective, Scope
from isobasin.cli import options
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.dry_run import dry_run as dry_run_of
from isobasin.cli.examples import examples_for
from isobasin.cli.tables import number, table

if TYPE_CHECKING:
    from isobasin.alignment import Alignment
    from isobasin.tasks.data import Examples
    from isobasin.verbs.transport import Transported

EXAMPLE = "isobasin transport base-v1 base-v1-chat base-v2 --data held-out.txt -o base-v2-chat"


def transport(
    base: Annotated[str, options.checkpoint("BASE", "what was fine-tuned.")],
    tuned: Annotated[str, options.checkpoint("TUNED", "its fine-tune.")],
    target: Annotated[str, options.checkpoint("TARGET", "the other base; it isn't changed.")],
    output: options.Output,
    scale: Annotated[
        float | None,
        typer.Option("--scale", metavar="X", help="What the change is multiplied by; without it 1, or as --data say."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Data of the task as in `barrier`, none that TUNED was trained on: they choose the scale, 0 if none "
            "helps. --objective activations weighs by half of them.",
        ),
    ] = None,
    alignment: Annotated[
        Path | None,
        typer.Option(
            "--alignment",
            metavar="ALIGNMENT",
            help=f"A move of BASE to TARGET that is there: {ALIGNMENT}, or the folder that `align TARGET BASE` or "
            "`refine TARGET BASE` wrote.",
        ),
    ] = None,
    split: options.Split = None,
    name: options.Name = None,
    columns: options.Columns = None,
    max_examples: options.MaxExamples = 512,
    length: options.Length = None,
    task: options.Task = None,
    tokenizer: options.Tokenizer = None,
    skip_unknown: options.SkipUnknown = False,
    method: options.Method = Method.gauss_newton,
    head_cost: options.HeadCost = HeadCost.rotary,
    scope: Annotated[
        Scope | None, options.choose("--scope", Scope, "By default the widest that is known for the models.")
    ] = None,
    keep_gains: options.KeepGains = False,
    objective: options.Objective = Objective.weights,
    untie: options.Untie = False,
    device: options.Device = Device.auto,
    max_condition: options.MaxCondition = None,
    force: options.Force = False,
    no_verify: options.NoRun = False,
    allow_pickle: options.AllowPickle = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Carry the fine-tune of one base to another: TARGET + X (g TUNED - g BASE), g the alignment of BASE to TARGET.

    It helps where TARGET comes from BASE: a continued pretraining, a later release, a copy in another gauge. Between
    bases that were trained apart 18 to 78 % of what fine-tuning TARGET itself gains was seen to arrive, half of it on
    average, and with less than --scope model nothing: fine-tune TARGET if you can, and give --data, which find out what
    helps.
    """
    arguments, weighs = options.given(locals()), objective is Objective.activations and alignment is None
    if weighs and data is None:
        raise typer.BadParameter("--objective activations weighs by --data: give them")
    if data is not None and scale is not None and not weighs:
        raise typer.BadParameter("--scale is given, and --data would choose another: give one of the two")
    if dry_run:
        matches = alignment is None
        return dry_run_of((target, base), arguments | {"as_json": as_json}, "transport", matches=matches, moved=tuned)
    with working("reading") as progress:
        from isobasin.verbs.transport import transport

        asked = {key: arguments.pop(key) for key in options.DATA}
        arguments["alignment"] = None if alignment is None else _between(alignment)
        if data is not None:
            examples = examples_for((tuned,), arguments | asked | {"seed": 0}, progress)
            arguments |= _by_data(examples, str(device), scale, weighs)
        found = transport(**arguments, progress=progress)
    if as_json:
        show_json({"output": str(output), **found.to_json()})
        return
    show(*_report(found))
    show_path("Written to", output)


def _between(path: Path) -> Alignment:
    """The move of BASE to TARGET in a file or folder; where `refine` moved both, the two moves as one."""
    from isobasin.alignment import Alignment
    from isobasin.beside import REFERENCE, alignment_file

    found, other = Alignment.load(path), path / REFERENCE
    if path.is_dir() and alignment_file(other).is_file():
        return Alignment.load(other).inverse().compose(found)
    return found


def _by_data(examples: Examples, device: str, scale: float | None, weighs: bool) -> dict[str, Any]:
    """What data choose: the scale, if none is given; and by a half of them the alignment, if they weigh."""
    from isobasin.lines.ends import Losses, Measuring
    from isobasin.refinement.calibration import DataCalibration
    from isobasin.tasks.examples import divided

    found: dict[str, Any] = {}
    if weighs:
        weighing, held = divided(len(examples), (len(examples) + 1) // 2, 0)
        found["calibration"] = DataCalibration(examples.subset(weighing), device)
        examples = examples.subset(held) if len(held) else examples
    if scale is None:
        found["losses"] = Losses(examples, Measuring(device=device, temperature=False)).means
    return found


def _report(found: Transported) -> Iterator[RenderableType]:
    from isobasin.cli.alignment_report import verification_line

    if found.losses:
        shown = table("scale", "loss on held-out data")
        for scale, loss in found.losses.items():
            shown.add_row(number(scale), f"{loss:.4f}", style="bold" if scale == found.scale else "")
        yield shown
    if found.losses and not found.scale:
        yield Text("No scale helps on these data: the result is TARGET as it is.", "yellow")
    distance, change = number(found.distance), number(found.change)
    yield f"Scale {number(found.scale)}: a change of size {change}; BASE lies {distance} from TARGET after the move."
    if found.new:
        yield f"Taken from TUNED, as BASE or TARGET has none like them: {', '.join(found.new)}."
    for name, verified in zip(("BASE", "TUNED"), found.verified, strict=False):
        yield verification_line(verified, f"{name} after the move")
    if not found.verified:
        yield Text("The moves weren't verified.", "yellow")
    yield "Not run." if found.checked is None else f"It loads, and its outputs are finite ({found.checked})."
    yield "It computes something new: no more can be verified."
