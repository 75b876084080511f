"""The one canonical view of a checkpoint: which tensor each stored one is, whatever tool wrote the file.

One function is loaded from many files: with and without the base model's prefix, under the names of older and newer
versions of transformers, with a tied tensor stored once or twice, with buffers that are no parameters. A view knows
what is loaded from where, and keeps the names on disk for writing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, TypeVar

from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming, WeightTransform
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from isobasin.architectures.configuration import Config
from isobasin.architectures.description import Description
from isobasin.architectures.family import Family
from isobasin.architectures.registry import lookup
from isobasin.errors import ArchitectureError, TensorError

T = TypeVar("T")

# Name endings of what many models had as parameters of a file once, and transformers ignores in all of them.
BUFFERS = ("rotary_emb.inv_freq", "position_ids", "token_type_ids")
_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class View:
    """The tensors of a checkpoint under canonical names, which are a family's own, without a prefix.

    Attributes:
        tensors: From canonical to stored names: everything that the function depends on, each once, in stored order.
        copies: Stored tensors that hold again what another one does, with that one's stored name.
        ties: Canonical names of tensors that are another one's, which may be stored or not, with that one's.
        buffers: Stored tensors that are no parameters, and that transformers doesn't read.
        unread: Stored tensors of layers that it doesn't read either, and other programs do.
        beginnings: What canonical names begin with, and what they begin with in the file.
    """

    tensors: Mapping[str, str]
    copies: Mapping[str, str] = field(default_factory=lambda: {})
    ties: Mapping[str, str] = field(default_factory=lambda: {})
    buffers: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    beginnings: Mapping[str, str] = field(default_factory=lambda: {})

    @classmethod
    def of(cls, description: Description, equal: Callable[[str, str], bool] | None = None) -> View:
        """The view of a checkpoint of any model type; of those that are no family here, what transformers says.

        Args:
            description: What its folder says.
            equal: Whether two stored tensors have the same values, which decides whether they are tied; None takes it
                for granted, for headers alone.

        Raises:
            TensorError: A tensor is there twice under several names, or a head's has the name of the base model's.
        """
        naming = _Naming.of(description)
        stored: dict[str, str] = {}
        buffers: set[str] = set()
        unread: set[str] = set()
        for name in description.shapes:
            canonical = naming.canonical(name)
            if naming.is_unread(canonical):
                unread.add(name)
            elif naming.is_buffer(canonical):
                buffers.add(name)
            elif canonical in stored:
                raise TensorError(
                    f"tensors {stored[canonical]!r} and {name!r} are told apart by a prefix alone: keep one if "
                    "they are one tensor under two names; a head that has its own of that name is not supported"
                )
            else:
                stored[canonical] = name
        ties, copies = _tied(naming.ties, stored, equal or (lambda a, b: True))
        beginnings = {part[0]: naming.beginning(part, stored) for part in naming.parts}
        return cls(stored, copies, ties, frozenset(buffers), frozenset(unread), beginnings)

    @cached_property
    def canonical(self) -> Mapping[str, str]:
        """From stored to canonical names, without copies and what is ignored."""
        return {stored: name for name, stored in self.tensors.items()}

    def find(self, name: str) -> str | None:
        """The stored tensor that a canonical one is, tied ones included; None if there is none."""
        return self.tensors.get(self.ties.get(name, name))

    def stored(self, name: str) -> str:
        """What a canonical name, of a tensor or of a module, is in the file: in its form, even where it isn't there."""
        found = self.find(name)
        if found is not None:
            return found
        old = max((old for old in self.beginnings if name.startswith(old)), key=len, default=None)
        return name if old is None else self.beginnings[old] + name.removeprefix(old)

    def renamed(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Values by stored names under canonical ones."""
        return {self.canonical[name]: value for name, value in tensors.items()}

    def written(self, pieces: Iterable[Mapping[str, T]]) -> Iterator[dict[str, T]]:
        """New values by stored names, with those of their copies."""
        for piece in pieces:
            again = {copy: piece[name] for copy, name in self.copies.items() if name in piece}
            yield {**piece, **again}


def canonical_names(description: Description) -> Callable[[str], str]:
    """What finds the canonical name of any that transformers knows a tensor by, older ones and newer ones."""
    return _Naming.of(description).canonical


def _tied(
    pairs: Mapping[str, str], stored: dict[str, str], equal: Callable[[str, str], bool]
) -> tuple[dict[str, str], dict[str, str]]:
    """Ties and copies as transformers makes them; what is tied away is removed from `stored`.

    Whichever of the tied tensors is stored is read for all of them, the source first. A further one that is stored is
    tied only if its values are the same.
    """
    ties: dict[str, str] = {}
    copies: dict[str, str] = {}
    for name in pairs:
        source = name
        while source in pairs:
            source = pairs[source]
        own = stored.get(name)
        if own is None or source not in stored:
            ties[name] = source
            if own is not None:
                stored[source] = stored.pop(name)
        elif equal(stored[source], own):
            ties[name], copies[own] = source, stored[source]
            del stored[name]
    return ties, copies


@dataclass(frozen=True)
class _Naming:
    """What names mean in a model type.

    Attributes:
        parts: For every part of a model what its canonical names begin with, then what else files begin them with.
        renamings: transformers' renamings from older to newer names, then those back to the family's.
        ties: Canonical names of tensors that are another one's.
        endings: Of names of buffers.
        patterns: Likewise, as transformers has them.
        unread: Numbers of layers that transformers doesn't read.
    """

    parts: tuple[tuple[str, ...], ...]
    renamings: tuple[WeightTransform, ...]
    pairs: Mapping[str, str]
    endings: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    unread: tuple[range, ...] = ()

    @classmethod
    def of(cls, description: Description) -> _Naming:
        """The naming of a configuration's model type, in a file with its tensors."""
        entry = lookup(description.model_type)
        config = _built(description)
        ties = config is not None and getattr(config, "tie_word_embeddings", False)
        if entry is None:
            classes = [] if config is None else _classes(config, prefixed=True)
            parts: tuple[tuple[str, ...], ...] = (("", *sorted({f"{c.base_model_prefix}." for c in classes} - {"."})),)
            patterns = tuple(p for c in classes for p in c._keys_to_ignore_on_load_unexpected or ())
            return cls(parts, _renamings(config, None), _pairs(classes) if ties else {}, BUFFERS, patterns)
        parts = entry.namings or (("", *entry.prefixes),)
        prefixed = any(name.startswith(new) for part in parts for new in part[1:] for name in description.shapes)
        pairs: dict[str, str] = {}
        if ties:
            pairs = {**_pairs(_classes(config, prefixed=prefixed)), **entry.ties(config)}
        unread = () if config is None else tuple(entry.unread(config))
        return cls(parts, _renamings(config, entry), pairs, (*entry.buffers, *BUFFERS), unread=unread)

    def canonical(self, name: str) -> str:
        """The canonical name of a tensor that is stored as `name`."""
        for new, old in self._beginnings:
            if name.startswith(new):
                name = name.removeprefix(new)
                # A model that was saved inside of another has it twice, which transformers reads.
                name = old + (name.removeprefix(new) if not old else name)
                break
        for renaming in self.renamings:
            name = renaming.rename_source_key(name)[0]
        return name

    @cached_property
    def _beginnings(self) -> list[tuple[str, str]]:
        """What names may begin with, the longest first, and what canonical ones begin with instead."""
        return sorted(((new, part[0]) for part in self.parts for new in part), key=lambda pair: -len(pair[0]))

    @cached_property
    def ties(self) -> dict[str, str]:
        """The tied pairs of all classes by canonical names."""
        named = {self.canonical(target): self.canonical(source) for target, source in self.pairs.items()}
        return {target: source for target, source in named.items() if target != source}

    def is_unread(self, name: str) -> bool:
        """Whether a canonical name is of a layer that transformers doesn't read."""
        layer = _LAYER.match(name)
        return layer is not None and any(int(layer[1]) in numbers for numbers in self.unread)

    def is_buffer(self, name: str) -> bool:
        """Whether a canonical name is of a buffer."""
        return f".{name}".endswith(self._endings) or any(re.search(pattern, name) for pattern in self.patterns)

    @cached_property
    def _endings(self) -> tuple[str, ...]:
        return tuple(f".{ending}" for ending in self.endings)

    def beginning(self, part: Sequence[str], stored: Mapping[str, str]) -> str:
        """What most names of a part begin with in a file; the canonical beginning where nothing is there."""
        counts = dict.fromkeys(part, 0)
        for canonical, name in stored.items():
            if canonical.startswith(part[0]):
                counts[max((new for new in part if name.startswith(new)), key=len, default=part[0])] += 1
        return max(counts, key=lambda new: counts[new])


def _built(description: Description) -> Config | None:
    """The configuration with its defaults; None if it can't be built, which only matters to who needs more of it."""
    try:
        return description.config
    except ArchitectureError:
        return None


def _classes(config: Config, *, prefixed: bool) -> list[Any]:
    """The classes that a file may be loaded with: the one that its configuration names, and the base model's inside.

    Where it names none, a file without prefix is the base model's.
    """
    # transformers has the classes beside the configuration; ours lie likewise.
    place = type(config).__module__.replace(".configuration_", ".modeling_").replace(".configurations", ".classes")
    there = [c for c in vars(import_module(place)).values() if isinstance(c, type) and hasattr(c, "_tied_weights_keys")]
    heads, bases = config.architectures or (), _bases(config)
    named = [c for c in there if c.__name__ in heads]
    inside = [c for c in there if c.__name__ in bases]
    return [*named, *inside] if named or not (heads or prefixed) else there


def _bases(config: Config) -> tuple[str, ...]:
    """The names of the classes without head."""
    found = MODEL_MAPPING_NAMES.get(config.model_type, ())
    return (found,) if isinstance(found, str) else tuple(found)


def _pairs(classes: Iterable[Any]) -> dict[str, str]:
    """Which parameters are tied to which, by the names that the classes give."""
    return {target: source for c in classes for target, source in (c._tied_weights_keys or {}).items()}


def _renamings(config: Config | None, entry: Family | None) -> tuple[WeightTransform, ...]:
    """From older names to newer ones, as transformers renames them, and of a family's tensors back to its own names.

    Prefixes are left to the family, and so is all where it says how its parts are named.
    """
    legacy = [renaming for renaming in _registered("legacy") if not renaming.source_patterns[0].startswith("^")]
    if config is None or (entry is not None and entry.namings):
        return tuple(legacy)
    keys = dict.fromkeys((*(config.architectures or ()), *_bases(config), config.model_type))
    newer = [renaming for key in keys for renaming in _registered(key)]
    back = [] if entry is None else [renaming.reverse_transform() for renaming in reversed(newer)]
    return (*legacy, *newer, *back)


def _registered(key: str) -> list[WeightRenaming]:
    """What transformers renames for a model type or a class, but for prefixes and for what it computes."""
    found: Any = get_checkpoint_conversion_mapping(key) or ()
    return [transform for transform in found if type(transform) is WeightRenaming]
