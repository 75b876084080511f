"""From a checkpoint's configuration and header to its specification; refuses whatever it can't explain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from isobasin.architectures.blocks import AttentionBlock, Block
from isobasin.architectures.configuration import Config, counted, described
from isobasin.architectures.description import Description
from isobasin.architectures.entries import Shapes
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.plan import find
from isobasin.architectures.registry import Family, kind
from isobasin.architectures.schema import Specification
from isobasin.architectures.view import View
from isobasin.errors import ArchitectureError, TensorError, about
from isobasin.symmetries.along import Stream


def specification(description: Description, *, source: str, view: View | None = None) -> Specification:
    """What a checkpoint means, checked against the tensors it has.

    Args:
        description: What its folder says.
        source: What to call the checkpoint in messages.
        view: Which tensor each is; None looks at their names alone.

    Raises:
        ArchitectureError: If the configuration is not supported.
        TensorError: If an attention tensor is missing, misshapen or unexplained.
    """
    with about(source):
        bare, config = description.specification, description.config
        view = view or View.of(description)
        found = bare.named(view.stored)
        check_any(bare, view, description.family)
        _check_shapes(found.attention, description.shapes, described(config))
        _check_explained(bare.attention, description.family.beside, view, config)
    return found


def check_feedforwards(
    found: Specification, description: Description, *, source: str, view: View | None = None
) -> tuple[FeedForward, ...]:
    """The feed-forward blocks of a specification, checked against the tensors that are there.

    Separate from `specification`, because attention can be moved whatever lies in the feed-forward modules.

    Args:
        found: What `specification` returned.
        description: What the checkpoint's folder says.
        source: What to call the checkpoint in messages.
        view: As in `specification`.

    Raises:
        ArchitectureError: None are known.
        TensorError: A tensor is missing, misshapen or unexplained.
    """
    with about(source):
        if not found.feedforwards:
            raise ArchitectureError(f"no feed-forward blocks are known for model type {found.model_type!r}")
        bare, config = description.specification, description.config
        units = " or ".join(dict.fromkeys(str(block.group.units) for block in found.feedforwards))
        _check_shapes(found.feedforwards, description.shapes, f"{described(config)}, {units} feed-forward units")
        view = view or View.of(description)
        _check_explained(bare.feedforwards, description.family.beside, view, config)
    return found.feedforwards


def check_stream(description: Description, *, source: str, view: View, keep_gains: bool = False) -> Stream:
    """The residual stream of a checkpoint whose feed-forward blocks are known, with every tensor's part in it.

    Args:
        description: What the checkpoint's folder says.
        source: What to call the checkpoint in messages.
        view: Which tensor each is.
        keep_gains: Leave the gains of normalisations with their coordinates.

    Raises:
        ArchitectureError: Nothing is known of it, or it is an output of the model.
        TensorError: A tensor has no known part in it.
    """
    with about(source):
        bare, stream = description.specification, description.family.stream
        if stream is None:
            raise ArchitectureError(f"nothing is known of the residual stream of model type {bare.model_type!r}")
        _check_read(view)
        layers = [
            (block, *(other for other in bare.feedforwards if other.layer == block.layer)) for block in bare.attention
        ]
        return find(stream(description.config), layers, description.shapes, view, keep_gains=keep_gains)


def check_comparable(reference: Specification, model: Specification, *, feedforward: bool = False) -> None:
    """Check that two checkpoints have blocks of the same kind; names and prefixes may differ.

    Args:
        reference: One of them.
        model: The other.
        feedforward: Compare the feed-forward blocks as well as attention.

    Raises:
        ArchitectureError: With the first difference, in words.
    """
    if kind(reference.model_type) != kind(model.model_type):
        raise ArchitectureError(
            f"reference is a {reference.model_type} model, model is a {model.model_type} model; give two of one type"
        )
    _check_equal(reference.attention, model.attention)
    if feedforward:
        _check_equal(reference.feedforwards, model.feedforwards)


def _check_equal(
    reference: Sequence[AttentionBlock | FeedForward], model: Sequence[AttentionBlock | FeedForward]
) -> None:
    if len(reference) != len(model):
        raise ArchitectureError(f"reference has {len(reference)} layers, model has {len(model)}; they must be equal")
    for ours, theirs in zip(reference, model, strict=True):
        # Facts in the order in which a reader would look for them; the first that differs is the message.
        for one, other in zip(_facts(ours), _facts(theirs), strict=True):
            if one != other:
                raise ArchitectureError(
                    f"layer {ours.layer}: reference has {one}, model has {other}; they must be equal"
                )


def _facts(block: AttentionBlock | FeedForward) -> list[str]:
    """What must be equal in two blocks, in words: stack, width, all of the group, and which biases there are."""
    place = f"a layer of the {block.stack or 'model'}"
    biases = f"biases on {', '.join(block.biases) or 'nothing'}"
    if isinstance(block, AttentionBlock):
        group = block.group
        return [
            place,
            f"{group.heads} heads of {group.query_key.features} features",
            f"{group.kv_heads} key/value heads of {group.value_output.features} features",
            f"width {block.width}",
            f"rotary positions on features {group.rotary.planes}",
            f"rotary values on features {group.value_output.planes}",
            biases,
            f"group {group}",
        ]
    units = f"{block.group.units} feed-forward units"
    experts = f"{block.group.experts or 'no'} experts"
    return [place, experts, units, f"width {block.width}", biases, f"group {block.group}"]


def check_any(bare: Specification, view: View, entry: Family) -> None:
    """Check that the checkpoint has some attention tensor of every part of the model.

    Raises:
        TensorError: It has none, or by names that begin with something that is no part of them.
    """
    needed = [name for block in bare.attention for name in block.shapes()]
    for part in entry.namings or (("", *entry.prefixes),):
        ours = [name for name in needed if name.startswith(part[0])]
        if ours and not any(view.find(name) for name in ours):
            looked = [beginning + ours[0].removeprefix(part[0]) for beginning in part]
            raise TensorError(
                f"no attention tensor of a {entry.model_type} model is there; looked for "
                f"{' and '.join(map(repr, looked))}{_wrapped(view, looked)}"
            )


def _wrapped(view: View, looked: Sequence[str]) -> str:
    """What to do where all names of a file begin with what a wrapper of the model is called; empty where none is."""
    for name in sorted(looked, key=len, reverse=True):
        for stored in view.tensors.values():
            if stored.endswith(f".{name}"):
                return f"; there is {stored!r}: take {stored.removesuffix(name)!r} from the beginning of all names"
    return ""


def _check_read(view: View) -> None:
    """Check that nothing would be left behind in the old basis that other programs than transformers read."""
    for name in sorted(view.unread):
        raise TensorError(
            f"tensor {name!r} is of a layer that predicts further tokens, which transformers doesn't read: it wouldn't "
            "move with the residual stream; use --scope block"
        )


def _check_shapes(blocks: Sequence[Block], shapes: Shapes, sizes: str) -> None:
    """Check that every needed tensor is there, in the shape that follows from the configuration."""
    needed = {name: shape for block in blocks for name, shape in block.shapes().items()}
    missing = [name for name in needed if name not in shapes]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise TensorError(f"tensor {missing[0]!r} is missing{more}, of {len(needed)} that config.json asks for")
    for name, shape in needed.items():
        if tuple(shapes[name]) != shape:
            raise TensorError(
                f"tensor {name!r} has shape {tuple(shapes[name])}, expected {shape} from {sizes} in config.json"
            )


def _check_explained(blocks: Sequence[Block], others: Iterable[str], view: View, config: Config) -> None:
    """Check that no other tensor lies in the blocks' modules, by canonical names: the blocks might use it."""
    known = {name for block in blocks for name in block.shapes()}
    modules = {module for block in blocks for module in _modules(block)}
    in_any_layer = {_any_layer(f"{module}.") for module in modules}
    endings = tuple(f".{ending}" for ending in others)
    kind = "an attention" if isinstance(blocks[0], AttentionBlock) else "a feed-forward"
    for name, stored in view.tensors.items():
        if name in known or name.endswith(endings):
            continue
        around = {name[: dot.start()] for dot in re.finditer(r"\.", name)}
        if modules & around:
            raise TensorError(f"tensor {stored!r} is unexpected in {kind} module, so no move of it is known exact")
        if any(_any_layer(f"{module}.") in in_any_layer for module in around):
            layer = ".".join(_INDEX.findall(name))
            raise TensorError(f"tensor {stored!r} belongs to layer {layer}, but config.json has {counted(config)}")


def _modules(block: Block) -> set[str]:
    """The modules that hold the block and nothing else: around the projections that read, and of each by itself."""
    own = {projection.weight.rsplit(".", 1)[0] for projection in block.projections.values()}
    around = {projection.weight.rsplit(".", 2)[0] for projection in block.readers.values()}
    return own | {module for module in around if not module.rsplit(".")[-1].isdigit()}


# Of a layer in a name: a module that is called by a number.
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


def _any_layer(name: str) -> str:
    """A name that stands for the same one in all layers of its stack."""
    return _INDEX.sub("*", name)
