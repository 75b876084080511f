"""Two folders with the same tensors, one of which transformers doesn't load as the model that they are in the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.errors import IsobasinError

Verb = Callable[[Path, Path, Path], object]
_JUDGING: dict[str, Verb] = {
    "verify": lambda a, b, out: isobasin.verify(a, b),
    "equivalent": lambda a, b, out: isobasin.equivalent(a, b),
    "compare": lambda a, b, out: isobasin.compare(a, b),
    "diagnose": lambda a, b, out: isobasin.diagnose(a, b),
}
_MIXING: dict[str, Verb] = {
    "interpolate": lambda a, b, out: isobasin.interpolate(a, b, 0.5, out),
    "merge": lambda a, b, out: isobasin.merge([b, a], out),
}


def _pair(model_type: str, folder: Path, **entries: Any) -> tuple[Path, Path]:
    """A model, and its files under a configuration with other entries; those of towers are merged in."""
    a = tiny(model_type).save(folder / "a")
    b = Path(shutil.copytree(a, folder / "b"))
    config = json.loads((b / "config.json").read_text())
    for name, value in entries.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (b / "config.json").write_text(json.dumps(config))
    return a, b


@pytest.mark.parametrize("verb", [*_JUDGING, *_MIXING])
@pytest.mark.parametrize("model_type", ["gpt2", "gemma3", "bert"])
def test_a_head_that_is_tied_in_one_and_nowhere_in_the_other(verb: str, model_type: str, tmp_path: Path) -> None:
    a, b = _pair(model_type, tmp_path, tie_word_embeddings=False)
    with pytest.raises(IsobasinError, match=r"has 'lm_head.weight' and .* has not|decoder.bias|tied to .* has none"):
        (_JUDGING | _MIXING)[verb](a, b, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", _JUDGING)
@pytest.mark.parametrize(
    ("model_type", "entries", "name"),
    [
        ("bert", {"max_position_embeddings": 17}, "position_embeddings.weight"),
        ("clip", {"text_config": {"max_position_embeddings": 8}}, "text_model.embeddings.position_embedding.weight"),
    ],
)
def test_a_table_of_other_rows_than_its_configuration_says(
    verb: str, model_type: str, entries: dict[str, Any], name: str, tmp_path: Path
) -> None:
    a, b = _pair(model_type, tmp_path, **entries)
    with pytest.raises(IsobasinError, match=rf"b: tensor '.*{name}' has shape .* by config.json: check both"):
        _JUDGING[verb](a, b, tmp_path / "out")


def test_a_tower_that_does_not_fit_is_not_passed_over(tmp_path: Path) -> None:
    """Another class would run without it."""
    a, b = _pair("whisper", tmp_path, encoder_ffn_dim=24)
    with pytest.raises(IsobasinError, match=r"b: tensor 'model.encoder.* by config.json: check both"):
        isobasin.verify(a, b)


def test_an_entry_whose_name_looks_private_may_change_the_function(tmp_path: Path) -> None:
    a, b = _pair("opt", tmp_path, _remove_final_layer_norm=True)
    assert not isobasin.equivalent(a, b).equivalent
    with pytest.raises(IsobasinError, match="_remove_final_layer_norm is"):
        isobasin.interpolate(a, b, 0.5, tmp_path / "out")


@pytest.mark.parametrize(
    ("model_type", "entries"),
    [
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),  # as the 350M OPT is
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ],
)
def test_a_stream_that_cannot_move_keeps_nobody_from_the_rest(
    model_type: str, entries: dict[str, Any], tmp_path: Path
) -> None:
    a, b = (tiny(model_type, config=entries).save(tmp_path / name, seed) for seed, name in enumerate("ab"))
    isobasin.interpolate(a, b, 0.5, tmp_path / "out")
    isobasin.merge([a, b], tmp_path / "merged", force_unrelated=True)
    assert not isobasin.diagnose(a, b).sound
    assert isobasin.diagnose(a, a).sound
