"""`isobasin refine`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.choices import GENERATED, Device, Objective, Scope, Targets
from isobasin.cli import options
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.dry_run import dry_run as dry_run_of
from isobasin.cli.examples import learned_data
from isobasin.cli.processes import processes
from isobasin.refinement.recipe import Refining

EXAMPLE = 'isobasin refine runs/seed0 runs/seed1 --data wikitext --split "train[:5%]" -o runs/seed1-refined'


def refine(
    reference: options.Reference,
    model: options.Model,
    output: options.Output,
    data: options.Data = GENERATED,
    split: options.Split = None,
    name: options.Name = None,
    columns: options.Columns = None,
    max_examples: options.LearnedExamples = None,
    length: options.Length = None,
    task: options.Task = None,
    tokenizer: options.Tokenizer = None,
    skip_unknown: options.SkipUnknown = False,
    scope: options.Scope = Scope.model,
    keep_gains: options.KeepGains = False,
    objective: options.Objective = Objective.weights,
    untie: options.Untie = False,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Steps, at most.")] = Refining.steps,
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes",
            metavar="N",
            min=0,
            help="How long to learn, at most, texts to write for it included; 0: as long as it takes.",
        ),
    ] = Refining.minutes,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Examples of a step.")
    ] = Refining.batch_size,
    rate: Annotated[float, typer.Option("--rate", metavar="X", help="Highest learning rate.")] = Refining.rate,
    both: Annotated[
        bool,
        typer.Option("--both/--model-only", help="Move the reference too, into OUT/reference; its function stays."),
    ] = Refining.both,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience",
            metavar="N",
            min=1,
            show_default="those of a third of the steps",
            help="Looks at held-out data without gain, then it ends.",
        ),
    ] = Refining.patience,
    targets: Annotated[Targets, options.choose("--targets", Targets)] = Targets.ends,
    noise: Annotated[
        float,
        typer.Option("--noise", metavar="X", min=0, help="Noise on images, in standard deviations; with targets ends."),
    ] = Refining.noise,
    mixed_precision: Annotated[
        bool | None,
        typer.Option(
            "--mixed-precision/--no-mixed-precision",
            show_default="where it is quicker",
            help="Forward passes in bfloat16; what is written is as exact as ever.",
        ),
    ] = None,
    take_config: options.TakeConfig = False,
    seed: options.Seed = 0,
    device: options.Device = Device.auto,
    force: options.Force = False,
    no_verify: options.NoVerify = False,
    allow_pickle: options.AllowPickle = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Learn an alignment: from the matched one, train what the group leaves free so that the line between is low.

    Neither model's function changes. An interrupted run goes on where it stopped when the same command is given again.
    Measure the result on other data: `isobasin barrier REFERENCE MODEL --aligned OUT`.
    Several devices share every batch under `accelerate launch -m isobasin refine ...`.
    """
    arguments = options.given(locals())
    if dry_run:
        return dry_run_of((reference, model), arguments | {"as_json": as_json}, "refine", written=1 + both, learns=True)
    with working("reading") as progress:
        from isobasin.beside import REFERENCE
        from isobasin.refinement.refine import refine
        from isobasin.verbs.settings import Matching, Running

        with processes(device) as accelerator:
            found = refine(
                reference,
                model,
                learned_data(arguments),
                output,
                how=options.record(Refining, arguments),
                matching=options.record(Matching, arguments),
                running=options.record(Running, arguments, progress=progress),
                take_config=take_config,
                allow_pickle=allow_pickle,
                accelerator=accelerator,
            )
        if accelerator is not None and not accelerator.is_main_process:
            return
    if as_json:
        show_json({"output": str(output), **found.to_json()})
        return
    from isobasin.cli.alignment_report import untied_line, verification_line

    went = found.refined
    show(
        f"Height of the line on held-out examples: {went.before:.4f} -> {went.after:.4f} nats "
        f"(step {went.best_step} of {went.steps}).",
        *untied_line(found.alignment),
        *(
            verification_line(verified, name)
            for verified, name in zip(found.verified, ("MODEL", "REFERENCE"), strict=False)
        ),
    )
    if found.reference is not None:
        show_path("Reference written to", output / REFERENCE)
    show_path("Model written to", output)
