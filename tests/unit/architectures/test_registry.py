"""The registry: what is in it, and what it refuses."""

from __future__ import annotations

import ast
from pathlib import Path
from pkgutil import iter_modules

import pytest

import isobasin
from isobasin.architectures import families as files
from isobasin.architectures.examples import EXAMPLES, USUAL
from isobasin.architectures.registry import families, family, register
from isobasin.errors import ArchitectureError


def test_every_file_is_found_under_its_own_name():
    names = [entry.model_type for entry in families()]
    assert sorted(name.replace("-", "_") for name in names) == sorted(m.name for m in iter_modules(files.__path__))
    assert names == sorted(names)
    assert {"bert", "gpt2", "llama", "xlm-roberta", "isobasin_vit"} <= set(names)
    assert all(family(name).model_type == name for name in names)


def test_every_family_has_an_example():
    assert set(USUAL) == {entry.model_type for entry in families()}
    assert len({str(model) for model in EXAMPLES}) == len(EXAMPLES)


# Where a user chooses among them by name, and what is said of them.
_NAMING = ("architectures/families/", "architectures/examples.py", "models/", "experiments/", "choices.py", "cli/")


def test_no_code_asks_for_a_model_type():
    root = Path(isobasin.__file__).parent
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root).as_posix()
        if not place.startswith(_NAMING):
            constants = {x.value for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.Constant)}
            assert not constants & set(USUAL), place


def test_unknown_type_names_the_nearest_and_how_to_add_one():
    with pytest.raises(ArchitectureError) as error:
        family("lama")
    assert "'lama'" in str(error.value)
    assert "did you mean llama" in str(error.value)
    assert "CONTRIBUTING.md, Add a family" in str(error.value)


def test_unknown_type_that_is_near_to_none_lists_all():
    with pytest.raises(ArchitectureError, match=r"supported are albert, .*, vit"):
        family("zzzzzzzz")


def test_collisions_are_refused():
    with pytest.raises(ArchitectureError, match=r"two families.*'vit'"):
        register([family("vit"), family("bert"), family("vit")])


def test_registry_is_immutable():
    registry = register([family("vit")])
    with pytest.raises(TypeError):
        registry["bert"] = family("bert")  # pyright: ignore[reportIndexIssue]
