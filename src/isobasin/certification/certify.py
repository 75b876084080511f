"""Is a stated symmetry group exactly what a block's function doesn't see? Counted, not believed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.examples import EXAMPLES, tiny, variant
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.registry import family
from isobasin.architectures.tiny import TinyModel
from isobasin.bounds import check_seed
from isobasin.certification.hidden import hidden_directions
from isobasin.certification.jacobians import Measured, measured_alone, measured_whole
from isobasin.certification.loaded import Loaded, loaded_blocks
from isobasin.certification.smallest import smallest
from isobasin.certification.tangents import stored_tangents
from isobasin.errors import CheckpointError
from isobasin.model import Model, Source, open_model
from isobasin.plain import Plain
from isobasin.symmetries.feedforward import FeedForwardGroup
from isobasin.symmetries.groups import AttentionGroup

# A block of more values than this is certified on a small model of its kind instead.
_LARGEST = 1500
# A smaller fall of the singular values separates nothing: rounding in float64 leaves ten times a million or more.
_CLEAR = 1e4
_SMALL = 0.25


@dataclass(frozen=True)
class BlockCertificate(Plain):
    """What was measured of one block.

    Attributes:
        layer: Index of the layer.
        kind: "attention" or "feed-forward".
        group: The stated group.
        parameters: Number of weights and biases that it acts on.
        measured: Directions of them that the block's function doesn't see: the nullity of its Jacobian.
        gap: By what factor the singular values fall between what is seen and what isn't.
        wrong: Stated directions that change the function.
        hidden: Further directions that only the whole model doesn't see: normalisations around the block hide them.
        hidden_gap: The gap of the whole model's singular values.
        expected: How many those are by what the family says of its residual stream; None if it says nothing.
    """

    layer: int
    kind: str
    group: AttentionGroup | FeedForwardGroup
    parameters: int
    measured: int
    gap: float
    wrong: int
    hidden: int
    hidden_gap: float
    expected: int | None
    _also = ("stated", "missing", "verdict", "exact")

    @property
    def stated(self) -> int:
        """The dimension of the stated group."""
        return self.group.dimension

    @property
    def missing(self) -> int:
        """Directions that change nothing and aren't stated."""
        return max(0, self.measured - (self.stated - self.wrong))

    @property
    def exact(self) -> bool:
        """Whether the stated directions are those that the function doesn't see, all of them and no others."""
        return not self.missing and not self.wrong and self.gap > _CLEAR

    @property
    def verdict(self) -> str:
        """The same in words."""
        if self.gap <= _CLEAR:
            return "unclear, as the singular values have no gap"
        found = [f"too small: {self.missing} symmetries missing"] if self.missing else []
        found += [f"too large: {self.wrong} stated ones change the function"] if self.wrong else []
        return "; ".join(found) or "exact"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = super().to_json()
        return found | {"block": found.pop("kind"), "hidden_expected": found.pop("expected")}


@dataclass(frozen=True)
class Certificate(Plain):
    """What was measured of a model.

    Attributes:
        name: The model or family.
        made: Whether a small random model was made for it; otherwise the weights are the model's own.
        blocks: Every attention block, then every feed-forward block.
    """

    name: str
    made: bool
    blocks: tuple[BlockCertificate, ...]
    _also = ("exact",)

    @property
    def exact(self) -> bool:
        """Whether every block's group is exact."""
        return all(block.exact for block in self.blocks)


def certify(
    source: Source,
    *,
    seed: int = 0,
    allow_pickle: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Certificate:
    """Count the directions of parameters that a model's blocks don't see, and compare them with the stated groups.

    The Jacobian of a block's outputs at random inputs, by all of its weights and biases, is taken of the code that
    transformers runs, in float64. Its nullity must be the group's dimension, and the stated directions must be null.

    Args:
        source: A model type such as "llama" or one of its variants (`variants`), of which a small random model is made;
            or a folder, hub id or transformers model, certified at its own weights if it is small, and by a small
            random model with the same switches if not.
        seed: Of weights and inputs.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called with what is measured, how many measurements are done, and of how many.

    Raises:
        ArchitectureError: The model isn't supported, or transformers keeps a block's values in no form of their own.
    """
    check_seed(seed)
    if isinstance(source, str) and source in map(str, EXAMPLES) and not Path(source).is_dir():
        return _of_small(variant(source), source, seed, progress)
    with _said_of_families(source), open_model(source, allow_pickle=allow_pickle, headers=True) as opened:
        sizes = [sum(map(prod, block.shapes().values())) for block in _blocks(opened)]
        if max(sizes) > _LARGEST:
            config = opened.checkpoint.config
            usual = tiny(opened.specification.model_type)
            head = (config.get("architectures") or [usual.base])[0]
            return _of_small(replace(usual, config=dict(config), head=head), opened.name, seed, progress)
    with open_model(source, allow_pickle=allow_pickle) as opened:
        return Certificate(opened.name, False, _certified(opened, seed, progress))


@contextmanager
def _said_of_families(source: Source) -> Generator[None]:
    """Where there is no such model, say also which families or variants have nearly its name."""
    try:
        yield
    except CheckpointError as error:
        near = get_close_matches(str(source), map(str, EXAMPLES)) if not Path(str(source)).exists() else []
        if not near:
            raise
        raise CheckpointError(f"{source}: no family: did you mean {' or '.join(near)}? As a model: {error}") from error


def variants(model_type: str) -> list[str]:
    """The names of the variants of a model type that `certify` takes, the usual form first.

    Raises:
        ArchitectureError: The model type is unknown.
    """
    return [str(model) for model in EXAMPLES if model.model_type == family(model_type).model_type]


def _of_small(model: TinyModel, name: str, seed: int, progress: Callable[[str, int, int], None] | None) -> Certificate:
    """The certificate of a small random model of the same kind."""
    made = smallest(model).build(seed)
    for parameter, value in made.named_parameters():
        if parameter.endswith("bias"):
            # With larger ones there are units that no input turns on, or none turns off.
            value.data.mul_(_SMALL)
    with open_model(made) as opened:
        return Certificate(name, True, _certified(opened, seed, progress))


def _blocks(model: Model) -> tuple[AttentionBlock | FeedForward, ...]:
    """Every block that the family states."""
    return model.blocks(feedforward=bool(model.specification.feedforwards))


def _certified(
    model: Model, seed: int, progress: Callable[[str, int, int], None] | None
) -> tuple[BlockCertificate, ...]:
    """The certificates of all blocks of an open model."""
    report = progress or (lambda step, done, total: None)
    module, blocks = loaded_blocks(model, _blocks(model))
    report("blocks", 0, 1)
    alone = measured_alone(module, blocks, seed)
    report("blocks", 1, 1)
    report("whole model", 0, 1)
    whole = measured_whole(module, blocks, seed)
    report("whole model", 1, 1)
    return tuple(_judged(model, *found) for found in zip(blocks, alone, whole, strict=True))


def _judged(model: Model, loaded: Loaded, alone: Measured, whole: Measured) -> BlockCertificate:
    block = loaded.block
    stated = stored_tangents(block, loaded.stored)
    return BlockCertificate(
        layer=block.layer,
        kind="attention" if isinstance(block, AttentionBlock) else "feed-forward",
        group=block.group,
        parameters=len(loaded.order),
        measured=alone.spectrum.nullity,
        gap=alone.spectrum.gap,
        # What a block's own function doesn't see could still be seen elsewhere, where others use its values.
        wrong=max(alone.seen(stated), whole.seen(stated)),
        hidden=whole.spectrum.nullity - alone.spectrum.nullity,
        hidden_gap=whole.spectrum.gap,
        expected=_expected(model, block),
    )


def _expected(model: Model, block: AttentionBlock | FeedForward) -> int | None:
    """What the normalisations hide by what the family says of the residual stream, if it says anything."""
    description = model.canonical.description
    stream = description.family.stream
    if stream is None:
        return None
    return hidden_directions(block, stream(description.config), model.view.tensors)
