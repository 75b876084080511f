"""The registry: what is in it, and what it refuses."""

from __future__ import annotations

from pkgutil import iter_modules

import pytest

from isobasin.architectures import families as files
from isobasin.architectures.registry import families, family, register
from isobasin.errors import ArchitectureError


def test_every_file_is_found_under_its_own_name():
    names = [entry.model_type for entry in families()]
    assert sorted(name.replace("-", "_") for name in names) == sorted(m.name for m in iter_modules(files.__path__))
    assert names == sorted(names)
    assert {"bert", "gpt2", "llama", "xlm-roberta", "isobasin_vit"} <= set(names)
    assert all(family(name).model_type == name for name in names)


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
