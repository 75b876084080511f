"""What commands would do, of configurations and headers alone, against what they do and what was measured of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from isobasin.checkpoints.layout import make_header
from isobasin.choices import Scope
from isobasin.errors import ArchitectureError, OutputError
from isobasin.verbs.outline import Outline, outline
from isobasin.verbs.settings import Matching, Running

GPT2 = transformers.GPT2Config()
LLAMA = transformers.LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)
KINDS = {"gpt2": (GPT2, transformers.GPT2LMHeadModel), "llama": (LLAMA, transformers.LlamaForCausalLM)}


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the configuration and the headers of models that were measured, and nothing behind them."""
    found: dict[str, Path] = {}
    for name, (config, kind) in KINDS.items():
        folder = found[name] = tmp_path_factory.mktemp(name)
        config.architectures = [kind.__name__]
        config.save_pretrained(folder)
        with torch.device("meta"):
            made = kind(config)
        dtype = torch.float32 if name == "gpt2" else torch.bfloat16
        shapes = {key: (tuple(value.shape), dtype) for key, value in made.named_parameters()}
        header = make_header(shapes, {"format": "pt"})
        with (folder / "model.safetensors").open("wb") as file:
            file.write(header.raw)
            file.truncate(header.size)
    return found


def of(folder: Path, out: Path, scope: Scope, **how: bool) -> Outline:
    return outline([folder, folder], out, matching=Matching(scope=scope), running=Running(verify=False, **how))


# Seconds of near and far pairs and gigabytes at the peak, from docs/measured.md.
@pytest.mark.parametrize(
    ("name", "scope", "near", "far", "memory"),
    [
        ("gpt2", Scope.attention, 3.4, 7.6, None),
        ("llama", Scope.attention, 16.0, None, None),
        ("llama", Scope.model, 334.0, None, 4.4),
    ],
)
def test_estimates_are_what_was_measured_within_a_factor_of_two(
    name: str,
    scope: Scope,
    near: float,
    far: float | None,
    memory: float | None,
    hollow: dict[str, Path],
    tmp_path: Path,
):
    found = of(hollow[name], tmp_path / "out", scope)
    expected = {found.seconds[0]: near, found.seconds[1]: far, found.memory / 1e9: memory}
    for estimate, measured in expected.items():
        assert measured is None or measured / 2 < estimate < 2 * measured
    assert not (tmp_path / "out").exists()


def test_what_would_be_matched_and_written(hollow: dict[str, Path], tmp_path: Path):
    found = of(hollow["llama"], tmp_path / "out", Scope.model)
    stored = json.loads((hollow["llama"] / "config.json").read_text())["num_hidden_layers"]
    assert [(part.what, part.blocks) for part in found.matched] == [
        ("attention", stored),
        ("feed-forward", stored),
        ("residual stream", 1),
    ]
    assert found.matched[0].group == "(QK (C*)^32 × VO GL(64))^8 ⋊ S_4 wr S_8"
    assert found.matched[0].parameters == 16 * (2 * 2048**2 + 2 * 2048 * 512)
    assert found.writes == found.models[1].bytes == 2 * found.models[1].parameters == 2 * 1_235_814_400
    assert outline([hollow["llama"]] * 2, tmp_path / "out", matching=None, running=Running()).matched == ()


def test_what_a_command_would_refuse_is_refused(hollow: dict[str, Path], tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="isn't empty"):
        of(hollow["gpt2"], tmp_path / "full", Scope.attention)
    with pytest.raises(OutputError, match="lies in the input"):
        of(hollow["gpt2"], hollow["gpt2"] / "out", Scope.attention)
    of(hollow["gpt2"], tmp_path / "full", Scope.attention, force=True)
    with pytest.raises(ArchitectureError, match="llama"):
        outline(list(hollow.values()), tmp_path / "out", matching=Matching(), running=Running())
