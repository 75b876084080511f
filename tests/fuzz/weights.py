"""Damage to weights: headers, the index, values, types, and the names and shapes of tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .damage import said
from .mutation import VALUES, Draw, Mutation

_INDEX = "model.safetensors.index.json"


def _shard(draw: Draw, folder: Path) -> Path:
    return draw.choice(sorted(folder.glob("model*.safetensors")))


def _header(change: Callable[[Draw, dict[str, Any]], object]) -> Callable[[Draw, Path], None]:
    """The header of a shard with something in it changed, and its length to match."""

    def apply(draw: Draw, folder: Path) -> None:
        path = _shard(draw, folder)
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(draw, header)
        new = json.dumps(header).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])

    return apply


def _slot(draw: Draw, header: dict[str, Any]) -> dict[str, Any]:
    return header[draw.choice(sorted(header.keys() - {"__metadata__"}))]


def _entry(draw: Draw, header: dict[str, Any]) -> None:
    slot = _slot(draw, header)
    slot[draw.choice(("dtype", "shape", "data_offsets", "more"))] = draw.choice(VALUES)


def _offsets(draw: Draw, header: dict[str, Any]) -> None:
    slot = _slot(draw, header)
    begin, end = slot["data_offsets"]
    choices = (
        [end, begin],
        [begin, end + 4],
        [begin - 4, end],
        [0, end - begin],
        [begin, 2**62],
        [-4, -4 + end - begin],
    )
    slot["data_offsets"] = draw.choice(choices)


def _shape(draw: Draw, header: dict[str, Any]) -> None:
    slot = _slot(draw, header)
    choices = (slot["shape"][::-1], [*slot["shape"], 1], [1, *slot["shape"]], [0], [], [-1, 4], [2**31, 2**31], [2**64])
    slot["shape"] = draw.choice(choices)


def _type(draw: Draw, header: dict[str, Any]) -> None:
    _slot(draw, header)["dtype"] = draw.choice(("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F4", "X", ""))


def _metadata(draw: Draw, header: dict[str, Any]) -> None:
    header["__metadata__"] = draw.choice((None, [], {"format": 3}, {"format": "tf"}, {}, {"a": {"b": 1}}, "x"))


def _dropped(draw: Draw, header: dict[str, Any]) -> None:
    del header[draw.choice(sorted(header))]


def _length(draw: Draw, folder: Path) -> None:
    path = _shard(draw, folder)
    content = path.read_bytes()
    length = draw.choice((0, 1, 2**63, 10**9, len(content), int.from_bytes(content[:8], "little") + 1))
    path.write_bytes(length.to_bytes(8, "little") + content[8:])


def _indexed(draw: Draw, folder: Path) -> None:
    """The index damaged; a checkpoint of one file gets one."""
    path = folder / _INDEX
    names = {name: file.name for file in folder.glob("model*.safetensors") for name in load_file(file)}
    index: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"metadata": {}, "weight_map": names}
    name = draw.choice(sorted(names))
    files = ("../a/model.safetensors", "/etc/passwd", "nothing.safetensors", "", "config.json", 3, None, "x\0y")
    change = draw.choice(
        (
            {"metadata": draw.choice(VALUES)},
            {"weight_map": draw.choice(VALUES)},
            {"weight_map": {**index["weight_map"], name: draw.choice(files)}},
            {"weight_map": {**index["weight_map"], f"{name}.more": index["weight_map"][name]}},
            {"weight_map": {k: v for k, v in index["weight_map"].items() if k != name}},
        )
    )
    path.write_text(json.dumps({**index, **change}))


def _edited(change: Callable[[Draw, dict[str, Tensor], str], object]) -> Callable[[Draw, Path], None]:
    """A shard saved again with its tensors changed; the name of one of them is drawn."""

    def apply(draw: Draw, folder: Path) -> None:
        path = _shard(draw, folder)
        tensors = load_file(path)
        change(draw, tensors, draw.choice(sorted(n for n, x in tensors.items() if x.numel())))
        save_file({name: x.clone().contiguous() for name, x in tensors.items()}, path, {"format": "pt"})
        _follow(folder, path.name, set(tensors))

    return apply


def _follow(folder: Path, file: str, names: set[str]) -> None:
    """The index of a sharded checkpoint agrees with the shard again."""
    path = folder / _INDEX
    if path.exists():
        index = json.loads(path.read_text())
        kept = {name: f for name, f in index["weight_map"].items() if f != file}
        path.write_text(json.dumps({**index, "weight_map": kept | dict.fromkeys(sorted(names), file)}))


_NUMBERS = (float("nan"), float("inf"), -float("inf"), 0.0, 1e12, 1e-12, 1e20, -1e20, 1e38, 1e-38, 1e-45, 3e-39)


def _one_value(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    tensors[name].view(-1)[draw.randrange(tensors[name].numel())] = draw.choice(_NUMBERS)


def _filled(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    tensors[name].fill_(draw.choice(_NUMBERS))


def _scaled(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    tensors[name].mul_(draw.choice((0.0, -1.0, 1e12, 1e-12, 1e20, 1e-20, 1e-38, 1e30)))


def _row(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    """One row or column of another size."""
    x = tensors[name]
    axis = draw.randrange(x.ndim) if x.ndim else 0
    rows = x.movedim(axis, 0) if x.ndim else x.view(1)
    rows[draw.randrange(len(rows))] *= draw.choice((0.0, 1e12, 1e-12, 1e20, -1.0))


def _rows_apart(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    """Rows over many orders of magnitude."""
    x = tensors[name]
    if x.ndim:
        sizes = torch.logspace(-12, 12, len(x), dtype=torch.float64)
        x.mul_(
            sizes[torch.randperm(len(x), generator=torch.Generator().manual_seed(draw.randrange(99)))].reshape(
                -1, *(1,) * (x.ndim - 1)
            )
        )


def _twice(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    """Equal halves along an axis: heads, units or inputs that are duplicates."""
    x = tensors[name]
    if x.ndim and (axis := draw.randrange(x.ndim)) is not None and x.shape[axis] > 1:
        half = x.shape[axis] // 2
        x.narrow(axis, half, half).copy_(x.narrow(axis, 0, half).clone())


def _rank_one(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    x = tensors[name]
    if x.ndim == 2:
        x.copy_(x[:, :1] @ x[:1])


def _typed(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    kinds = (torch.int64, torch.int8, torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float64)
    kind = draw.choice((*kinds, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64))
    for chosen in draw.choice(((name,), tuple(tensors))):
        tensors[chosen] = tensors[chosen].to(kind)


def _renamed(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    new = draw.choice(
        ("x", "", "a\nb", "é\x1b[2J", "../up", name.upper(), f"module.{name}", "x" * 3000, "__metadata__x")
    )
    tensors[new] = tensors.pop(name)


def _prefixed(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    """All names with another beginning."""
    old, new = draw.choice((("", "model."), ("", "transformer."), ("", "bert."), ("model.", ""), ("transformer.", "")))
    for each in list(tensors):
        if each.startswith(old):
            tensors[new + each.removeprefix(old)] = tensors.pop(each)


def _missing(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name]


def _more(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    """One more tensor: a stray one, one of a module that is there, or one of a layer that isn't."""
    stem = name.rsplit(".", 1)[0]
    new = (
        f"{stem}.more",
        f"{stem}.bias",
        f"{stem}.lora_A.weight",
        "extra",
        name.replace(".0.", ".7."),
        f"{name}.scale",
    )
    tensors[draw.choice(new)] = tensors[name].clone()


def _misshapen(draw: Draw, tensors: dict[str, Tensor], name: str) -> None:
    x = tensors[name]
    tensors[name] = draw.choice((x.mT if x.ndim > 1 else x[:-1], x.reshape(-1), x.unsqueeze(0), x[:0], x[..., :-1]))


_HEADERS = (_entry, _offsets, _shape, _type, _metadata, _dropped)
_VALUES = (_one_value, _filled, _scaled, _row, _rows_apart, _twice, _rank_one)
_NAMES = (_renamed, _prefixed, _missing, _more, _misshapen)


def replaced(draw: Draw, folder: Path) -> None:
    """A shard becomes another file of the same tensors, as a download or a training run that saves again does."""
    path = _shard(draw, folder)
    new = path.with_name("new")
    save_file(
        {name: x + 1 if x.is_floating_point() else x for name, x in load_file(path).items()}, new, {"format": "pt"}
    )
    new.replace(path)


def overwritten(draw: Draw, folder: Path) -> None:
    """The same in place."""
    path = _shard(draw, folder)
    content = bytearray(path.read_bytes())
    content[-64:] = bytes(64)
    with path.open("r+b") as file:
        file.write(content)


WEIGHTS = (
    *(Mutation("header", said(change), "checkpoint", _header(change)) for change in _HEADERS),
    Mutation("header", "length", "checkpoint", _length),
    Mutation("index", "index", "checkpoint", _indexed),
    *(Mutation("values", said(change), "checkpoint", _edited(change)) for change in _VALUES),
    Mutation("types", "typed", "checkpoint", _edited(_typed)),
    *(Mutation("names", said(change), "checkpoint", _edited(change)) for change in _NAMES),
    *(Mutation("replaced", said(change), "checkpoint", change, during=True) for change in (replaced, overwritten)),
)
