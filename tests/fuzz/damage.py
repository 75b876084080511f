"""Damage to files as such, whatever is in them, and to the folders that hold them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from .mutation import Draw, Mutation


def truncated(draw: Draw, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content) + 1)])


def emptied(draw: Draw, path: Path) -> None:
    path.write_bytes(b"")


def lengthened(draw: Draw, path: Path) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.choice((1, 8, 1000))))


def flipped(draw: Draw, path: Path) -> None:
    """A few bits, near the beginning half of the time: that is where headers are."""
    content = bytearray(path.read_bytes() or b"\0")
    for _ in range(draw.choice((1, 3, 30))):
        at = draw.randrange(len(content) if draw.random() < 0.5 else min(len(content), 400))
        content[at] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def noise(draw: Draw, path: Path) -> None:
    path.write_bytes(draw.randbytes(draw.choice((1, 8, 5000))))


def other_encoding(draw: Draw, path: Path) -> None:
    text = path.read_bytes().decode("latin-1")
    path.write_bytes(text.encode(draw.choice(("utf-16", "utf-8-sig", "utf-32"))))


def missing(draw: Draw, path: Path) -> None:
    path.unlink()


def a_folder(draw: Draw, path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_fifo(draw: Draw, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_device(draw: Draw, path: Path) -> None:
    path.unlink()
    path.symlink_to(draw.choice(("/dev/zero", "/dev/null", "/dev/random", "/dev/tty")))


def a_link_outside(draw: Draw, path: Path) -> None:
    """The same content, at a place that is none of the folder's; a file that is named by itself may lie anywhere."""
    home = next(parent for parent in path.parents if parent.name == "inputs").parent
    outside = home / ("elsewhere" if path.parent.name == "inputs" else "outside") / path.name
    outside.parent.mkdir(exist_ok=True)
    path.rename(outside)
    path.symlink_to(draw.choice((str(outside), os.path.relpath(outside, path.parent))))


def a_link_to_nothing(draw: Draw, path: Path) -> None:
    path.unlink()
    path.symlink_to(draw.choice(("nowhere", path.name, "/nowhere/at/all")))


def unreadable(draw: Draw, path: Path) -> None:
    path.chmod(0)


FILES: tuple[Callable[[Draw, Path], None], ...] = (
    *(truncated, emptied, lengthened, flipped, noise, other_encoding, missing, a_folder, a_fifo, a_device),
    *(a_link_outside, a_link_to_nothing),
    # Root reads everything.
    *((unreadable,) if os.geteuid() else ()),
)


def said(function: Callable[[Draw, Path], None]) -> str:
    """The name of a function as words."""
    return function.__name__.replace("_", " ").strip()


def of_file(kind: str, target: str) -> list[Mutation]:
    """All damage to an input that is one file."""
    return [Mutation(kind, said(damage), target, damage) for damage in FILES]


def _some_file(folder: Path, draw: Draw) -> Path:
    return draw.choice(sorted(path for path in folder.iterdir() if path.is_file()))


def in_folder(damage: Callable[[Draw, Path], None]) -> Callable[[Draw, Path], None]:
    return lambda draw, folder: damage(draw, _some_file(folder, draw))


def _unlinked_folder(draw: Draw, folder: Path) -> None:
    """The folder itself is a link."""
    there = folder.with_name(folder.name + "-there")
    folder.rename(there)
    folder.symlink_to(there)


def _beside(name: str, make: Callable[[Path], object]) -> Callable[[Draw, Path], None]:
    def add(draw: Draw, folder: Path) -> None:
        path = folder / name
        if not os.path.lexists(path):
            make(path)

    return add


def _shard_of_our_name(draw: Draw, folder: Path) -> None:
    """A shard that has the name of what is written beside moved weights."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shard = sorted(folder.glob("*.safetensors"))[0]
        index.write_text(index.read_text().replace(shard.name, "alignment.safetensors"))
        shard.rename(folder / "alignment.safetensors")


_STRAY: Iterable[tuple[str, str, Callable[[Path], object]]] = (
    ("stray FIFO", "notes.json", os.mkfifo),
    ("stray socket name", "a\nb\x1b[31m.json", lambda path: path.write_text("{}")),
    ("stray markup", "<script>.txt", lambda path: path.write_text("x")),
    ("stray folder", "model", lambda path: path.mkdir()),
    ("stray link to /etc", "tokenizer.model", lambda path: path.symlink_to("/etc/hostname")),
    ("stray loop", "vocab.json", lambda path: path.symlink_to(path.name)),
    ("adapter", "adapter_config.json", lambda path: path.write_text("{}")),
    ("pickle beside", "pytorch_model.bin", lambda path: path.write_bytes(b"\x80\x04N.")),
    ("generation", "generation_config.json", lambda path: path.write_text('{"max_length": "x", "top_k": -1}')),
    ("tokenizer", "tokenizer_config.json", lambda path: path.write_text('{"auto_map": null, "tokenizer_class": 3}')),
    ("tokenizer file", "tokenizer.json", lambda path: path.write_text('{"model": {"vocab": {"a": 4000000000}}}')),
    ("modules", "modules.json", lambda path: path.write_text('[{"path": "../.."}, {"path": 3}]')),
    ("code", "modeling_x.py", lambda path: path.write_text("raise SystemExit(99)")),
)

FOLDERS = (
    *(Mutation("files", said(damage), "checkpoint", in_folder(damage)) for damage in FILES),
    *(Mutation("files", name, "checkpoint", _beside(file, make)) for name, file, make in _STRAY),
    Mutation("files", "folder is a link", "checkpoint", _unlinked_folder),
    Mutation("files", "shard named alignment", "checkpoint", _shard_of_our_name),
)
