"""The wheel in an environment without extras: every command either runs or names the extra that it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from typer.main import get_command

from isobasin.architectures.examples import tiny
from isobasin.cli.program import app

from .conftest import ROOT, Built

pytestmark = pytest.mark.long

DATA = "--data {home}/texts.txt --tokenizer {home}/characters.json --length 8"
RUNS = (
    "align {home}/a {home}/b -o {out}",
    "apply {home}/moved {home}/b -o {out}",
    "canonicalize {home}/a -o {out}",
    "certify gpt2",
    "check {home}/a {home}/b",
    "compare {home}/a {home}/b",
    "diagnose {home}/a {home}/b",
    "diagnose {home}/a {home}/b",
    "equivalent {home}/a {home}/b",
    "fingerprint {home}/a -o {home}/a.json",
    "scan {home}/a {home}/print.json",
    "gauge {home}/a --for rtn3 --steps 2 --tries 1 -o {out}",
    "interpolate {home}/a {home}/b -o {out}",
    "merge {home}/a {home}/b --force-unrelated -o {out}",
    "run {home}/moved -o {out}",
    "scan {home}/b {home}/a.json",
    "scramble {home}/a -o {out}",
    "symmetry {home}/a",
    "transport {home}/a {home}/b {home}/a -o {out}",
    "verify {home}/a {home}/b",
)
"""Lines of commands that need nothing else; an exit code of 1 is a finding."""

NEEDS = {
    f"align {{home}}/a {{home}}/b {DATA} --objective activations -o {{out}}": "barrier",
    "align {home}/a {home}/b --engine ray -o {out}": "ray",
    f"barrier {{home}}/a {{home}}/b {DATA} -o {{out}}": "barrier",
    f"merge {{home}}/a {{home}}/b {DATA} -o {{out}}": "barrier",
    f"refine {{home}}/a {{home}}/b {DATA} -o {{out}}": "barrier",
    f"transport {{home}}/a {{home}}/b {{home}}/a {DATA} -o {{out}}": "barrier",
    "demo -o {out}": "demo",
    "experiment run digits --smoke -o {out}": "experiment",
    "experiment report {home}": "experiment",
}
"""Lines of what needs an extra, and which."""


def base_distributions() -> list[Distribution]:
    """What an installation without extras brings, of the packages of this environment."""
    found: dict[str, Distribution] = {}
    wanted = [Requirement(line) for line in distribution("isobasin").requires or ()]
    while wanted:
        requirement = wanted.pop()
        extras = {"", *requirement.extras}
        if requirement.name.lower() in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        one = found[requirement.name.lower()] = distribution(requirement.name)
        for needed in map(Requirement, one.requires or ()):
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                wanted.append(needed)
    return list(found.values())


@pytest.fixture(scope="module")
def python(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel in it, and links to its needs for lack of a network."""
    home = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    found = home / "bin" / "python"
    place = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    for one in base_distributions():
        for name in {file.parts[0] for file in one.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (place / name).exists():
                (place / name).symlink_to(Path(str(one.locate_file(name))).resolve())
    pip = [sys.executable, "-m", "pip", "--python", str(found), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(built.wheel)], check=True)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and what looks like data."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate("ab"):
        tiny("gpt2").save(folder / name, seed, dtype=torch.float32)
    (folder / "texts.txt").write_text("some text\n" * 20)
    (folder / "characters.json").write_text(json.dumps({chr(code): code - 96 for code in range(97, 123)} | {" ": 0}))
    return folder


def test_every_command_is_tried():
    words = {line.split()[0] for line in (*RUNS, *NEEDS)}
    assert words == set(get_command(app).list_commands(None))  # pyright: ignore


def test_every_command_runs_or_names_its_extra(python: Path, home: Path, tmp_path: Path):
    first = "align {home}/a {home}/b --no-verify -o {home}/moved", "fingerprint {home}/b -o {home}/print.json"
    lines = [*first, *RUNS, *NEEDS, "symmetry --families", "experiment list"]
    given = [line.format(home=home, out=tmp_path / str(number)).split() for number, line in enumerate(lines)]
    run = subprocess.run(
        [str(python), "-I", str(Path(__file__).with_name("alone.py"))],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    for line, (code, said) in zip(lines, json.loads(run.stdout), strict=True):
        if line in NEEDS:
            assert (code, f'pip install "isobasin[{NEEDS[line]}]"' in said) == (2, True), f"{line}: {code}, {said}"
        else:
            assert code in (0, 1), f"{line}: {code}, {said}"


def test_it_is_the_wheel_and_nothing_else(python: Path, tmp_path: Path):
    program = "import isobasin, importlib.util as u; print(isobasin.__file__, u.find_spec('datasets'))"
    run = subprocess.run([str(python), "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    file, found = run.stdout.split()
    assert found == "None"
    assert not Path(file).is_relative_to(ROOT)
