"""A refinement that is stopped anywhere leaves a whole output or none, and nothing of other people's is touched."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.beside import REFERENCE
from isobasin.choices import TaskKind
from isobasin.errors import AlignmentError, IsobasinError, OutputError
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import refine
from isobasin.refinement.unfinished import Unfinished
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts
from isobasin.verbs.settings import Running

MODEL = tiny("llama", "unfinished", config={"tie_word_embeddings": False})
QUIET = Running(verify=False, progress=lambda *_: None)
HOW = Refining(steps=4, batch_size=4, every=2, warmup=1, held_out=0.25)


def sentences() -> TensorExamples:
    tokens = 3 + (torch.arange(16)[:, None] + torch.arange(8)) % 40
    facts = DataFacts("made up", None, "causal-lm", 16, "none")
    return TensorExamples(TaskKind.causal_lm, facts, {"input_ids": tokens, "labels": tokens})


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ends")
    a, b = MODEL.save(folder / "a", dtype=torch.float32), folder / "b"
    isobasin.scramble(a, b, seed=1, condition=1.5, scope="model", verify=False)
    return a, b, isobasin.align(a, b, scope="model", verify=False)


def refined(ends, out, **options):
    a, b, start = ends
    return refine(a, b, sentences(), out, **{"how": HOW, "running": QUIET, "start": start, **options})


def interrupted(ends, out):
    """Leave the state of step 2."""

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "refining" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refined(ends, out, running=replace(QUIET, progress=interrupt))


def in_child(work, stop=None) -> tuple[bool, int]:
    """Do it in a process of its own, killed at so many events; whether it came to its end, and how many there were."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
                count += 1
                if count == stop:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()
        os.write(send, str(count).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as file:
        found = file.read()
    return os.waitpid(child, 0)[1] == 0, int(found or 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_killed_anywhere_it_leaves_all_or_nothing_and_goes_on(ends, tmp_path):
    """By SIGKILL at a file's opening, renaming or removal: no clean-up runs, and the next one goes on."""
    ended, events = in_child(lambda: refined(ends, tmp_path / "whole"))
    whole = contents(tmp_path / "whole")
    assert ended
    assert f"{REFERENCE}/model.safetensors" in whole
    seen = set()
    for number, stop in enumerate(sorted({*range(events // 2, events - 10, 50), *range(events - 10, events + 1, 3)})):
        out = tmp_path / f"out{number}"
        assert not in_child(lambda out=out: refined(ends, out), stop)[0]
        state = out.with_name(f".{out.name}.unfinished")
        seen.add((out.exists(), state.exists()))
        if out.exists():
            assert contents(out).keys() == whole.keys()
        elif number % 3 == 0:
            assert in_child(lambda out=out: refined(ends, out))[0]
            again = contents(out)
            assert {name: again[name] for name in again if "safetensors" in name} == {
                name: whole[name] for name in whole if "safetensors" in name
            }
    assert seen >= {(False, True), (True, True)}


@pytest.mark.parametrize("fails", ["isobasin.checkpoints.writer._write_config", "isobasin.checkpoints.output.install"])
@pytest.mark.parametrize("time", [1, 2])
def test_a_failure_in_the_middle_of_writing(fails, time, ends, tmp_path, monkeypatch):
    """The disk fills while the reference, or the model around it, is written: nothing is left but the state."""
    module, _, name = fails.rpartition(".")
    real, calls = getattr(sys.modules[module], name), []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == time:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(fails, failing)
    with pytest.raises(OutputError, match="no space left"):
        refined(ends, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    monkeypatch.undo()
    refined(ends, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / REFERENCE / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["file", "empty file", "folder", "link", "dangling link", "pipe"])
def test_what_is_not_ours_stays(kind, ends, tmp_path):
    """Under both names that a refinement used to take for itself."""
    place, other = tmp_path / ".out.unfinished", tmp_path / "theirs"
    (tmp_path / ".out.reference").write_text("mine")
    if "file" in kind:
        place.write_text("mine" if kind == "file" else "")
    elif kind == "folder":
        place.mkdir()
        (place / "mine").write_text("mine")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(other)
        if kind == "link":
            interrupted(ends, tmp_path / "theirs")
            (tmp_path / ".theirs.unfinished").rename(other)
    before = place.lstat()
    with pytest.raises(OutputError, match=r"\.out\.unfinished: isn't ours"):
        refined(ends, tmp_path / "out")
    assert (place.lstat().st_ino, place.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert other.exists() == (kind == "link")
    assert (tmp_path / ".out.reference").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_what_takes_the_place_meanwhile_stays(ends, tmp_path):
    """A link that appears while the descent goes on is neither followed nor replaced, and ends it."""
    place, other = tmp_path / ".out.unfinished", tmp_path / "theirs"

    def swap(what: str, done: int, total: int) -> None:
        if what == "refining" and done == 1:
            place.unlink()
            place.symlink_to(other)

    with pytest.raises(OutputError, match="isn't ours"):
        refined(ends, tmp_path / "out", running=replace(QUIET, progress=swap))
    assert place.is_symlink()
    assert not other.exists()


def test_the_state_is_for_its_owner_only(ends, tmp_path):
    interrupted(ends, tmp_path / "out")
    assert (tmp_path / ".out.unfinished").stat().st_mode & 0o777 == 0o600


def test_damage_of_the_state_is_one_line(ends, tmp_path):
    """Every byte counts: shortened anywhere, or with a bit changed."""
    interrupted(ends, tmp_path / "out")
    place = tmp_path / ".out.unfinished"
    content = place.read_bytes()
    for size in (60, 90, 500, len(content) - 1):
        place.write_bytes(content[:size])
        with pytest.raises(AlignmentError, match=r"\.out\.unfinished: .* damaged: delete it to begin anew"):
            Unfinished(tmp_path / "out").load()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    place.write_bytes(changed)
    with pytest.raises(AlignmentError, match="damaged"):
        refined(ends, tmp_path / "out")
    assert place.read_bytes() == changed


def forms(state):
    """States of another form."""
    yield None
    yield []
    for name in state:
        yield {key: value for key, value in state.items() if key != name}
        yield state | {name: None}
        yield state | {name: {"a": [1]}}
    for name in state["state"]:
        yield state | {"state": {**state["state"], name: "x"}}
    yield state | {"coordinates": [x.flatten()[:1] for x in state["coordinates"]]}
    yield state | {"coordinates": state["coordinates"][1:]}
    yield state | {"state": {**state["state"], "kept": []}}
    yield state | {"state": {**state["state"], "history": [(0, 1.0, 2)]}}
    other = copy.deepcopy(state)
    other["optimisers"][0]["state"][0]["exp_avg"] = torch.zeros(1, dtype=torch.float64)
    yield other
    yield state | {"generator": torch.zeros(3, dtype=torch.uint8)}


def test_a_state_of_another_form_is_one_line(ends, tmp_path):
    """Whole, and with the right key, as if a later version had written it."""
    from isobasin.model import open_model
    from isobasin.refinement.descent import Descent
    from isobasin.refinement.line import ModuleLine

    interrupted(ends, tmp_path / "out")
    content = (tmp_path / ".out.unfinished").read_bytes()
    stored = torch.load(io.BytesIO(content[content.index(b"\n") + 33 :]), weights_only=True)
    a, b, start = ends
    with open_model(a) as one, open_model(b) as other:
        line = ModuleLine.between(one, other, start, TaskKind.causal_lm, moves=(True, True))
        descent = Descent(line, sentences(), HOW)
    descent.restore(stored["state"])
    for form in forms(stored["state"]):
        with pytest.raises(AlignmentError, match="delete the file"):
            descent.restore(form)
    for content in (stored["state"], [1], {"state": {}}, "x"):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        mark = b"isobasin refine: where an interrupted descent stands\n"
        data = mark + hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()
        (tmp_path / ".out.unfinished").write_bytes(data)
        with pytest.raises(IsobasinError, match="damaged"):
            Unfinished(tmp_path / "out").load()


def test_the_state_of_other_weights_is_not_taken(ends, tmp_path):
    """The same names, shapes and recipe, and another model in the folder."""
    interrupted(ends, tmp_path / "out")
    seen: list[int] = []
    told = replace(QUIET, progress=lambda what, done, total: seen.append(done) if what == "refining" else None)
    other = MODEL.save(tmp_path / "other", seed=5, dtype=torch.float32)
    refined((ends[0], other, ends[2]), tmp_path / "out", running=told)
    assert seen[0] == 1
