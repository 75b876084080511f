"""A look at models before anything is done: what stands in the way, and what would be matched."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from isobasin.architectures.resolve import check_comparable
from isobasin.bounds import check_several
from isobasin.canonical import Canonical, Source, open_canonical
from isobasin.choices import Scope
from isobasin.errors import ArchitectureError, IsobasinError, TensorError
from isobasin.matching.whole.pair import check_alike
from isobasin.model import Model
from isobasin.plain import Plain
from isobasin.verbs.conflicts import Conflict, Option, conflicts


@dataclass(frozen=True)
class Matchable(Plain):
    """What would be matched in a scope.

    Attributes:
        scope: The scope.
        blocks: How many blocks are matched; 0 if it can't be.
        reason: Why it can't be; empty otherwise.
    """

    scope: Scope
    blocks: int
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**super().to_json(), "reason": self.reason or None}


@dataclass(frozen=True)
class PairCheck(Plain):
    """What is between the first model and another.

    Attributes:
        a: The first.
        b: The other.
        conflicts: What a merge of the two refuses, the gravest first.
        matchable: What would be matched, scope by scope.
        notes: What is no conflict and good to know.
    """

    a: str
    b: str
    conflicts: tuple[Conflict, ...]
    matchable: tuple[Matchable, ...]
    notes: tuple[str, ...]
    _also = ("clear",)

    @property
    def clear(self) -> bool:
        """Whether nothing is in the way of a merge."""
        return not self.conflicts and bool(self.matchable[0].blocks)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = super().to_json()
        advised = [{**one.to_json(), "advice": one.advice(tuple(Option))} for one in self.conflicts]
        return found | {"conflicts": advised, "scopes": found.pop("matchable")}


@dataclass(frozen=True)
class Check(Plain):
    """What is between the first of some models and each of the others.

    Attributes:
        pairs: One for each other model.
    """

    pairs: tuple[PairCheck, ...]
    _also = ("clear",)

    @property
    def clear(self) -> bool:
        """Whether nothing is in the way of a merge."""
        return all(pair.clear for pair in self.pairs)


def check(models: Sequence[Source], *, allow_pickle: bool = False) -> Check:
    """List everything in which models disagree, with what resolves it, and what of them would be matched.

    Only headers, configurations and tokenizer files are read, and tensors that may be tied; nothing is written.

    Args:
        models: Folders, hub ids, or transformers models, two or more; each is compared with the first.
        allow_pickle: Load pickled weights, with `weights_only`.

    Raises:
        CheckpointError: One of them can't be found or read.
    """
    check_several("models", models)
    if len(models) < 2:
        raise IsobasinError("check takes two or more models")
    with ExitStack() as stack:
        first, *others = [stack.enter_context(open_canonical(end, allow_pickle=allow_pickle)) for end in models]
        model = _understood(first)
        return Check(tuple(_pair(first, model, other, _understood(other)) for other in others))


def _pair(a: Canonical, one: Model | IsobasinError, b: Canonical, other: Model | IsobasinError) -> PairCheck:
    scopes = tuple(_scope(scope, one, other) for scope in Scope)
    return PairCheck(a.name, b.name, tuple(conflicts(a, b)), scopes, tuple(_notes(a, b)))


def _understood(end: Canonical) -> Model | IsobasinError:
    """The model, or why it isn't supported."""
    try:
        return Model.of(end)
    except (ArchitectureError, TensorError) as error:
        return error


def _scope(scope: Scope, a: Model | IsobasinError, b: Model | IsobasinError) -> Matchable:
    if isinstance(a, IsobasinError) or isinstance(b, IsobasinError):
        return Matchable(scope, 0, str(a if isinstance(a, IsobasinError) else b))
    wide = scope.feedforward
    try:
        check_comparable(a.specification, b.specification, feedforward=wide)
        blocks = [model.blocks(feedforward=wide) for model in (a, b)]
        if scope is Scope.model:
            check_alike(a.stream(), b.stream())
    except (ArchitectureError, TensorError) as error:
        return Matchable(scope, 0, str(error))
    return Matchable(scope, len(blocks[0]))


def _notes(a: Canonical, b: Canonical) -> list[str]:
    """What is no conflict: tokenizers that can't be compared, and other types."""
    found: list[str] = []
    lacking = [name for name, end in (("A", a), ("B", b)) if end.tokens is None]
    if len(lacking) == 1:
        found.append(f"{lacking[0]} has no tokenizer files, so its tokens are taken for those of the other")
    types = [sorted({str(end.checkpoint.tensors[n].dtype) for n in end.view.tensors.values()}) for end in (a, b)]
    if types[0] != types[1]:
        ours, theirs = (", ".join(t.removeprefix("torch.") for t in kinds) for kinds in types)
        found.append(f"A is stored in {ours}, B in {theirs}: results have A's types")
    return found
