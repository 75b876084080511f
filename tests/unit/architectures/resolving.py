"""Configurations of tiny models with the attention tensors that they ask for, and what resolving them gives."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import case

from isobasin.architectures.configuration import build
from isobasin.architectures.description import Description
from isobasin.architectures.registry import family
from isobasin.architectures.resolve import specification
from isobasin.architectures.schema import Specification


def config(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, **case(model_type).config, **changes}


def shapes(folder_config: dict[str, Any], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """The attention tensors that a configuration asks for."""
    entry = family(folder_config["model_type"])
    blocks = entry.blocks(build(entry.model_type, folder_config))
    return {prefix + name: shape for block in blocks for name, shape in block.shapes().items()}


def resolve(folder_config: dict[str, Any], tensors: dict[str, tuple[int, ...]] | None = None) -> Specification:
    described = Description(folder_config, shapes(folder_config) if tensors is None else tensors)
    return specification(described, source="folder/b")


def refused(error_type: type[Exception], *args: Any) -> str:
    with pytest.raises(error_type) as error:
        resolve(*args)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("folder/b: ")
    return message
