"""`isobasin align`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.choices import Device, Dtype, HeadCost, Method, Objective, Scope
from isobasin.cli.console import show, show_json, show_path, working
from isobasin.cli.data_options import (
    CalibrationOption,
    ColumnsOption,
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
    DtypeOption,
    ForceOption,
    HeadCostOption,
    JsonOption,
    KeepGainsOption,
    MethodOption,
    ModelArgument,
    NoVerifyOption,
    ObjectiveOption,
    OutputOption,
    ScopeOption,
)

EXAMPLE = "isobasin align runs/seed0 runs/seed1 -o runs/seed1-aligned"


def align(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="Local folder or hub id of the checkpoint that stays as it is.")
    ],
    model: ModelArgument,
    output: OutputOption,
    method: MethodOption = Method.gauss_newton,
    head_cost: HeadCostOption = HeadCost.rotary,
    scope: ScopeOption = Scope.attention,
    keep_gains: KeepGainsOption = False,
    objective: ObjectiveOption = Objective.weights,
    data: CalibrationOption = None,
    split: SplitOption = None,
    name: NameOption = None,
    columns: ColumnsOption = None,
    max_examples: MaxExamplesOption = 512,
    length: LengthOption = None,
    task: TaskOption = None,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = Device.cpu,
    dtype: DtypeOption = Dtype.keep,
    max_condition: Annotated[
        float | None,
        typer.Option(
            "--max-condition",
            metavar="X",
            help="Cap on any map's condition number; by default 1e8 for float64, 1e4 for float32, 100 for 16 bits.",
        ),
    ] = None,
    force: ForceOption = False,
    no_verify: NoVerifyOption = False,
    allow_pickle: AllowPickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move MODEL as near to REFERENCE as it gets without changing what it computes."""
    with working("reading") as progress:
        from isobasin.verbs.align import align

        calibration = None
        if data is not None:
            if scope is not Scope.model and objective is not Objective.activations:
                raise typer.BadParameter("--data goes with --scope model or with --objective activations")
            from isobasin.refinement.calibration import DataCalibration
            from isobasin.tasks.data import DataOptions

            options = DataOptions(data, name, split, parsed_columns(columns), max_examples, length)
            examples = examples_for(reference, options, task, tokenizer, allow_pickle)
            calibration = DataCalibration(examples, device)
        found = align(
            reference,
            model,
            output,
            method=method,
            head_cost=head_cost,
            scope=scope,
            keep_gains=keep_gains,
            objective=objective,
            calibration=calibration,
            device=device,
            dtype=dtype.resolve(),
            max_condition=max_condition,
            verify=not no_verify,
            force=force,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    verified = None if found.verified is None else found.verified.to_json()
    if as_json:
        show_json({"output": str(output), "verified": verified, **found.to_json()})
        return
    from isobasin.cli.alignment_report import alignment_report, verification_line

    show(*alignment_report(found, max_condition), verification_line(found.verified))
    show_path("Written to", output)
    show_path("The move itself, for `isobasin apply`:", output / "alignment.safetensors")
