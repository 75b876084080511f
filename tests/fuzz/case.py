"""One case: inputs, a command, damage; what came of it, and whether that keeps the promises."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isobasin.beside import ALIGNMENT

from . import bounds, oracle, subjects
from .commands import ALL, CHECKPOINTS, Command
from .configs import CONFIGS
from .damage import FOLDERS
from .mutation import Draw, Mutation
from .others import NUMBERS, OTHERS
from .subjects import Subject
from .weights import WEIGHTS

NUMBER = Mutation("numbers", "number", "line", lambda draw, path: None)
MUTATIONS = (*CONFIGS, *WEIGHTS, *FOLDERS, *OTHERS, NUMBER)
KINDS = tuple(dict.fromkeys(mutation.kind for mutation in MUTATIONS))
_LONGEST_LINE = 10_000


@dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
        seed: Of all cases.
        index: Of this one: both together say all of it.
        subject: What the checkpoints are.
        command: What is called.
        damage: Ways to damage inputs, each with the name of the input.
    """

    seed: int
    index: int
    subject: Subject
    command: Command
    damage: tuple[tuple[Mutation, str], ...]

    @property
    def kind(self) -> str:
        """What the summary counts it under."""
        return self.damage[0][0].kind

    def __str__(self) -> str:
        damage = " and ".join(f"{mutation} of {target}" for mutation, target in self.damage)
        return f"{self.seed}/{self.index}: {self.command.line} ({self.subject.name}; {damage})"


def draw(seed: int, index: int, kinds: Sequence[str] = KINDS) -> Case:
    """The case of a number: kinds of damage equally often, and sometimes two at once."""
    chance = random.Random(f"{seed}/{index}")
    first = _mutation(chance, kinds)
    fits = [(subject, command) for subject, command in ALL if _targets(first, command)]
    subject, command = chance.choice(fits)
    damage = [(first, chance.choice(_targets(first, command)))]
    if chance.random() < 0.15 and not first.during:
        second = _mutation(chance, kinds)
        targets = [] if second.during else _targets(second, command)
        damage += [(second, chance.choice(targets))] if targets else []
    return Case(seed, index, subject, command, tuple(damage))


def _mutation(chance: Draw, kinds: Sequence[str]) -> Mutation:
    kind = chance.choice(kinds)
    return chance.choice([mutation for mutation in MUTATIONS if mutation.kind == kind])


def _targets(mutation: Mutation, command: Command) -> list[str]:
    """The inputs of a command that a mutation can damage."""
    if mutation.target == "line":
        return ["line"] if _numbers(command.line.split()) else []
    wanted = CHECKPOINTS if mutation.target == "checkpoint" else (mutation.target,)
    return [name for name in command.inputs if name in wanted]


def _numbers(words: Sequence[str]) -> list[int]:
    """Where numbers stand in a command line."""
    return [at for at, word in enumerate(words) if word.replace(".", "").isdigit()]


def run(case: Case, home: Path, keep: Path | None = None) -> tuple[bounds.Run, str]:
    """Run a case.

    Args:
        case: The case.
        home: Where undamaged inputs are, and are made as they are needed.
        keep: Where a case that breaks a promise is kept; None to drop it.

    Returns:
        What the program did, and which promise it broke: empty if none.
    """
    prepare(case.subject, home)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _temporary(Path(folder)):
        place = Path(folder)
        inputs = _copied(case, home, place / "inputs")
        words = case.command.line.split()
        if "records" in inputs:  # they are of a run on these very paths
            _made(_filled(words, inputs, place))
        for number, (mutation, target) in enumerate(case.damage):
            chance = random.Random(f"{case.seed}/{case.index}/{number}")
            if mutation is NUMBER:
                words[chance.choice(_numbers(words))] = chance.choice(NUMBERS)
            elif not mutation.during and not _endless(place / "inputs"):
                # What fits no checkpoint of this form, or no longer after other damage, leaves it as it is.
                with contextlib.suppress(Exception):
                    mutation.apply(chance, inputs[target])
        return _judged(case, home, place, words, inputs, keep)


def _judged(
    case: Case, home: Path, place: Path, words: list[str], inputs: dict[str, Path], keep: Path | None
) -> tuple[bounds.Run, str]:
    out = place / "outputs" / "out"
    out.parent.mkdir()
    arguments = _filled(words, inputs, out)
    if keep is not None:
        shutil.copytree(place / "inputs", place / "kept", symlinks=True, copy_function=_copy_as_it_is)
    before = _snapshot(place / "inputs", but=inputs.get("records"))
    watching = bounds.trespassing(place / "inputs", place / "outside")
    with bounds.released(_fifo(place / "inputs")) as waited, watching as found, _during(case, inputs) as made:
        done = bounds.run(arguments)
    problem = next(iter(found + waited), "") or _problem(case, done, out, home, inputs, made)
    if not problem and not made and _snapshot(place / "inputs", but=inputs.get("records")) != before:
        problem = "an input was changed"
    # torch makes one folder there by itself, once.
    left = sorted(path.name for path in (place / "tmp").iterdir() if not path.name.startswith("torchinductor"))
    if not problem and left:
        problem = f"left in the temporary directory: {', '.join(left)}"
    if problem and keep is not None:
        _keep(case, arguments, done, problem, place, keep)
    return done, problem


def _fifo(folder: Path) -> Path | None:
    """A FIFO in a folder."""
    return next((path for path in folder.rglob("*") if stat.S_ISFIFO(path.lstat().st_mode)), None)


def _endless(folder: Path) -> bool:
    """Whether there is a FIFO or a device in a folder: who damages a second time would read there for ever."""
    return _fifo(folder) is not None or any(path.is_char_device() for path in folder.rglob("*"))


def _filled(words: Sequence[str], inputs: Mapping[str, Path], out: Path) -> list[str]:
    """A command line with the places of its inputs."""
    return [word.format(**inputs, out=out) if "{" in word else word for word in words]


@contextlib.contextmanager
def _during(case: Case, inputs: Mapping[str, Path]):
    """Whatever is damaged while the command runs; the list has an entry once it was."""
    made: list[bool] = []
    mutation, target = case.damage[0]
    if not mutation.during:
        yield made
        return
    chance = random.Random(f"{case.seed}/{case.index}/during")

    def change() -> None:
        made.append(True)
        mutation.apply(chance, inputs[target])

    with bounds.opening(inputs[target], chance.randint(2, 12), change):
        yield made


def _problem(
    case: Case, done: bounds.Run, out: Path, home: Path, inputs: Mapping[str, Path], made: Sequence[bool]
) -> str:
    """The first promise that was broken; empty if none was."""
    if done.raised:
        return f"ended by {done.raised}"
    if done.code not in (0, 1, 2):
        return f"exit code {done.code}: {done.err.strip()[-400:]}"
    if done.code == 2 and (problem := _not_a_line(done.err)):
        return problem
    if done.grown > bounds.MEMORY_BYTES / 2:
        return f"took {done.grown / 2**30:.1f} GB more"
    if case.command.writes and (problem := _half_written(done, out)):
        return problem
    pristine = home / case.subject.name / "a"
    if done.code == 0 and case.command.moved:
        return _moved_wrongly(case, out, home, inputs[case.command.moved], pristine, made)
    if done.code == 0 and case.command.judges and not made:
        one, other = (inputs[name] for name in case.command.judges)
        said = oracle.unlike(case.subject, one, other, pristine)
        return said and f"said to be equal, but {said}"
    return ""


def _moved_wrongly(case: Case, out: Path, home: Path, moved: Path, pristine: Path, made: Sequence[bool]) -> str:
    """How OUT differs from what was moved; where that was replaced meanwhile, from what it was and from what it is."""
    before = next(path for path in _sources(case, home, moved.name) if path.exists())
    said = [oracle.unlike(case.subject, folder, out, pristine) for folder in ((moved, before) if made else (moved,))]
    return f"moved, but {said[0]}" if all(said) else ""


def _not_a_line(text: str) -> str:
    """What is wrong with a message; warnings and progress may come before it."""
    found = [line for line in text.splitlines() if not line.startswith(("warning: ", "progress: "))]
    if len(found) != 1 or not found[0].startswith("error: "):
        return f"{len(found)} lines on stderr: {text[-400:]!r}"
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co") for letter in found[0]):
        return f"control characters on stderr: {found[0][-400:]!r}"
    return f"a line of {len(found[0])} characters on stderr" if len(found[0]) > _LONGEST_LINE else ""


def _half_written(done: bounds.Run, out: Path) -> str:
    """What is wrong with the folder of what was to be written."""
    others = sorted(path.name for path in out.parent.iterdir() if path.name != out.name)
    if others:
        return f"left beside OUT: {', '.join(others)}"
    if done.code != 0:
        return f"OUT is there after exit code {done.code}" if os.path.lexists(out) else ""
    return oracle.incomplete(out)


def _copied(case: Case, home: Path, place: Path) -> dict[str, Path]:
    """Copies of the inputs that a command names, by name."""
    place.mkdir()
    found: dict[str, Path] = {}
    for name in case.command.inputs:
        source = next((path for path in _sources(case, home, name) if path.exists()), None)
        found[name] = place / (name if source is None or source.is_dir() else source.name)
        if source is None:
            continue
        (shutil.copytree if source.is_dir() else shutil.copy)(source, found[name])
    if "adapter" in found:
        subjects.join(found["adapter"], found["b"])
    return found


_FILES = {
    "text": "text.txt",
    "characters": "characters.json",
    "table": "table.jsonl",
    "csv": "table.csv",
    "arrays": "arrays.npz",
    "study": "study.yaml",
    "alignment": ALIGNMENT,
    "fingerprint": "fingerprint.safetensors",
    "copy": "a",
}


def _sources(case: Case, home: Path, name: str) -> list[Path]:
    return [folder / _FILES.get(name, name) for folder in (home / case.subject.name, home / "other")]


def prepare(subject: Subject, home: Path) -> None:
    """Write undamaged inputs that aren't there yet, with what commands themselves make of them."""
    folder, other = home / subject.name, home / "other"
    if not other.exists():
        subjects.make_other(other)
    if folder.exists():
        return
    subjects.make(subject, folder)
    _made(["scramble", str(folder / "a"), "--seed", "7", "-o", str(folder / "scrambled")])
    _made(["align", str(folder / "a"), str(folder / "b"), "-o", str(folder / "aligned")])
    (folder / "aligned" / ALIGNMENT).rename(folder / ALIGNMENT)
    shutil.rmtree(folder / "aligned")
    if subject.data == "text":
        subjects.make_adapter(subject, folder)
    _made(["fingerprint", str(folder / "b"), "-o", str(folder / _FILES["fingerprint"])])


def _made(arguments: list[str]) -> None:
    done = bounds.run(arguments)
    if done.code != 0:
        raise RuntimeError(f"isobasin {' '.join(arguments)}: {done.err or done.raised}")


def _snapshot(folder: Path, but: Path | None = None) -> dict[str, tuple[object, ...]]:
    """What a folder holds; of a file its times and its content, of a link where it leads."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        if but is not None and path.is_relative_to(but):
            continue
        info = path.lstat()
        content: object = None
        if stat.S_ISREG(info.st_mode) and os.access(path, os.R_OK):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        times = None if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns
        found[str(path.relative_to(folder))] = (info.st_mode, content, times)
    return found


@contextlib.contextmanager
def _temporary(place: Path):
    """A temporary directory of its own for the program, so that what it leaves there is seen."""
    (place / "tmp").mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(place / "tmp")
    try:
        yield
    finally:
        tempfile.tempdir = before


def _copy_as_it_is(source: str, target: str) -> None:
    if stat.S_ISFIFO(os.lstat(source).st_mode):
        os.mkfifo(target)
    else:
        shutil.copy2(source, target)


def _keep(case: Case, arguments: list[str], done: bounds.Run, problem: str, place: Path, keep: Path) -> None:
    """Keep the damaged inputs with what was said of them."""
    folder = keep / f"{case.seed}-{case.index}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with contextlib.suppress(shutil.Error, OSError):
        shutil.copytree(place / "kept", folder / "inputs", symlinks=True, copy_function=_copy_as_it_is)
    said = {
        "case": str(case),
        "seed": case.seed,
        "index": case.index,
        "problem": problem,
        "code": done.code,
        "inputs": str(place / "inputs"),
        "outputs": str(place / "outputs"),
        "arguments": arguments,
        "stderr": done.err[-4000:],
    }
    (folder / "case.json").write_text(json.dumps(said, indent=2))
