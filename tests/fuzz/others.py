"""Damage to what commands read beside checkpoints, and to the numbers that they are given."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .damage import FILES, in_folder, of_file, said
from .mutation import VALUES, Draw, Mutation, deep, lines


def _moved(change: Callable[[Draw, dict[str, Any], dict[str, str]], object]) -> Callable[[Draw, Path], None]:
    """An alignment with its tensors or its description changed."""

    def apply(draw: Draw, path: Path) -> None:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(draw, tensors, metadata)
        save_file({name: x.clone().contiguous() for name, x in tensors.items()}, path, metadata)

    return apply


def _element(draw: Draw, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    x = tensors[draw.choice(sorted(tensors))]
    if x.numel():
        numbers = (
            (0, -1, 1, 2**40) if not x.is_floating_point() else (float("nan"), float("inf"), 0.0, 1e30, 1e-30, 2.0)
        )
        x.view(-1)[draw.randrange(x.numel())] = draw.choice(numbers)


def _whole(draw: Draw, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    name = draw.choice(sorted(tensors))
    x = tensors[name]
    choices = (
        x * 0,
        x[:0],
        x.unsqueeze(0),
        x.to(torch.int64),
        x.to(torch.float16),
        x.to(torch.float8_e4m3fn),
        x[..., :1],
    )
    tensors[name] = draw.choice(choices)


def _lost(draw: Draw, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    name = draw.choice(sorted(tensors))
    found = tensors.pop(name)
    if draw.random() < 0.5:
        tensors[draw.choice(("x", f"{name}.x", name.replace("0", "7", 1)))] = found


def _described(draw: Draw, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """Any value of the description, however deep it lies."""
    name = draw.choice(sorted(metadata))
    try:
        value = json.loads(metadata[name])
    except ValueError:
        value = metadata[name]
    metadata[name] = json.dumps(_changed(draw, value))
    if draw.random() < 0.2:
        metadata[name] = draw.choice(("", "x", "{", "[" * 10**5, "1" * 5000, "null"))


def _changed(draw: Draw, value: Any) -> Any:
    """The value with something in it replaced."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(sorted(value))
        rest = {key: x for key, x in value.items() if key != name}
        return rest if draw.random() < 0.1 else {**rest, name: _changed(draw, value[name])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], _changed(draw, value[at]), *value[at + 1 :]]
    return draw.choice((*VALUES, 1e30, 10**12))


def _factors(change: Callable[[Draw, dict[str, Any], dict[str, str]], object]) -> Callable[[Draw, Path], None]:
    """An adapter with its factors changed."""
    return lambda draw, folder: _moved(change)(draw, folder / "adapter_model.safetensors")


def _settings(draw: Draw, folder: Path) -> None:
    """An entry of an adapter's configuration replaced, or another one that peft knows."""
    path = folder / "adapter_config.json"
    found = json.loads(path.read_text())
    more = ("use_dora", "bias", "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save", "target_parameters")
    if draw.random() < 0.5:
        found[draw.choice((*more, *sorted(found)))] = draw.choice((*VALUES, {"c_attn": 3, "q_proj": 0, "(": 2}))
    else:
        found = _changed(draw, found)
    path.write_text(json.dumps(found))


def _letters(draw: Draw, path: Path) -> None:
    """A map of characters that is none."""
    known = json.loads(path.read_text())
    ids = (4 * 10**9, -1, 10**30, 0.5, "3", None, [1], 50, True)
    choices = (
        {**known, draw.choice(sorted(known)): draw.choice(ids)},
        {**known, draw.choice(("", "ab", "\0", "\ud800")): 1},
        draw.choice(VALUES),
        dict.fromkeys(known, 0),
        {},
    )
    path.write_text(json.dumps(draw.choice(choices)))


def _prose(draw: Draw, path: Path) -> None:
    texts = (
        b"",
        b" ",
        b"\n" * 100,
        b"a",
        b"\xff\xfe\0",
        b"\0" * 50,
        "é☃😀".encode() * 30,
        b"ab" * 30000,
        b"a b\r\n\x0c" * 40,
    )
    path.write_bytes(draw.choice(texts))


def _table(draw: Draw, path: Path) -> None:
    """Lines with values of other types, other columns, or that are no JSON."""
    found = lines(path)
    for at in draw.sample(range(len(found)), draw.choice((1, len(found)))):
        row = json.loads(found[at])
        name = draw.choice(sorted(row))
        new = (
            {**row, name: draw.choice(VALUES)},
            {k: v for k, v in row.items() if k != name},
            {**row, "more": 1},
            [1],
            3,
        )
        found[at] = json.dumps(draw.choice(new)) + "\n" if draw.random() < 0.9 else '{"text": \n'
    path.write_text("".join(found))


def _cells(draw: Draw, path: Path) -> None:
    """A table of comma-separated values with other columns, quotes that don't end, or formulas."""
    heads = ("text,text", "a,b", ",", "label", "text,label,label", "text;label", '"text', "text,label\0")
    rows = ('=cmd(),"1"', '"x', "a,b,c,d", ",", "é,1e400", "a,-1", "a," + "9" * 30, "")
    path.write_text(draw.choice(("text,label", *heads)) + "\n" + "\n".join(draw.choices(rows, k=5)))


def _arrays(draw: Draw, path: Path) -> None:
    """Arrays of other types, shapes and names."""
    images, labels = numpy.zeros((8, 8, 8, 3), numpy.uint8), numpy.arange(8) % 2
    odd: tuple[Any, ...] = (
        numpy.array([{"a": 1}, None], dtype=object),
        numpy.array(["x"] * 8),
        numpy.array(3),
        numpy.zeros((0, 8, 8, 3)),
        numpy.full((8, 8, 8, 3), numpy.nan),
        numpy.zeros((8, 8)),
        numpy.zeros((8, 8, 8, 5)),
        numpy.zeros((3, 8, 8, 3), numpy.complex64),
        numpy.full(8, 2**62),
        -numpy.ones(8, int),
        numpy.linspace(0, 1, 8),
        numpy.zeros((2, 2), dtype="datetime64[s]"),
        numpy.zeros(8, dtype=[("a", int)]),
    )
    arrays = {"image": images, "label": labels, draw.choice(("image", "label", "x", "../up", "")): draw.choice(odd)}
    if draw.random() < 0.3:
        del arrays[draw.choice(("image", "label"))]
    numpy.savez(path, **arrays)


def _promised(draw: Draw, path: Path) -> None:
    """An array whose header promises more than there is."""
    shape = draw.choice(("(1000000000000, 8)", "(-1, 8)", "(8,", "()", "(99999, 99999, 3)"))
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("image.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(40))
        file.writestr("label.npy", b"x")


def _picture(draw: Draw, folder: Path) -> None:
    """One picture damaged as a file, or of a size that fills the memory."""
    picture = draw.choice(sorted(folder.rglob("*.png")))
    if draw.random() < 0.7:
        draw.choice(FILES)(draw, picture)
        return
    content = bytearray(picture.read_bytes())
    content[16:24] = draw.choice((60000, 2**31 - 1, 0)).to_bytes(4, "big") * 2
    picture.write_bytes(content)


def _labels(draw: Draw, folder: Path) -> None:
    """Folders of labels that are odd."""
    first = sorted(folder.iterdir())[0]
    first.rename(folder / draw.choice(("a\nb", "=1+1", "\x1b[31m", "x" * 200, " ", "é")))
    (folder / "empty").mkdir()


_NUMBER_OF_SEEDS = "seeds: " + json.dumps(list(range(5000)))


def _study(draw: Draw, path: Path) -> None:
    """An entry of the configuration replaced, at any depth, or the file by what YAML can do."""
    import yaml

    texts = (
        *("", "3", "[]", "!!python/object/apply:os.system ['exit 99']", "a: &a [*a]", "[" * 3000, "\t", "a: b: c"),
        "a: &a [x, x]\n"
        + "".join(
            f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
        ),
        path.read_text().replace("seeds: [1, 2]", _NUMBER_OF_SEEDS),
        path.read_text().replace("points: 3", "points: 1000000000"),
    )
    if draw.random() < 0.3:
        path.write_text(draw.choice(texts))
    else:
        path.write_text(yaml.safe_dump(_changed(draw, yaml.safe_load(path.read_text()))))


def _records(draw: Draw, folder: Path) -> None:
    """A line of the records edited, doubled, torn or dropped."""
    path = folder / "records.jsonl"
    found = lines(path)
    at = draw.randrange(len(found))
    row = json.loads(found[at])
    choices = (
        [json.dumps(_changed(draw, row)) + "\n"],
        [],
        [found[at]] * 2,
        [found[at][: draw.randrange(len(found[at]))]],
        ["\n"],
        ["[" * 3000 + "\n"],
        [json.dumps(deep(3)) + "\n"],
    )
    path.write_text("".join([*found[:at], *draw.choice(choices), *found[at + 1 :]]))


OTHERS = (
    *of_file("alignment", "alignment"),
    *of_file("fingerprint", "fingerprint"),
    *(
        Mutation("alignment", said(change), "alignment", _moved(change))
        for change in (_element, _whole, _lost, _described)
    ),
    *(Mutation("adapter", said(damage), "adapter", in_folder(damage)) for damage in FILES),
    *(Mutation("adapter", said(change), "adapter", _factors(change)) for change in (_element, _whole, _lost)),
    *[Mutation("adapter", "settings", "adapter", _settings)] * 4,
    *of_file("data", "text"),
    *of_file("data", "characters"),
    *of_file("data", "table"),
    *of_file("data", "arrays"),
    *of_file("study", "study"),
    Mutation("data", "letters", "characters", _letters),
    Mutation("data", "prose", "text", _prose),
    Mutation("data", "rows", "table", _table),
    Mutation("data", "cells", "csv", _cells),
    Mutation("data", "arrays", "arrays", _arrays),
    Mutation("data", "promised", "arrays", _promised),
    Mutation("data", "picture", "pictures", _picture),
    Mutation("data", "labels", "pictures", _labels),
    Mutation("study", "entry", "study", _study),
    Mutation("records", "line", "records", _records),
)

NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "0",
    "-1",
    "1",
    "1e16",
    "1e23",
    "1e400",
    "-0.0",
    "",
    " ",
    "x",
    "0x10",
    "1_0",
    "١",
    "1e-400",
)
NUMBERS = (*NUMBERS, "99999999999999999999", "1000000000", "0.5", "--force", "null", "1,2", "0.5,0.5")
