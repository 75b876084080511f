"""Every key of an experiment's file is explained, for people and for editors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from small_experiments import CONFIGURATION

from isobasin.experiments.configuration import packaged, packaged_text
from isobasin.experiments.keys import page, schema
from isobasin.experiments.settings import Settings
from isobasin.tasks.strict_yaml import read_yaml

PAGE = Path(__file__).parents[3] / "docs" / "experiments.md"
VALIDATOR = jsonschema.Draft202012Validator(schema())


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run make pages"


@pytest.mark.parametrize("settings", Settings.__subclasses__(), ids=lambda settings: settings.__name__)
def test_every_key_says_what_it_means(settings: type[Settings]):
    for name, entry in settings.model_fields.items():
        assert (entry.description or "").endswith("."), name
        assert f"| `{name}` |" in page()


@pytest.mark.parametrize("name", packaged())
def test_editors_accept_what_is_packaged(name: str, tmp_path: Path):
    (tmp_path / "own.yaml").write_text(packaged_text(name))
    VALIDATOR.validate(read_yaml(tmp_path / "own.yaml"))


@pytest.mark.parametrize(("place", "value"), [("seedz", [1, 2]), ("points", "many"), ("scopes", ["everything"])])
def test_editors_refuse_what_the_program_refuses(place: str, value: Any):
    wrong = copy.deepcopy(CONFIGURATION) | {place: value}
    VALIDATOR.validate(CONFIGURATION)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(wrong)
