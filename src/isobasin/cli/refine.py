"""`isobasin refine`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.choices import Device, Objective, Scope, Targets
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.data_options import (
    ColumnsOption,
    DataOption,
    LengthOption,
    MaxExamplesOption,
    NameOption,
    SplitOption,
    TaskOption,
    TokenizerOption,
    examples_for,
    parsed_columns,
)
from isobasin.cli.options import (
    AllowPickleOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    KeepGainsOption,
    ModelArgument,
    NoVerifyOption,
    ObjectiveOption,
    OutputOption,
    ScopeOption,
    SeedOption,
    TakeConfigOption,
    choose,
)
from isobasin.refinement.recipe import Refining

EXAMPLE = 'isobasin refine runs/seed0 runs/seed1 --data wikitext --split "train[:5%]" -o runs/seed1-refined'


def refine(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="Local folder or hub id of one checkpoint; it is not changed.")
    ],
    model: ModelArgument,
    data: DataOption,
    output: OutputOption,
    split: SplitOption = None,
    name: NameOption = None,
    columns: ColumnsOption = None,
    max_examples: MaxExamplesOption = 4096,
    length: LengthOption = None,
    task: TaskOption = None,
    tokenizer: TokenizerOption = None,
    scope: ScopeOption = Scope.model,
    keep_gains: KeepGainsOption = False,
    objective: ObjectiveOption = Objective.weights,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Steps of Adam, at most.")] = Refining.steps,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Examples of a step.")
    ] = Refining.batch_size,
    rate: Annotated[float, typer.Option("--rate", metavar="X", help="Highest learning rate.")] = Refining.rate,
    both: Annotated[
        bool,
        typer.Option("--both/--model-only", help="Move the reference too, into OUT/reference; its function stays."),
    ] = Refining.both,
    patience: Annotated[
        int, typer.Option("--patience", metavar="N", min=1, help="Looks at held-out data without gain, then it ends.")
    ] = Refining.patience,
    targets: Annotated[Targets, choose("--targets", Targets)] = Targets.ends,
    noise: Annotated[
        float,
        typer.Option("--noise", metavar="X", min=0, help="Noise on images, in standard deviations; with targets ends."),
    ] = Refining.noise,
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="Forward passes in bfloat16; the moves stay in float64.")
    ] = False,
    take_config: TakeConfigOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = Device.cpu,
    force: ForceOption = False,
    no_verify: NoVerifyOption = False,
    allow_pickle: AllowPickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Learn an alignment: from the matched one, train what the group leaves free so that the line between is low.

    Neither model's function changes. An interrupted run goes on where it stopped when the same command is given again.
    Measure the result on other data: `isobasin barrier OUT/reference OUT --method none`.
    """
    with working("reading") as progress:
        from isobasin.refinement.refine import REFERENCE, refine
        from isobasin.tasks.data import DataOptions
        from isobasin.verbs.settings import Matching, Running

        options = DataOptions(data, name, split, parsed_columns(columns), max_examples, length, seed)
        found = refine(
            reference,
            model,
            examples_for(reference, options, task, tokenizer, allow_pickle),
            output,
            how=Refining(
                steps,
                batch_size,
                rate,
                both=both,
                seed=seed,
                patience=patience,
                mixed_precision=mixed_precision,
                targets=targets,
                noise=noise,
            ),
            matching=Matching(scope=scope, keep_gains=keep_gains, objective=objective),
            running=Running(device, verify=not no_verify, force=force, progress=progress),
            take_config=take_config,
            allow_pickle=allow_pickle,
        )
    if as_json:
        show_json({"output": str(output), **found.to_json()})
        return
    from isobasin.cli.alignment_report import verification_line

    went = found.refined
    show(
        f"Height of the line on held-out examples: {went.before:.4f} -> {went.after:.4f} nats "
        f"(step {went.best_step} of {went.steps}).",
        *(verification_line(verified) for verified in found.verified),
    )
    if found.reference is not None:
        show_path("Reference written to", output / REFERENCE)
    show_path("Model written to", output)
