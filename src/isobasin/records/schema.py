"""The lines of `records.jsonl`. Everything that is shown of a measurement is computed from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from isobasin.plain import finite

SCHEMA_VERSION = 1
"""Raised when a line changes its meaning; files of another version are refused."""


Number = Annotated[float | None, BeforeValidator(finite)]
"""A measured value; None stands for what isn't finite, in memory as in the file."""


class Entry(BaseModel):
    """One line of a file: frozen, and unknown fields are refused. Values that aren't finite are stored as null."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelRecord(Entry):
    """One model of a run.

    Attributes:
        name: What the user called it.
        sha256: Of all its tensors and its configuration.
        moved: Whether an alignment lies beside it: it was moved before it was measured.
    """

    name: str
    sha256: str
    moved: bool = False


class AlignedRecord(Entry):
    """A line between copies of the two models that an earlier command moved.

    Attributes:
        method: What the line is called.
        how: What moved the second model: a method of `align`, or another command, such as "refine".
        model: The moved second model.
        reference: The moved first model; null where that stays as it is.
    """

    method: str
    how: str
    model: ModelRecord
    reference: ModelRecord | None


class DataRecord(Entry):
    """What the losses were computed on.

    Attributes:
        source: Hub id or path, as given.
        split: Which part of it.
        task: What the models predict (`choices.TaskKind`).
        examples: How many.
        sha256: Of the examples as the models see them.
        notes: What a reader has to know, such as a processor that was made up.
    """

    source: str
    split: str | None
    task: str
    examples: int
    sha256: str
    notes: tuple[str, ...] = ()


class RunRecord(Entry):
    """The first line: what was measured, with which inputs, versions and seeds.

    Attributes:
        models: In the order given; pairs name them by index.
        t: Points of every line, from 0 to 1: `θ(t) = (1 - t) A + t B`.
        methods: Ways that B is moved (`choices.Way`), and what the lines of `aligned` are called.
        aligned: Lines between copies that were moved before.
        group_weights: How many predictions each example has, or each group of consecutive ones where there are many
            (in older files each batch, under another name); their losses are averaged with these weights.
        settings: Options, seeds.
        versions: Of isobasin, Python and the libraries.
    """

    kind: Literal["run"] = "run"
    schema_version: int = SCHEMA_VERSION
    models: tuple[ModelRecord, ...]
    data: DataRecord
    t: tuple[float, ...]
    methods: tuple[str, ...]
    aligned: tuple[AlignedRecord, ...] = ()
    group_weights: tuple[float, ...] = Field(validation_alias=AliasChoices("group_weights", "batch_weights"))
    settings: dict[str, Any]
    versions: dict[str, str]


class LayerRecord(Entry):
    """How one attention layer was aligned.

    Attributes:
        layer: Index.
        distance_before, distance_after: Frobenius distance of the attention weights.
        condition: Largest condition number of a map.
        iterations: Steps of stage 2.
        status: "exact", "converged", "capped" or "max-iterations".
        head_permutation: Which of B's heads each of A's is.
        head_costs: Stage 1's cost of every pair of heads, A's by row.
    """

    layer: int
    distance_before: Number
    distance_after: Number
    condition: Number
    iterations: int
    status: str
    head_permutation: tuple[int, ...]
    head_costs: tuple[tuple[Number, ...], ...]


class UnitsRecord(Entry):
    """How the units of one feed-forward block were aligned.

    Attributes:
        block: Its layer, and a second number where that has several.
        distance_before, distance_after: Frobenius distance of the block's weights.
        status: "exact" or "optimal", or "composed" where no solver found it.
        units: How many there are.
        moved_units: How many get another place.
        experts: How many experts there are; null for a block without.
        moved_experts: How many of them get another place.
    """

    block: str
    distance_before: Number
    distance_after: Number
    status: str
    units: int
    moved_units: int
    experts: int | None = None
    moved_experts: int | None = None


class StreamRecord(Entry):
    """How the residual stream was aligned.

    Attributes:
        group: Of which its map is, such as "O(128)".
        width: How many coordinates it has.
        distance_before, distance_after: Frobenius distance of all tensors along it, normalisations folded into their
            readers; of copies that were moved before, of all tensors as they are stored.
        condition: Condition number of the map.
        start: Where the map began: "embeddings", "identity", "activations"; "none" where no match found it.
        sweeps: How often all factors were matched.
    """

    group: str
    width: int
    distance_before: Number
    distance_after: Number
    condition: Number
    start: str
    sweeps: int


class AlignmentRecord(Entry):
    """One alignment of a pair.

    Attributes:
        pair: Indices of A and B.
        method: How B was moved.
        seconds: That matching and moving took; 0 where that was done before.
        layers: Of the attention blocks.
        feedforward: Of the feed-forward blocks; empty if they stay as they are.
        stream: Of the residual stream; null if it stays as it is.
    """

    kind: Literal["alignment"] = "alignment"
    pair: tuple[int, int]
    method: str
    seconds: float
    layers: tuple[LayerRecord, ...]
    feedforward: tuple[UnitsRecord, ...] = ()
    stream: StreamRecord | None = None


class PointRecord(Entry):
    """The loss at one point of one line.

    Attributes:
        pair: Indices of A and B.
        method: How B was moved.
        t: Where on the line.
        loss: Mean over all predictions; null if it isn't a number.
        group_losses: Mean of every group of `RunRecord.group_weights`.
        metrics: "accuracy", or "perplexity" and "bits_per_character".
        calibrated_loss: The loss with the softmax temperature that makes it least; null if it wasn't computed.
        temperature: That temperature.
        seconds: Of the forward passes.
        interpolation_seconds: Of setting the weights.
    """

    kind: Literal["point"] = "point"
    pair: tuple[int, int]
    method: str
    t: float
    loss: Number
    group_losses: tuple[Number, ...] = Field(validation_alias=AliasChoices("group_losses", "batch_losses"))
    metrics: dict[str, Number]
    calibrated_loss: Number
    temperature: Number
    seconds: float
    interpolation_seconds: float


class CurveRecord(Entry):
    """What a whole line says, computed from its points.

    Attributes:
        pair: Indices of A and B.
        method: How B was moved.
        barrier: `sup_t [ L(θ(t)) - (1 - t) L(A) - t L(B) ]`; null if a loss on the way isn't a number.
        worst_t: Where it is reached.
        barrier_error: Its standard error, of examples drawn anew; null with fewer than two.
        loss_errors: Those of the losses at every point, by the same draws; empty in older files.
        relative: Share of the barrier of method "none" of this pair; null if that is 0 or wasn't measured.
        share_of_ends: Share of the mean loss of the two ends.
        calibrated_barrier: The same supremum of the calibrated losses, or null.
        calibrated_worst_t: Where that is reached.
        overhead: Seconds of interpolation as a share of the seconds of forward passes.
    """

    kind: Literal["curve"] = "curve"
    pair: tuple[int, int]
    method: str
    barrier: Number
    worst_t: float
    barrier_error: Number
    loss_errors: tuple[Number, ...] = ()
    relative: Number
    share_of_ends: Number
    calibrated_barrier: Number
    calibrated_worst_t: Number
    overhead: float


Record = Annotated[RunRecord | AlignmentRecord | PointRecord | CurveRecord, Field(discriminator="kind")]
