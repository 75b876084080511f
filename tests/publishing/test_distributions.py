"""What would be published: small, complete, and with links that lead somewhere from a package index."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from email.message import Message
from email.parser import Parser
from zipfile import ZipFile

import pytest
import yaml

import isobasin

from .conftest import ROOT, Built

pytestmark = pytest.mark.long
LARGEST = 1_000_000
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def metadata(built: Built) -> Message:
    """What the wheel says of itself; its payload is the description."""
    with ZipFile(built.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_twine_accepts_both(built: Built):
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, built)], check=True)


def test_the_source_distribution_is_small_and_has_no_results(built: Built):
    with tarfile.open(built.sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert built.sdist.stat().st_size < LARGEST
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"} <= names
    assert not [name for name in names if name.startswith("results/") or name.endswith(".png")]


def test_the_wheel_has_every_file_of_the_package(built: Built):
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no git repository")
    with ZipFile(built.wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.removeprefix("src/") for name in tracked.stdout.split()} <= packed


def test_links_of_the_description_are_absolute(metadata: Message):
    links = LINK.findall(metadata.get_payload())
    assert len(links) > 10
    assert [link for link in links if not re.match(r"https?://|#", link)] == []
    readme = LINK.findall((ROOT / "README.md").read_text())
    local = [link.partition("#")[0] for link in readme if not re.match(r"https?://|#", link)]
    assert [path for path in local if not (ROOT / path).exists()] == []
    for path in local:
        assert any(link.partition("#")[0].endswith(f"/main/{path}") for link in links), path


def test_one_version_everywhere(metadata: Message):
    assert metadata["Version"] == isobasin.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == isobasin.__version__
    headings = re.findall(r"^## (?:\[)?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(heading for heading in headings if heading != "Unreleased") == isobasin.__version__
