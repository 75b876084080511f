"""What an experiment's YAML file says, checked when it is read."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveInt, model_validator

from isobasin.architectures.registry import families
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
    """Frozen; unknown entries are refused, and numbers that are none. What an entry means stands below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ModelSettings(Settings):
    """One model; the sizes of its data (labels, vocabulary, image) follow from the data."""

    family: Annotated[Trained | str, Field(union_mode="left_to_right")]
    """Which family of models it is of; or any model type that `isobasin symmetry --families` lists."""
    positions: Positions = Positions.absolute
    """How it knows where a token stands; another choice may be another family's. Model types have their own."""
    layers: Layers
    """How many layers it has."""
    width: Size
    """Features of the residual stream."""
    heads: Size
    """Attention heads of a layer."""
    feedforward: Size | None = None
    """Units of a feed-forward layer; null where the width says it."""
    key_value_heads: Size | None = None
    """Heads of keys and values, where they may be fewer; null for as many as `heads`."""
    patch: Side | None = None
    """Side of patches of images, in pixels."""
    activation: str | None = None
    """Activation of feed-forward layers, as transformers names it; null for the family's."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout while it is trained, everywhere."""
    options: dict[str, JsonValue] = {}
    """Further entries of the transformers configuration."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        known = {*Trained, *(family.model_type for family in families())}
        if self.family not in known:
            raise ValueError(f"family {self.family!r}: {near(self.family, known)}")
        count = self.layers * self.width * (4 * self.width + 2 * (self.feedforward or self.width))
        if count > MOST_PARAMETERS:
            raise ValueError(f"its layers have {count:.3g} parameters, more than {MOST_PARAMETERS:.3g}")
        return self


class TokenizerSettings(Settings):
    """A tokenizer made from the training texts."""

    kind: Vocabulary = Vocabulary.bpe
    """Which tokens it has."""
    size: Size = 4096
    """Most tokens, special ones included."""


class DataSettings(Settings):
    """One set of data."""

    source: str
    """Hub id, "digits" (scikit-learn's), or a path; `{data}` at its start stands for the folder that ISOBASIN_DATA
    names, and for `../shared/data` without it.
    """
    name: str | None = None
    """The hub's configuration name, such as "wikitext-103-raw-v1"."""
    task: TaskKind
    """What is learnt."""
    train: str = "train"
    """Split to train on, in the notation of `datasets` ("train[:90%]"), or a file of the folder `source`."""
    test: str | None = "test"
    """Split to measure on, likewise; null with `holdout`."""
    holdout: float | None = Field(None, gt=0, lt=1)
    """Without `test`: the share of `train` that is shuffled away to measure on."""
    columns: dict[str, str] = {}
    """Which column has which role ("image", "text", "text_pair", "label")."""
    max_train: PositiveInt | None = None
    """At most so many examples of `train`, chosen at random; null for all."""
    max_test: PositiveInt | None = None
    """At most so many of `test`, likewise."""
    length: Size | None = None
    """Tokens of an example; only and always for texts."""
    tokenizer: TokenizerSettings | None = None
    """How texts are cut; only and always for texts."""
    image_size: Side | None = None
    """Side that images are brought to; null for their own."""

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
    """How something is trained: AdamW and a schedule of transformers' Trainer."""

    steps: PositiveInt
    """Optimiser steps."""
    batch: Batch
    """Examples of one step."""
    rate: float = Field(gt=0)
    """Largest learning rate."""
    warmup: int = Field(0, ge=0)
    """Steps until it is reached."""
    schedule: str = "cosine"
    """How the rate falls after it, as Trainer names it."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decays of AdamW's two means."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 for none."""
    save_every: PositiveInt | None = None
    """Steps between states that an interrupted training goes on from; null for none."""


class RefiningSettings(Settings):
    """How an alignment is learned; as in `isobasin refine`."""

    steps: PositiveInt = Refining.steps
    """Steps of Adam."""
    batch: Batch = Refining.batch_size
    """Examples of a step."""
    rate: float = Field(Refining.rate, gt=0)
    """Highest learning rate."""
    both: bool = Refining.both
    """Whether the reference moves too."""
    targets: Targets = Targets.ends
    """What is learned from."""
    noise: float = Field(Refining.noise, ge=0)
    """Noise on images, in standard deviations of theirs; with targets `ends`."""


class AblationSettings(Settings):
    """Which ablations are run, on the pairs of one scope; all are off unless they are asked for."""

    stage_1: bool = False
    """Rank of the chosen head permutation of the first layer among all of at most 24, or among `permutations` random
    ones and itself.
    """
    permutations: Size = 23
    """How many random permutations `stage_1` draws."""
    stage_2: bool = False
    """Barriers with stage 2 left out, with its start only, by gradient descent, by Gauss-Newton."""
    head_costs: bool = False
    """Barriers and permutations for every cost that stage 1 knows."""
    reinitialise: bool = False
    """Loss of the pretrained model with one attention layer drawn anew, layer by layer."""
    symmetry_breaking: tuple[Annotated[int, Field(ge=0, le=2**20)], ...] = ()
    """A rotary pair aligned by GL instead of H, at these offsets."""
    alignments: RefiningSettings | None = None
    """Barriers after every way to align, other people's among them, the last one learned like this."""
    untie: bool = False
    """Take tied tensors apart for `alignments`, which frees rotations of the residual stream."""
    scope: Redrawn = Redrawn.first_attention
    """Whose pairs are ablated."""

    @property
    def on_pairs(self) -> bool:
        """Whether anything is ablated on pairs of models."""
        return self.stage_1 or self.stage_2 or self.head_costs or bool(self.symmetry_breaking or self.alignments)


class SettingSettings(Settings):
    """One model on one set of data."""

    name: str | None = None
    """How it is called, in tables and for `--only`; null for "MODEL on DATA"."""
    model: str
    """Name in the experiment's `models`."""
    data: str
    """Name in its `data`: what is fine-tuned and measured on."""
    pretrain: str
    """Name in its `training`: how the common model is trained."""
    finetune: str
    """Name there: how what was drawn anew is trained."""
    from_scratch: str | None = None
    """Another name there, for the scope entire-model, which keeps nothing of the pretrained one; null for the one of
    `finetune`.
    """
    pretrain_data: str | None = None
    """Name of what the model is pretrained on, if that is something else. A classifier with another number of labels
    is replaced, and then trained even where everything else is frozen.
    """
    pretrain_seed: Seed | None = None
    """Replaces the experiment's `pretrain_seed` for this setting."""
    scopes: tuple[Redrawn, ...] | None = Field(None, min_length=1)
    """Replaces the experiment's `scopes` for this setting."""
    heads: tuple[Size | None, ...] | None = Field(None, min_length=1)
    """Replaces the experiment's `heads` for this setting."""
    freeze: tuple[bool, ...] | None = Field(None, min_length=1)
    """Replaces the experiment's `freeze` for this setting."""
    ablations: AblationSettings = AblationSettings()
    """What is ablated here."""

    @property
    def title(self) -> str:
        """How it is called."""
        return self.name or f"{self.model} on {self.data}"


class ExperimentSettings(Settings):
    """One study: what is trained, on what, and what is measured."""

    schema_version: Literal[1] = 1
    """Version of this format."""
    title: str
    """One line for people."""
    models: dict[str, ModelSettings]
    """The models, by names that the settings use."""
    data: dict[str, DataSettings]
    """The sets of data, likewise."""
    training: dict[str, TrainingSettings]
    """The trainings, likewise."""
    settings: tuple[SettingSettings, ...] = Field(min_length=1)
    """What is run: each a model on one set of data."""
    scopes: tuple[Redrawn, ...] = Field(tuple(Redrawn), min_length=1)
    """What is drawn anew."""
    heads: tuple[Size | None, ...] = Field((None,), min_length=1)
    """How many heads the replaced attention has; null for as many as before."""
    freeze: tuple[bool, ...] = Field((True,), min_length=1)
    """Whether everything else is frozen while fine-tuning."""
    pretrain_seed: Seed = 0
    """Seed of the pretrained model."""
    seeds: tuple[Seed, ...] = Field((1, 2, 3), min_length=2)
    """One fine-tuned model for each, as many as you like from two on."""
    pairs: PositiveInt | None = None
    """Of how many pairs of seeds the line is measured, spread over the seeds; null for all pairs."""
    methods: tuple[Way, ...] = WAYS
    """How B is moved before the line to it is measured, as in `isobasin barrier`; `none` has to be there."""
    points: int = Field(25, ge=2, le=MOST_POINTS)
    """Points of every line, with its ends."""
    batch: Batch = 256
    """Examples of a forward pass when measuring."""

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
        every = seeds * (seeds - 1) // 2
        return prod(map(len, own)) * (seeds + min(every, self.pairs or every))

    @property
    def chosen_pairs(self) -> list[tuple[int, int]]:
        """The pairs of seeds that are measured, in the order of the seeds: neighbours in a ring of them first."""
        count = len(self.seeds)
        ring = ((i, (i + gap) % count) for gap in range(1, count // 2 + 1) for i in range(count))
        distinct = dict.fromkeys((min(pair), max(pair)) for pair in ring)
        return [(self.seeds[i], self.seeds[j]) for i, j in sorted(list(distinct)[: self.pairs])]

    def _check(self, setting: SettingSettings) -> None:
        """Refuse a setting that names what isn't there, or whose parts don't fit."""
        model = _named("model", setting.model, self.models)
        data = [_named("data", name, self.data) for name in (setting.data, setting.pretrain_data) if name is not None]
        for name in (setting.pretrain, setting.finetune, setting.from_scratch or setting.finetune):
            _named("training", name, self.training)
        kinds = [positions for family, positions, _ in CLASSES if family == str(model.family)]
        if kinds and model.positions not in kinds:
            raise ValueError(f"family {model.family} has no {model.positions} positions: write `positions: {kinds[0]}`")
        for part in data:
            tasks = dict.fromkeys(task for family, _, task in CLASSES if family == str(model.family))
            if tasks and part.task not in tasks:
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
