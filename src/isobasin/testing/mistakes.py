"""What goes wrong in conversions, on purpose; each returns whether the model has a place for it and is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.description import Description
from isobasin.architectures.meaning import differences
from isobasin.diagnosis.layers import beginnings, split
from isobasin.diagnosis.orders import places
from isobasin.testing.conversion import Conversion


def rotary(conversion: Conversion, back: bool, *, key_alone: bool = False) -> bool:
    """Half and interleaved order; `back`: in the direction that no model needs."""
    changed = False
    for block in conversion.attention:
        group = block.group
        planes = group.rotary.planes
        turned = sorted(i for plane in planes for i in plane)
        if (
            len(turned) < 4
            or group.norm is not None
            or (key_alone and (group.queries_per_kv < 2 or group.rotary.linear))
        ):
            return False
        interleaved = planes[0] == (0, 1)
        pattern = "h (two n) w -> h (n two) w" if interleaved == back else "h (n two) w -> h (two n) w"

        def change(x: Tensor, pattern: str = pattern, turned: list[int] = turned) -> Tensor:
            found = x.clone()
            found[:, turned] = rearrange(x[:, turned], pattern, two=2)
            return found

        if key_alone:
            heads = group.heads

            def miscounted(x: Tensor, pattern: str = pattern, heads: int = heads) -> Tensor:
                flat = x.reshape(heads, -1, x.shape[-1])
                return rearrange(flat, pattern, two=2).reshape(x.shape) if flat.shape[1] % 2 == 0 else x

            changed |= conversion.rows(block.key, miscounted)
            continue
        pair = (block.query, block.key) if group.latent is None else (block.rotary_query, block.rotary_key)
        for projection in pair:
            assert projection is not None
            changed |= conversion.rows(projection, change)
    return changed


def fused(conversion: Conversion, layouts: tuple[str, str], roles: tuple[str, ...] = ("query", "key", "value")) -> bool:
    """A file's rows of several projections in the first of two orders that isn't the one in which they are read."""
    changed = False
    for block in conversion.blocks:
        parts = [block.projections[role] for role in roles if role in block.projections]
        if len(parts) < len(roles):
            continue
        at = [places(p) for p in parts]
        if len({x.shape for x in at}) > 1:
            return False
        fused = len({p.weight for p in parts}) == 1
        at = at if fused else [x + place * x.numel() for place, x in enumerate(at)]
        own = torch.stack(at)
        orders = [rearrange(torch.arange(own.numel()).reshape(own.shape), f"part head feature -> {x}") for x in layouts]
        other = next((x for x in orders if not torch.equal(x[own.flatten()], torch.arange(own.numel()))), orders[0])
        for bias in (False, True):
            names = [p.bias if bias else p.weight for p in parts]
            if None in names:
                continue
            heads = [p.layout.read(conversion.tensors[n or ""], bias) for p, n in zip(parts, names, strict=True)]
            rows = torch.cat([(x if bias else x.transpose(1, 2)).flatten(0, 1) for x in heads])[other]
            for place, (p, name, x) in enumerate(zip(parts, names, heads, strict=True)):
                stored = conversion.tensors[name or ""].contiguous().clone()
                new = rows[own[place]]
                changed |= not torch.equal(x, new if bias else new.transpose(1, 2))
                p.layout.put(stored, (new if bias else new.transpose(1, 2)).contiguous(), bias)
                conversion.tensors[name or ""] = stored
    return changed


def swapped_roles(conversion: Conversion, one: str, other: str) -> bool:
    """Two projections of the same shape in each other's place."""
    changed = False
    for block in conversion.blocks:
        if one not in block.projections or other not in block.projections:
            continue
        a, b = block.projections[one], block.projections[other]
        x = {n: conversion.tensors[n].clone() for p in (a, b) for n in (p.weight, p.bias) if n is not None}
        if a.layout.read(x[a.weight]).shape != b.layout.read(x[b.weight]).shape or (a.bias is None) != (b.bias is None):
            return False
        for to, source in ((a, b), (b, a)):
            values = source.layout.read(x[source.weight]).clone()
            changed |= conversion.rows(to, lambda _, v=values: v.transpose(1, 2), bias=False)
            if to.bias is not None and source.bias is not None:
                stored = conversion.tensors[to.bias].clone()
                to.layout.put(stored, source.layout.read(x[source.bias], bias=True), bias=True)
                conversion.tensors[to.bias] = stored
    return changed


def transposed(conversion: Conversion) -> bool:
    """One square matrix of a random block."""
    square = [
        projection.weight
        for block in conversion.attention
        for projection in (block.query, block.output)
        if projection.layout.pick is None
        if (shape := conversion.tensors[projection.weight].shape)[0] == shape[-1] and len(shape) == 2
    ]
    if not square:
        return False
    name = square[conversion.choose(len(square))]
    conversion.tensors[name] = conversion.tensors[name].T.contiguous()
    return True


def biases_of(conversion: Conversion) -> list[str]:
    """Biases that no softmax cancels and that trade with nothing else."""
    found = [block.output.bias for block in conversion.attention if not block.group.value_shift]
    found += [p.bias for b in conversion.blocks if not isinstance(b, AttentionBlock) for p in b.projections.values()]
    return [name for name in dict.fromkeys(found) if name is not None]


def lost(conversion: Conversion, *, missing: bool) -> bool:
    """One bias is zero, or missing."""
    names = biases_of(conversion)
    if not names:
        return False
    name = names[conversion.choose(len(names))]
    if missing:
        del conversion.tensors[name]
    else:
        conversion.tensors[name] = torch.zeros_like(conversion.tensors[name])
    return True


def swapped(conversion: Conversion) -> bool:
    """Two vectors of a layer in each other's place: gains or biases of two normalisations."""
    stream = conversion.stream
    if stream is None:
        return False
    gains = [norm.gain for norm in stream.norms] or [item.tensor for item in stream.along if item.role == "gain"]
    layers = beginnings(conversion.blocks)
    near = [(split(x, layers), split(y, layers), x, y) for x, y in pairwise(gains)]
    pairs = [(x, y) for one, other, x, y in near if one and other and one[0] == other[0]]
    if not pairs:
        return False
    x, y = pairs[conversion.choose(len(pairs))]
    if conversion.tensors[x].shape != conversion.tensors[y].shape:
        return False
    conversion.tensors[x], conversion.tensors[y] = conversion.tensors[y], conversion.tensors[x]
    return True


def key_value_heads(conversion: Conversion) -> bool:
    """Key/value heads in reverse."""
    if any(block.group.kv_heads < 2 or block.group.table for block in conversion.attention):
        return False
    found = [conversion.rows(p, lambda x: x.flip(0)) for b in conversion.attention for p in (b.key, b.value)]
    return all(found)


def query_heads(conversion: Conversion) -> bool:
    """Query heads that go round the key/value heads; their outputs with them."""
    if any(min(b.group.kv_heads, b.group.queries_per_kv) < 2 for b in conversion.attention):
        return False

    def change(x: Tensor, groups: int) -> Tensor:
        return rearrange(x, "(g s) f w -> (s g) f w", g=groups)

    found = [
        conversion.rows(p, lambda x, g=b.group.kv_heads: change(x, g), bias=p is b.query)
        for b in conversion.attention
        for p in (b.query, b.output)
    ]
    return all(found)


def gains_of(conversion: Conversion) -> list[tuple[str, float, list[tuple[str, int]]]]:
    """Gains of folded normalisations, what is added to them, and what reads them."""
    stream = conversion.stream
    if stream is None:
        return []
    return [(n.gain, n.offset, [(r.weight, r.axis) for r in n.readers]) for n in stream.norms if n.readers]


def folded(conversion: Conversion) -> bool:
    """The gain of one normalisation is in its readers as well."""
    gains = [one for one in gains_of(conversion) if any(w in b.shapes() for b in conversion.blocks for w, _ in one[2])]
    if not gains:
        return False
    name, offset, readers = gains[conversion.choose(len(gains))]
    for weight, axis in readers:
        x = conversion.tensors[weight]
        shape = [1] * x.ndim
        shape[axis] = -1
        conversion.tensors[weight] = x * (conversion.tensors[name] + offset).reshape(shape)
    return True


def unfolded(conversion: Conversion) -> bool:
    """The gain of one normalisation is lost."""
    gains = gains_of(conversion)
    if not gains:
        return False
    name, offset, _ = gains[conversion.choose(len(gains))]
    conversion.tensors[name] = torch.full_like(conversion.tensors[name], 1 - offset)
    return True


def offset(conversion: Conversion, step: float) -> bool:
    """All gains off by one."""
    for name, _, _ in gains_of(conversion):
        conversion.tensors[name] = conversion.tensors[name] + step
    return bool(gains_of(conversion))


def query_scale(conversion: Conversion, power: float) -> bool:
    """Queries times a power of the width of heads."""
    if any(block.group.norm is not None for block in conversion.attention):
        return False
    found = [
        conversion.rows(b.query, lambda x, f=b.group.query_key.features: x * f**power) for b in conversion.attention
    ]
    return all(found)


def head(conversion: Conversion) -> bool:
    """A readout that is the embedding, of a model that has its own; or the other way round."""
    stream, facts = conversion.stream, conversion.model.canonical.description.family.stream
    if stream is None or facts is None:
        return False
    embedding = stream.along[0].tensor
    readouts = [r for r in facts(conversion.model.canonical.description.config).readouts if r.tied]
    for readout in readouts:
        name = f"{readout.module}.weight"
        own = conversion.tensors.get(name)
        if own is not None and own.shape == conversion.tensors[embedding].shape:
            conversion.tensors[name] = conversion.tensors[embedding].clone()
            return True
        if own is None and name in conversion.model.view.ties and "tie_word_embeddings" in conversion.config:
            x = conversion.tensors[embedding]
            conversion.tensors[name] = torch.randn(x.shape, generator=conversion.generator).to(x) * x.std()
            conversion.config["tie_word_embeddings"] = False
            return True
    return False


def tables_of(conversion: Conversion) -> Iterator[tuple[str, Tensor]]:
    """Every table that writes into the stream, that of tokens first."""
    stream = conversion.stream
    for item in () if stream is None else stream.along:
        if item.table and item.role == "vector":
            yield item.tensor, conversion.tensors[item.tensor]


def embedding(conversion: Conversion, change: Callable[[Tensor], Tensor]) -> bool:
    """The table of tokens changed; not where a readout is tied to it, which would change too."""
    for name, x in tables_of(conversion):
        if len(x) < 20:
            return False
        conversion.tensors[name] = change(x)
        return True
    return False


def padded(x: Tensor) -> Tensor:
    """A table with six rows more."""
    return torch.cat([x, x[:6] * 0.5])


def vocabulary(conversion: Conversion) -> bool:
    """Six rows more than the original has."""
    changed = embedding(conversion, padded)
    if changed and "vocab_size" in conversion.config:
        conversion.config["vocab_size"] += 6
        return True
    return False


def positions(conversion: Conversion) -> bool:
    """The table of positions without its first two rows."""
    for place, (name, x) in enumerate(tables_of(conversion)):
        if place and len(x) > 8:
            conversion.tensors[name] = torch.cat([x[2:], 0.3 * x[:2].flip(1)])
            return True
    return False


def entry(conversion: Conversion, names: tuple[str, ...], change: Callable[[Any], Any]) -> bool:
    """An entry of the configuration, wherever it is."""
    places = [conversion.config, *(v for v in conversion.config.values() if isinstance(v, dict))]
    found = False
    for entries in places:
        for name in names:
            if isinstance(entries.get(name), (int, float, str)) and not isinstance(entries.get(name), bool):
                entries[name], found = change(entries[name]), True
    # What the model's code doesn't read is no defect.
    own, shapes = conversion.model.canonical.description, conversion.model.checkpoint.shapes
    return found and bool(differences(own, Description(conversion.config, shapes)))


def activation(old: Any) -> Any:
    """Another activation."""
    return "relu" if old != "relu" else "silu"


def layers_of(conversion: Conversion) -> tuple[str, str] | None:
    """What names begin with in two layers of one shape."""
    starts = list(beginnings(conversion.blocks))
    for one, other in pairwise(starts):
        shapes = [
            {n.removeprefix(s): x.shape for n, x in conversion.tensors.items() if n.startswith(s)} for s in (one, other)
        ]
        if shapes[0] == shapes[1] and shapes[0]:
            return one, other
    return None


def ordered(conversion: Conversion, *, twice: bool) -> bool:
    """Two layers in each other's place, or the first in both."""
    found = layers_of(conversion)
    if found is None:
        return False
    one, other = found
    old = dict(conversion.tensors)
    for name, x in old.items():
        if name.startswith(other):
            conversion.tensors[name] = old[one + name.removeprefix(other)].clone()
            if not twice:
                conversion.tensors[one + name.removeprefix(other)] = x
    return True


def rounded(conversion: Conversion, kind: torch.dtype) -> bool:
    """All values rounded to another type."""
    conversion.tensors = {
        n: x.to(kind).to(x.dtype) if x.is_floating_point() else x for n, x in conversion.tensors.items()
    }
    return True
