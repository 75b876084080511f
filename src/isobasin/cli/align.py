"""`isobasin align`."""

from __future__ import annotations

import typer

from isobasin.beside import ALIGNMENT
from isobasin.choices import Device, Dtype, HeadCost, Method, Objective, Runner, Scope
from isobasin.cli import options
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.dry_run import dry_run as dry_run_of
from isobasin.cli.engines import engine_of
from isobasin.cli.examples import calibration_for

EXAMPLE = "isobasin align runs/seed0 runs/seed1 -o runs/seed1-aligned"


def align(
    reference: options.Reference,
    model: options.Model,
    output: options.Output,
    method: options.Method = Method.gauss_newton,
    head_cost: options.HeadCost = HeadCost.rotary,
    scope: options.Scope = Scope.attention,
    keep_gains: options.KeepGains = False,
    objective: options.Objective = Objective.weights,
    untie: options.Untie = False,
    data: options.Calibration = None,
    split: options.Split = None,
    name: options.Name = None,
    columns: options.Columns = None,
    max_examples: options.MaxExamples = 512,
    length: options.Length = None,
    task: options.Task = None,
    tokenizer: options.Tokenizer = None,
    skip_unknown: options.SkipUnknown = False,
    engine: options.Engine = Runner.local,
    ray_address: options.RayAddress = None,
    workers: options.Workers = None,
    threads: options.Threads = None,
    device: options.Device = Device.auto,
    dtype: options.Dtype = Dtype.keep,
    max_condition: options.MaxCondition = None,
    force: options.Force = False,
    no_verify: options.NoVerify = False,
    allow_pickle: options.AllowPickle = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Move MODEL as near to REFERENCE as it gets without changing what it computes."""
    arguments = options.given(locals())
    if dry_run:
        return dry_run_of((reference, model), arguments | {"as_json": as_json}, "align")
    with working("reading") as progress:
        from isobasin.verbs.align import align
        from isobasin.verbs.settings import chosen_device

        place = chosen_device(device)
        runs = engine_of(**{name: arguments.pop(name) for name in options.ENGINE}, device=place)
        if data is not None and scope is not Scope.model and objective is not Objective.activations:
            raise typer.BadParameter("--data goes with --scope model or with --objective activations")
        calibration = calibration_for((reference, model), arguments, progress)
        found = align(**arguments, calibration=calibration, engine=runs, progress=progress)
    verified = None if found.verified is None else found.verified.to_json()
    if as_json:
        show_json({"output": str(output), "verified": verified, **found.to_json()})
        return
    from isobasin.cli.alignment_report import alignment_report, verification_line

    show(*alignment_report(found, max_condition), verification_line(found.verified))
    show_path("Written to", output)
    show_path("The move itself, for `isobasin apply`:", output / ALIGNMENT)
