"""What an experiment's YAML file says, checked when it is read."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveInt, model_validator

from isobasin.bounds import LARGEST_BATCH, SEEDS
from isobasin.choices import WAYS, Positions, Redrawn, Targets, TaskKind, Trained, Vocabulary, Way
from isobasin.lines.path import MOST_POINTS
from isobasin.refinement.recipe import Refining
from isobasin.tasks.options import LONGEST_SIDE
from isobasin.text import near

Part = TypeVar("Part")

# Far more than anything that is trained here has, and little enough that trying takes no machine down.
Size = Annotated[int, Field(gt=0, le=2**20)]
Layers = Annotated[int, Field(gt=0, le=1000)]
Batch = Annotated[int, Field(gt=0, le=LARGEST_BATCH)]
Side = Annotated[int, Field(gt=0, le=LONGEST_SIDE)]
Seed = Annotated[int, Field(ge=0, le=SEEDS)]
_MOST_CELLS = 20_000

MOST_PARAMETERS = 10**10
"""Of a model that an experiment trains."""


class Settings(BaseModel):
    """Frozen; unknown entries are refused, and numbers that are none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """One model; the sizes of its data (labels, vocabulary, image) follow from the data.

    Attributes:
        family: Which one.
        positions: How it knows where a token stands; another choice may be another family's.
        layers, width, heads, feedforward: Layers, model width, attention heads, FFN width.
        key_value_heads: Of Llama; None for as many as heads.
        patch: Side of a ViT's patches.
        activation: Of the FFN; None for the family's default.
        dropout: Everywhere.
        options: Further entries of the transformers configuration.
    """

    family: Trained
    positions: Positions = Positions.absolute
    layers: Layers
    width: Size
    heads: Size
    feedforward: Size
    key_value_heads: Size | None = None
    patch: Side | None = None
    activation: str | None = None
    dropout: float = Field(0.0, ge=0, lt=1)
    options: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count = self.layers * self.width * (4 * self.width + 2 * self.feedforward)
        if count > MOST_PARAMETERS:
            raise ValueError(f"its layers have {count:.3g} parameters, more than {MOST_PARAMETERS:.3g}")
        return self


class TokenizerSettings(Settings):
    """A tokenizer made from the training texts."""

    kind: Vocabulary = Vocabulary.bpe
    size: Size = 4096


class DataSettings(Settings):
    """One set of data.

    Attributes:
        source: Hub id, "digits" (scikit-learn's), or a path; `{data}` at its start stands for the folder that
            ISOBASIN_DATA names, and for `../shared/data` without it.
        name: The hub's configuration name, such as "wikitext-103-raw-v1".
        task: What is learnt.
        train, test: Splits, in the notation of `datasets` ("train[:90%]"), or a file of the folder `source`.
        holdout: With one split only: the share of it that is shuffled away as the test part.
        columns: Which column has which role ("image", "text", "text_pair", "label").
        max_train, max_test: At most so many examples, chosen at random.
        length: Tokens of an example.
        tokenizer: How text is cut.
        image_size: Side that images are brought to; None for their own.
    """

    source: str
    name: str | None = None
    task: TaskKind
    train: str = "train"
    test: str | None = "test"
    holdout: float | None = Field(None, gt=0, lt=1)
    columns: dict[str, str] = {}
    max_train: PositiveInt | None = None
    max_test: PositiveInt | None = None
    length: Size | None = None
    tokenizer: TokenizerSettings | None = None
    image_size: Side | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.test is None) == (self.holdout is None):
            raise ValueError("give either test or holdout, and the other one as null")
        if self.task is TaskKind.image_classification:
            if self.tokenizer is not None or self.length is not None:
                raise ValueError("tokenizer and length are for texts, not for images")
        elif self.length is None or self.tokenizer is None:
            raise ValueError("length and tokenizer are needed for texts")
        return self


class TrainingSettings(Settings):
    """How something is trained: AdamW and a schedule of transformers' Trainer.

    Attributes:
        steps: Optimiser steps.
        batch: Examples of one step.
        rate: Largest learning rate.
        warmup: Steps until it is reached.
        schedule: How it falls, as Trainer names it.
        weight_decay: Of AdamW.
        betas: Of AdamW.
        clip: Largest norm of the gradient; 0 for none.
        save_every: Steps between states that an interrupted training resumes from; None for none.
    """

    steps: PositiveInt
    batch: Batch
    rate: float = Field(gt=0)
    warmup: int = Field(0, ge=0)
    schedule: str = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(1.0, ge=0)
    save_every: PositiveInt | None = None


class RefiningSettings(Settings):
    """How an alignment is learned; as in `isobasin refine`.

    Attributes:
        steps, batch, rate: Of Adam.
        both: Whether the reference moves too.
        targets: What is learned from.
        noise: On images, in standard deviations of theirs.
    """

    steps: PositiveInt = Refining.steps
    batch: Batch = Refining.batch_size
    rate: float = Field(Refining.rate, gt=0)
    both: bool = Refining.both
    targets: Targets = Targets.ends
    noise: float = Field(Refining.noise, ge=0)


class AblationSettings(Settings):
    """Which ablations are run, on the pairs of one scope; all are off unless they are asked for.

    Attributes:
        stage_1: Rank of the chosen head permutation of the first layer among all of at most 24, or among
            `permutations` random ones and itself.
        permutations: How many random ones.
        stage_2: Barriers with stage 2 left out, with its start only, by gradient descent, by Gauss-Newton.
        head_costs: Barriers and permutations for every cost that stage 1 knows.
        reinitialise: Loss of the pretrained model with one attention layer drawn anew, layer by layer.
        symmetry_breaking: A rotary pair aligned by GL instead of H, at these offsets.
        alignments: Barriers after every way to align, other people's among them, the last one learned like this.
        untie: Take tied tensors apart for those, which frees rotations of the residual stream.
        scope: Whose pairs.
    """

    stage_1: bool = False
    permutations: Size = 23
    stage_2: bool = False
    head_costs: bool = False
    reinitialise: bool = False
    symmetry_breaking: tuple[Annotated[int, Field(ge=0, le=2**20)], ...] = ()
    alignments: RefiningSettings | None = None
    untie: bool = False
    scope: Redrawn = Redrawn.first_attention

    @property
    def on_pairs(self) -> bool:
        """Whether anything is ablated on pairs of models."""
        return self.stage_1 or self.stage_2 or self.head_costs or bool(self.symmetry_breaking or self.alignments)


class SettingSettings(Settings):
    """One model on one set of data.

    Attributes:
        name: How it is called, in tables and for `--only`; None for "MODEL on DATA".
        model, data: Names in the experiment's tables.
        pretrain, finetune: Names in its table of trainings.
        from_scratch: Another name there, for the scope entire-model, which keeps nothing of the pretrained one; None
            for the one of `finetune`.
        pretrain_data: Name of what the model is pretrained on, if that is something else. A classifier with another
            number of labels is replaced, and then trained even where everything else is frozen.
        pretrain_seed, scopes, heads, freeze: Replace the experiment's own for this setting.
        ablations: What is ablated here.
    """

    name: str | None = None
    model: str
    data: str
    pretrain: str
    finetune: str
    from_scratch: str | None = None
    pretrain_data: str | None = None
    pretrain_seed: Seed | None = None
    scopes: tuple[Redrawn, ...] | None = Field(None, min_length=1)
    heads: tuple[Size | None, ...] | None = Field(None, min_length=1)
    freeze: tuple[bool, ...] | None = Field(None, min_length=1)
    ablations: AblationSettings = AblationSettings()

    @property
    def title(self) -> str:
        """How it is called."""
        return self.name or f"{self.model} on {self.data}"


class ExperimentSettings(Settings):
    """A whole file.

    Attributes:
        schema_version: Of this format.
        title: One line for people.
        models, data, training: What the settings name.
        settings: What is run.
        scopes: What is drawn anew.
        heads: How many heads the replaced attention has; null for as many as before.
        freeze: Whether everything else is frozen while fine-tuning.
        pretrain_seed: Of the pretrained model.
        seeds: One fine-tuned model for each; all pairs are measured.
        methods: As in `isobasin barrier`.
        points: Of every line.
        batch: Examples of a forward pass when measuring.
    """

    schema_version: Literal[1] = 1
    title: str
    models: dict[str, ModelSettings]
    data: dict[str, DataSettings]
    training: dict[str, TrainingSettings]
    settings: tuple[SettingSettings, ...] = Field(min_length=1)
    scopes: tuple[Redrawn, ...] = Field(tuple(Redrawn), min_length=1)
    heads: tuple[Size | None, ...] = Field((None,), min_length=1)
    freeze: tuple[bool, ...] = Field((True,), min_length=1)
    pretrain_seed: Seed = 0
    seeds: tuple[Seed, ...] = Field((1, 2, 3), min_length=2)
    methods: tuple[Way, ...] = WAYS
    points: int = Field(25, ge=2, le=MOST_POINTS)
    batch: Batch = 256

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("scopes", "heads", "freeze", "seeds", "methods"):
            _check_unique(name, getattr(self, name))
        _check_unique("settings", [setting.title for setting in self.settings])
        cells = sum(map(self._cells, self.settings))
        if cells > _MOST_CELLS:
            raise ValueError(
                f"seeds, scopes, heads and settings make {cells} cells, more than {_MOST_CELLS}: divide them among "
                "several files"
            )
        if Way.none not in self.methods:
            raise ValueError('methods lacks "none", the naive line that all others are compared with')
        for setting in self.settings:
            try:
                self._check(setting)
            except ValueError as error:
                raise ValueError(f"settings: {setting.title}: {error}") from None
        return self

    def _cells(self, setting: SettingSettings) -> int:
        """How many cells a setting has, or a few less: one for each model, and some for each pair of them."""
        own = (setting.scopes or self.scopes, setting.heads or self.heads, setting.freeze or self.freeze)
        seeds = len(self.seeds)
        return prod(map(len, own)) * (seeds + seeds * (seeds - 1) // 2)

    def _check(self, setting: SettingSettings) -> None:
        """Refuse a setting that names what isn't there, or whose parts don't fit."""
        model = _named("model", setting.model, self.models)
        data = [_named("data", name, self.data) for name in (setting.data, setting.pretrain_data) if name is not None]
        for name in (setting.pretrain, setting.finetune, setting.from_scratch or setting.finetune):
            _named("training", name, self.training)
        for part in data:
            tasks = dict.fromkeys(task for family, _, task in CLASSES if family == str(model.family))
            if part.task not in tasks:
                raise ValueError(f"family {model.family} has no task {part.task}: it has {', '.join(tasks)}")
        if len({part.task for part in data}) > 1:
            raise ValueError("pretrain_data has another task than data")
        for count in setting.heads or self.heads:
            if count is not None and model.width % count:
                raise ValueError(f"heads has {count}, which doesn't divide the width {model.width}")
        ablations = setting.ablations
        if ablations.on_pairs and ablations.scope not in (setting.scopes or self.scopes):
            raise ValueError(f"ablations.scope is {ablations.scope}, which isn't among the scopes")
        if ablations.symmetry_breaking and model.positions is not Positions.rotary:
            raise ValueError("ablations.symmetry_breaking is for rotary positions only")


CLASSES = {
    ("vit", "absolute", "image-classification"): "ViTForImageClassification",
    ("vit", "rotary", "image-classification"): "IsobasinViTForImageClassification",
    ("bert", "absolute", "text-classification"): "BertForSequenceClassification",
    ("bert", "absolute", "masked-lm"): "BertForMaskedLM",
    ("bert", "rotary", "text-classification"): "RoFormerForSequenceClassification",
    ("bert", "rotary", "masked-lm"): "RoFormerForMaskedLM",
    ("gpt2", "absolute", "causal-lm"): "GPT2LMHeadModel",
    ("gpt2", "rotary", "causal-lm"): "GPTNeoXForCausalLM",
    ("llama", "rotary", "causal-lm"): "LlamaForCausalLM",
}
"""What is trained, by family, positions and task: names in transformers, or in isobasin.models."""


def _named(kind: str, name: str, table: dict[str, Part]) -> Part:
    if name not in table:
        raise ValueError(f"{kind} {name!r} isn't defined: {near(name, table)}")
    return table[name]


def _check_unique(name: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{name} has {value!r} twice")
        seen.add(value)
