"""Arguments and options that several commands share.

The choices are written out here, because importing the library's enums would import torch for `--help`; a test
keeps the lists equal.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch


class Method(StrEnum):
    """How each head is brought onto its partner."""

    gauss_newton = "gauss-newton"
    paper = "paper"
    balanced = "balanced"
    orthogonal = "orthogonal"
    heads = "heads"


class HeadCost(StrEnum):
    """What two heads are compared by."""

    rotary = "rotary"
    frobenius = "frobenius"
    centred = "centred"
    spectral = "spectral"
    cosine = "cosine"


class Scope(StrEnum):
    """What of a model is moved."""

    attention = "attention"
    block = "block"
    model = "model"


class Space(StrEnum):
    """What a merge averages."""

    weights = "weights"
    circuit = "circuit"


class Head(StrEnum):
    """Whose head a merged body gets."""

    reference = "reference"
    own = "own"


class Device(StrEnum):
    """Where the work is done."""

    cpu = "cpu"
    cuda = "cuda"


class Objective(StrEnum):
    """What is brought near."""

    weights = "weights"
    activations = "activations"


class Dtype(StrEnum):
    """Type of the weights that are written."""

    keep = "keep"
    float64 = "float64"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"

    def resolve(self) -> torch.dtype | None:
        """The torch type; None for `keep`."""
        import torch

        return None if self is Dtype.keep else getattr(torch, self.value)


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Local folder or hub id of a checkpoint; it isn't changed.")
]
FirstArgument = Annotated[str, typer.Argument(metavar="A", help="Local folder or hub id of the first checkpoint.")]
SecondArgument = Annotated[str, typer.Argument(metavar="B", help="Local folder or hub id of the second checkpoint.")]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write; it appears complete or not at all.")
]
MethodOption = Annotated[
    Method,
    typer.Option(
        "--method",
        metavar="METHOD",
        help="How heads are aligned: gauss-newton; balanced (closed form, quicker); baselines are paper (the "
        "published algorithm), orthogonal (its start alone) and heads (permuted only).",
    ),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", metavar="DEVICE", help="Where the work is done: cpu or cuda.")
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Type of the weights written: keep (each tensor's own), float64, float32, float16 or bfloat16.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]
NoVerifyOption = Annotated[
    bool, typer.Option("--no-verify", help="Don't compare the outputs of the models before and after.")
]
AllowPickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Load pickled weights too, with weights_only loading alone.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random numbers.")]
HeadCostOption = Annotated[
    HeadCost,
    typer.Option(
        "--head-cost",
        metavar="COST",
        help="What heads are compared by: rotary (the complete invariant), frobenius, centred (the paper's), spectral "
        "or cosine.",
    ),
]
ScopeOption = Annotated[
    Scope,
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="What is moved: attention (heads), block (feed-forward units too), or model (the residual stream as well, "
        "for models that were trained apart).",
    ),
]
KeepGainsOption = Annotated[
    bool,
    typer.Option(
        "--keep-gains",
        help="With --scope model: gains of normalisations stay with their coordinates, which leaves permutations.",
    ),
]
ObjectiveOption = Annotated[
    Objective,
    typer.Option(
        "--objective",
        metavar="OBJECTIVE",
        help="What is brought near: weights, or activations: what readers make of the data of --data.",
    ),
]
TakeConfigOption = Annotated[
    bool,
    typer.Option(
        "--take-config", help="Take A's configuration, labels and tokenizer where the others' mean something else."
    ),
]
ByNameOption = Annotated[
    bool,
    typer.Option("--by-name", help="Reorder the others' rows of tokens and labels where their names say how."),
]
CommonRowsOption = Annotated[
    bool,
    typer.Option("--common-rows", help="Average the leading rows that tables have in common; A's further rows stay."),
]
