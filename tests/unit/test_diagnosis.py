"""Conversions that went wrong: which defect is named, where, what mending brings back; and what is no defect."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import isobasin
from isobasin import Defect, Judgement
from isobasin.architectures.examples import tiny
from isobasin.errors import ArchitectureError, IsobasinError, OutputError, TensorError, VerificationError
from isobasin.testing.planted import PLANTS, plant

MODELS = ("llama", "gpt2", "bert")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("originals")
    return {name: tiny(name).save(home / name, 0, dtype=torch.float32) for name in MODELS}


def rewritten(folder: Path, out: Path, change) -> Path:
    """A copy with other tensors, and the configuration beside them."""
    shutil.copytree(folder, out)
    tensors, config = load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_rotary_features_of_roles_that_read_other_widths_are_told(tmp_path: Path):
    """Queries of deepseek_v3 read a latent, its keys the stream."""
    a = tiny("deepseek_v3").save(tmp_path / "a", 0, dtype=torch.float32)
    b = plant(a, tmp_path / "b", (PLANTS["half and interleaved"],), 0)
    assert b is not None
    found = isobasin.diagnose(a, b)
    assert {finding.defect for finding in found.findings} == {Defect.rotary_order}
    assert not found.left


@pytest.mark.parametrize("name", PLANTS)
def test_every_defect_is_named(name: str, originals: dict[str, Path], tmp_path: Path):
    made = ((a, plant(a, tmp_path / family, (PLANTS[name],), 3)) for family, a in originals.items())
    a, b = next((a, b) for a, b in made if b is not None)
    found = isobasin.diagnose(a, b)
    assert {finding.defect for finding in found.findings} <= PLANTS[name].accepted
    assert found.judgement is (Judgement.rounded if "float" in name else Judgement.defects)
    assert not found.left
    assert found.after < 1e-6 or found.judgement is Judgement.rounded


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ("half and interleaved", "query scale twice")),
        ("llama", ("query heads interleaved", "folded twice")),
        ("llama", ("half and interleaved", "query heads interleaved")),
        ("gpt2", ("q, k, v fused otherwise", "positions off by two")),
        ("bert", ("layers swapped", "transposed")),
    ],
)
def test_two_defects_are_told_apart_and_mended(
    family: str, names: tuple[str, ...], originals: dict[str, Path], tmp_path: Path
):
    a, plants = originals[family], tuple(PLANTS[name] for name in names)
    b = plant(a, tmp_path / "b", plants, 3)
    assert b is not None
    assert not isobasin.verify(a, b).equal
    found = isobasin.diagnose(a, b, tmp_path / "out")
    kinds = {finding.defect for finding in found.findings}
    assert all(one.accepted & kinds for one in plants)
    assert kinds <= frozenset[Defect]().union(*(one.accepted for one in plants))
    assert found.verified is not None
    assert found.verified.equal
    ours, mended = (load_file(folder / "model.safetensors") for folder in (a, tmp_path / "out"))
    for key, x in ours.items():
        torch.testing.assert_close(mended[key], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", MODELS)
def test_names_of_a_wrapper_are_no_missing_layers(family: str, originals: dict[str, Path], tmp_path: Path):
    def change(tensors, config):
        for name in list(tensors):
            tensors[f"_orig_mod.{name}"] = tensors.pop(name)

    b = rewritten(originals[family], tmp_path / "b", change)
    for verb in (isobasin.diagnose, isobasin.verify):
        with pytest.raises(TensorError, match=r"no attention tensor .*: take '_orig_mod\.' from the beginning of all"):
            verb(originals[family], b)


def test_a_bias_of_a_padded_vocabulary_has_more_rows_too(originals: dict[str, Path], tmp_path: Path):
    a, names = originals["bert"], ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias")

    def change(tensors, config):
        for name in names:
            tensors[name] = torch.cat([tensors[name], tensors[name].new_zeros(14, *tensors[name].shape[1:])])
        config["vocab_size"] = 64

    found = isobasin.diagnose(a, rewritten(a, tmp_path / "b", change))
    rows = next(finding for finding in found.findings if finding.defect is Defect.rows)
    assert (rows.words, set(rows.tensors)) == ("14 rows more than the original", set(names))
    assert not found.left


def test_whatever_is_larger_is_not_taken_for_a_multiple(originals: dict[str, Path], tmp_path: Path):
    """Divided by any number it comes nearer, and is as far as before from the original."""

    def change(tensors, config):
        for key, x in tensors.items():
            if x.ndim == 1 and "ln_" in key:
                generator = torch.Generator().manual_seed(len(key))
                tensors[key] = 50 * (x + x.norm() / len(x) ** 0.5 * torch.randn(x.shape, generator=generator))

    found = isobasin.diagnose(originals["gpt2"], rewritten(originals["gpt2"], tmp_path / "b", change))
    assert found.judgement is Judgement.unexplained
    assert not found.findings


@pytest.mark.parametrize("family", MODELS)
def test_no_defect_is_looked_for_in_a_copy_in_another_basis(
    family: str, originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """That would find nothing, and take ten times as long as to see that it is the same model."""

    def looked(*_: object) -> None:
        raise AssertionError

    isobasin.scramble(originals[family], tmp_path / "b", scope="model", verify=False)
    monkeypatch.setattr("isobasin.diagnosis.places.examine", looked)
    found = isobasin.diagnose(originals[family], tmp_path / "b")
    assert found.judgement is Judgement.equivalent
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (originals[family], tmp_path / "b"))
    gap = sum(float((x - theirs[name]).square().sum()) for name, x in ours.items())
    assert found.before == pytest.approx((gap / sum(float(x.square().sum()) for x in ours.values())) ** 0.5, rel=1e-4)


def test_layers_roles_and_numbers_are_those_that_were_planted(originals: dict[str, Path], tmp_path: Path):
    def change(tensors, config):
        name = "model.layers.1.self_attn.k_proj.weight"
        x = tensors[name]  # two key/value heads of eight features
        tensors[name] = x.view(2, 2, 4, -1).transpose(1, 2).reshape(x.shape).contiguous()
        config["rms_norm_eps"] = 1e-5

    found = isobasin.diagnose(originals["llama"], rewritten(originals["llama"], tmp_path / "b", change))
    rotary, entry = found.findings
    assert (rotary.defect, rotary.layers) == (Defect.rotary_order, (1,))
    assert rotary.tensors == ("model.layers.1.self_attn.k_proj.weight",)
    assert rotary.words == "features of key lie in interleaved order, not half"
    assert rotary.fix == "w.view(2, 4, 2, -1).transpose(1, 2).reshape(w.shape)"
    assert rotary.before is not None
    assert rotary.before > 1
    assert rotary.after == 0
    assert (entry.defect, entry.tensors) == (Defect.configuration, ("rms_norm_eps",))


def test_a_layer_that_is_missing_is_taken_from_the_original(originals: dict[str, Path], tmp_path: Path):
    a = tiny("llama", config={"num_hidden_layers": 3}).save(tmp_path / "a", 0, dtype=torch.float32)

    def change(tensors, config):
        for name in [name for name in tensors if name.startswith("model.layers.1.")]:
            tensors[name] = tensors.pop(name.replace("layers.1.", "layers.2."))
        config["num_hidden_layers"] = 2

    found = isobasin.diagnose(a, rewritten(a, tmp_path / "b", change), tmp_path / "out")
    (finding,) = found.findings
    assert (finding.defect, finding.words, finding.layers) == (Defect.layers, "layer is missing", (1,))
    assert found.verified is not None
    assert found.verified.equal


@pytest.mark.parametrize(
    ("family", "source", "words", "scope"),
    [
        ("llama", (0, 2, 1), {("layers lie in another order", (1, 2))}, "block"),
        ("gpt_neox", (0, 0, 2), {("layer is missing", (1,)), ("layer is there twice", (0,))}, "block"),
        ("llama", (0, 2), {("layer is missing", (1,))}, "block"),
        ("llama", (2, 0, 1), {("layers lie in another order", (0, 1, 2))}, "model"),
        ("llama", (2, 0), {("layer is missing", (1,))}, "model"),
        ("gpt2", (0, 0, 2), {("layer is missing", (1,)), ("layer is there twice", (0,))}, "model"),
        ("llama", (0, 1, 1, 2), {("layer is there twice", (1,))}, "model"),
    ],
)
def test_layers_of_a_moved_copy_are_told_apart_and_mended(
    family: str, source: tuple[int, ...], words: set[tuple[str, tuple[int, ...]]], scope: str, tmp_path: Path
):
    """The sizes of their tensors are others than the original's; what no move changes isn't."""
    a = tiny(family, config={"num_hidden_layers": 3}).save(tmp_path / "a", 0, dtype=torch.float32)
    isobasin.scramble(a, tmp_path / "moved", scope=scope, condition=10, verify=False)
    whole = load_file(tmp_path / "moved" / "model.safetensors")

    def change(tensors, config):
        tensors.clear()
        config["num_hidden_layers"] = len(source)
        for name, x in whole.items():
            cut = re.search(r"(?<=\.)\d+(?=\.)", name)
            for new, old in enumerate(source) if cut else ():
                if int(cut[0]) == old:
                    tensors[f"{name[: cut.start()]}{new}{name[cut.end() :]}"] = x.clone()
            if cut is None:
                tensors[name] = x

    b = rewritten(tmp_path / "moved", tmp_path / "b", change)
    found = isobasin.diagnose(a, b, tmp_path / "out")
    assert {(one.words, one.layers) for one in found.findings} == words
    assert {one.defect for one in found.findings} == {Defect.layers}
    assert bool(found.stream) == (scope == "model")
    assert found.verified is not None
    assert found.verified.equal
    original, mended = (load_file(folder / "model.safetensors") for folder in (a, tmp_path / "out"))
    for name, x in mended.items():
        # A layer that the copy has lost is the original's, in the basis of the copy's stream.
        lost = re.search(r"\.1\.", name) and 1 not in source
        if lost and scope == "model":
            assert x.ndim < 2 or not torch.equal(x, original[name])
            continue
        torch.testing.assert_close(x, (original if lost else whole)[name], rtol=0, atol=0)


def test_a_configuration_beside_a_turned_stream_is_named_and_mended(originals: dict[str, Path], tmp_path: Path):
    isobasin.scramble(originals["llama"], tmp_path / "moved", scope="model", condition=10, verify=False)
    b = rewritten(tmp_path / "moved", tmp_path / "b", lambda tensors, config: config.update(rms_norm_eps=1e-3))
    found = isobasin.diagnose(originals["llama"], b, tmp_path / "out")
    assert [(one.defect, one.tensors) for one in found.findings] == [(Defect.configuration, ("rms_norm_eps",))]
    assert found.stream is not None
    assert found.verified is not None
    assert found.verified.equal


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_copies_moves_and_noise_are_no_defects(family: str, originals: dict[str, Path], tmp_path: Path):
    a = originals[family]
    assert isobasin.diagnose(a, a).judgement is Judgement.exact
    scopes = ("attention", "block", "model")
    for scope in scopes:
        isobasin.scramble(a, tmp_path / scope, scope=scope, condition=10, verify=False)
        found = isobasin.diagnose(a, tmp_path / scope)
        assert found.judgement is Judgement.equivalent
        assert not found.findings
        assert bool(found.stream) == (scope == "model")

    def noise(tensors, config):
        generator = torch.Generator().manual_seed(1)
        for name, x in tensors.items():
            tensors[name] = x + 1e-2 * x.std() * torch.randn(x.shape, generator=generator)

    found = isobasin.diagnose(a, rewritten(a, tmp_path / "noise", noise))
    assert found.judgement is Judgement.unexplained
    assert not found.findings
    assert found.left.keys() == load_file(a / "model.safetensors").keys()
    assert 5e-3 < found.after == found.before < 2e-2


def test_one_number_that_was_trained_is_no_scale(tmp_path: Path):
    """The temperature of CLIP's logits, which has no axis."""
    a = tiny("clip").save(tmp_path / "a", 0, dtype=torch.float32)

    def change(tensors, config):
        tensors["logit_scale"] = tensors["logit_scale"] * 1.01

    found = isobasin.diagnose(a, rewritten(a, tmp_path / "b", change))
    assert (found.judgement, found.findings) == (Judgement.unexplained, ())
    assert found.left == {"logit_scale": pytest.approx(0.01, rel=1e-4)}


def test_a_permuted_stream_is_no_table_whose_rows_lie_in_another_order(tmp_path: Path):
    a = tiny("electra").save(tmp_path / "a", 0, dtype=torch.float32)
    isobasin.scramble(a, tmp_path / "moved", scope="model", condition=10, verify=False)
    found = isobasin.diagnose(a, tmp_path / "moved")
    assert (found.judgement, found.findings, found.stream) == (Judgement.equivalent, (), "S_32")


def test_a_defect_is_found_in_another_gauge_as_well(originals: dict[str, Path], tmp_path: Path):
    a = originals["gpt2"]
    isobasin.scramble(a, tmp_path / "moved", scope="attention", condition=10, verify=False)
    b = plant(tmp_path / "moved", tmp_path / "b", (PLANTS["[Q | V | K]"],), 0)
    assert b is not None
    found = isobasin.diagnose(a, b, tmp_path / "out")
    (finding,) = found.findings
    assert (finding.defect, finding.layers) == (Defect.fused_order, (0, 1))
    assert found.moved == (0, 1)
    assert found.verified is not None
    assert found.verified.equal


@pytest.mark.parametrize(
    ("family", "name"), [("gpt2", "key/value heads reversed"), ("llama", "query heads interleaved")]
)
def test_heads_beside_others_than_theirs_are_told_in_another_gauge(
    family: str, name: str, originals: dict[str, Path], tmp_path: Path
):
    a = originals[family]
    isobasin.scramble(a, tmp_path / "moved", scope="block", condition=10, verify=False)
    b = plant(tmp_path / "moved", tmp_path / "b", (PLANTS[name],), 0)
    assert b is not None
    found = isobasin.diagnose(a, b, tmp_path / "out")
    assert {finding.defect for finding in found.findings} == {Defect.head_order}
    assert found.moved == (0, 1)
    assert found.verified is not None
    assert found.verified.equal


def test_a_defect_of_a_fine_tune_is_a_part_of_the_difference(originals: dict[str, Path], tmp_path: Path):
    def change(tensors, config):
        generator = torch.Generator().manual_seed(1)
        for name, x in tensors.items():
            tensors[name] = x + 1e-2 * x.std() * torch.randn(x.shape, generator=generator)
        x = tensors["model.layers.0.self_attn.o_proj.weight"]
        tensors["model.layers.0.self_attn.o_proj.weight"] = x.T.contiguous()

    a = originals["llama"]
    found = isobasin.diagnose(a, rewritten(a, tmp_path / "b", change), tmp_path / "out")
    assert found.judgement is Judgement.partly
    (finding,) = found.findings
    assert finding.defect is Defect.transposed
    assert finding.after is not None
    assert 5e-3 < finding.after < 2e-2
    assert found.verified is not None
    assert not found.verified.equal


def test_a_type_that_rounding_to_explains_is_named(originals: dict[str, Path], tmp_path: Path):
    def change(tensors, config):
        tensors |= {name: x.to(torch.bfloat16) for name, x in tensors.items()}

    found = isobasin.diagnose(originals["llama"], rewritten(originals["llama"], tmp_path / "b", change))
    assert found.judgement is Judgement.rounded
    assert found.sound
    assert {finding.words for finding in found.findings} == {"rounded to bfloat16"}


def test_refusals_name_what_is_wrong(originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    a = originals["llama"]
    with pytest.raises(IsobasinError, match="no known defect to mend: the same values and configuration"):
        isobasin.diagnose(a, a, tmp_path / "out")
    with pytest.raises(ArchitectureError, match="A is a llama model, B is a gpt2 model"):
        isobasin.diagnose(a, originals["gpt2"])
    b = plant(a, tmp_path / "b", (PLANTS["transposed"],), 3)
    assert b is not None
    with pytest.raises(OutputError, match="is, holds or lies in"):
        isobasin.diagnose(a, b, b)

    def codes(tensors, config):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)

    with pytest.raises(TensorError, match=r"'model.norm.weight' is float8_e4m3fn: dequantise"):
        isobasin.diagnose(a, rewritten(a, tmp_path / "codes", codes))
    monkeypatch.setattr(
        "isobasin.verbs.diagnose.verify_models", lambda a, b, **how: isobasin.verify(a.name, tmp_path / "b")
    )
    with pytest.raises(VerificationError, match=r"out: the mended model is not A: .* it was not written"):
        isobasin.diagnose(a, b, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gains_are_found_in_weights_of_which_a_part_is_looked_at(tmp_path: Path):
    a = tiny("gpt2", config={"n_embd": 80}).save(tmp_path / "a", 0, dtype=torch.float32)

    def change(tensors, config):
        gain, bias = (tensors[f"transformer.h.0.ln_2.{name}"] for name in ("weight", "bias"))
        weight = tensors["transformer.h.0.mlp.c_fc.weight"]
        tensors["transformer.h.0.mlp.c_fc.bias"] += bias @ weight
        tensors["transformer.h.0.mlp.c_fc.weight"] = gain[:, None] * weight

    found = isobasin.diagnose(a, rewritten(a, tmp_path / "b", change))
    (finding,) = found.findings
    assert (finding.defect, finding.layers, found.judgement) == (Defect.folded, (0,), Judgement.defects)
    assert finding.words == "the gain of h.0.ln_2.weight is multiplied into up, its bias added"
