"""LoRA adapters move with their base: as peft loads them, they do on the moved base what they did on the base."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.canonical import adapter_in
from isobasin.checkpoints import Checkpoint
from isobasin.errors import AlignmentError, CheckpointError, IsobasinError, OutputError, TensorError
from isobasin.verbs.outline import outline
from isobasin.verbs.settings import Running

peft = pytest.importorskip("peft")

UNTIED = {"tie_word_embeddings": False}
# Of transformers, which computes normalisations in float32 whatever the model's type.
ROUNDING = 1e-5
TOKENS = torch.arange(24).reshape(2, 12) % 40 + 3
LLAMA, GPT2 = tiny("llama", "adapted", config=UNTIED), tiny("gpt2", "adapted", config=UNTIED)
# Rank and alpha of modules by themselves, and the scale by the root of the rank.
PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.o_proj": 3}, "use_rslora": True}


def adapted(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter whose factors are random."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM", **options})
    made = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    made.save_pretrained(folder)
    return folder


def outputs(base: Path, adapter: Path) -> Tensor:
    """What peft computes."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    loaded = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        return loaded(input_ids=TOKENS).logits


def config_of(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text())


def assert_moved(base: Path, adapter: Path, moved: Path, out: Path) -> None:
    """The same outputs, from other factors, which are as they were in number and type."""
    wanted, found = outputs(base, adapter), outputs(moved, out)
    assert float((wanted - outputs_of(base)).abs().max()) > 1e-2
    assert torch.allclose(found, wanted, rtol=0, atol=ROUNDING * float(wanted.abs().max()))
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, out))
    before = {name: tensor for name, tensor in before.items() if "base_layer" not in name}
    assert {n: (x.shape, x.dtype) for n, x in before.items()} == {n: (x.shape, x.dtype) for n, x in after.items()}
    old, new = config_of(adapter), config_of(out)
    assert new == old | {"base_model_name_or_path": str(moved)}


def outputs_of(base: Path) -> Tensor:
    with torch.no_grad():
        return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)(input_ids=TOKENS).logits


@pytest.mark.parametrize(
    ("model", "scope", "options"),
    [
        (LLAMA, "attention", {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
        (LLAMA, "model", {"target_modules": "all-linear", **PATTERNS}),
        (LLAMA, "model", {"target_modules": ["embed_tokens", "lm_head", "down_proj"]}),
        (GPT2, "block", {"target_modules": ["c_attn", "mlp.c_proj"]}),
    ],
    ids=["attention", "model", "embedding", "conv1d"],
)
def test_a_moved_adapter_does_on_the_moved_base_what_it_did(model, scope: str, options: dict, tmp_path: Path):
    base = model.save(tmp_path / "base", dtype=torch.float64)
    adapter = adapted(base, tmp_path / "adapter", **options)
    moved, out = tmp_path / "moved", tmp_path / "out"
    alignment = isobasin.scramble(base, moved, seed=1, scope=scope, condition=3).alignment
    assert alignment is not None
    found = isobasin.apply(alignment, adapter, out, moved_base=moved)
    assert found.verified is not None
    assert found.verified.equal
    assert_moved(base, adapter, moved, out)
    # Back again it is what it was, up to a map between its factors.
    isobasin.apply(alignment.inverse(), out, tmp_path / "back", moved_base=base, verify=False)
    wanted = outputs(base, adapter)
    atol = ROUNDING * float(wanted.abs().max())
    assert torch.allclose(outputs(base, tmp_path / "back"), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("family", ["deit", "beit"])
def test_an_adapter_names_modules_as_they_are_in_memory(family: str, tmp_path: Path):
    """Which transformers writes into files by older names."""
    made = tiny(family)
    base, moved = made.save(tmp_path / "base", dtype=torch.float64), tmp_path / "moved"
    images = torch.randn(2, 3, *[made.config["image_size"]] * 2, generator=torch.Generator().manual_seed(0)).double()

    def computed(folder: Path, adapter: Path) -> Tensor:
        model = getattr(transformers, made.head).from_pretrained(folder, dtype=torch.float64)
        with torch.no_grad():
            return peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).eval()(images).logits

    model = getattr(transformers, made.head).from_pretrained(base, dtype=torch.float64)
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config, autocast_adapter_dtype=False).save_pretrained(tmp_path / "adapter")
    assert "attention.k_proj" in " ".join(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert not any("k_proj" in name for name in load_file(base / "model.safetensors"))
    alignment = isobasin.scramble(base, moved, seed=1, scope="block", condition=3).alignment
    found = isobasin.apply(alignment, tmp_path / "adapter", tmp_path / "out", moved_base=moved)
    assert found.verified.equal
    wanted = computed(base, tmp_path / "adapter")
    torch.testing.assert_close(computed(moved, tmp_path / "out"), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_an_adapter_is_carried_to_another_base(scale: float, tmp_path: Path):
    """To a moved copy of its base, as the whole fine-tune is."""
    base = LLAMA.save(tmp_path / "base", dtype=torch.float64)
    adapter = adapted(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj", "o_proj", "up_proj"])
    isobasin.scramble(base, tmp_path / "target", seed=1, scope="model", condition=2)
    arguments = {"scale": scale, "verify": scale == 1}
    found = isobasin.transport(base, adapter, tmp_path / "target", tmp_path / "out", **arguments)
    if scale == 1:
        assert_moved(base, adapter, tmp_path / "target", tmp_path / "out")
        assert found.checked is not None
    whole = isobasin.transport(base, adapter_merged(base, adapter, tmp_path / "tuned"), tmp_path / "target",
                               tmp_path / "whole", **arguments)  # fmt: skip
    assert found.change == pytest.approx(whole.change, rel=1e-9)
    wanted, end = outputs_of(tmp_path / "whole"), outputs(tmp_path / "target", tmp_path / "out")
    assert torch.allclose(end, wanted, rtol=0, atol=ROUNDING * float(wanted.abs().max()))


def test_the_base_that_is_given_is_compared_with_the_one_that_is_named(tmp_path: Path, recwarn):
    """A copy elsewhere is the same, another model isn't, and of one that isn't here nobody knows."""
    base = LLAMA.save(tmp_path / "base", dtype=torch.float64)
    adapter = adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    shutil.copytree(base, tmp_path / "copy")
    other = LLAMA.save(tmp_path / "other", 1, dtype=torch.float64)
    isobasin.scramble(base, tmp_path / "target", seed=1, verify=False)
    arguments = {"scope": "attention", "verify": False}
    isobasin.transport(tmp_path / "copy", adapter, tmp_path / "target", tmp_path / "out", **arguments)
    assert not [found for found in recwarn if "as its base" in str(found.message)]
    with pytest.raises(IsobasinError, match=f"is of {base}, which is another model than {other}: give its own"):
        isobasin.transport(other, adapter, tmp_path / "target", tmp_path / "more", **arguments)
    base.rename(tmp_path / "away")
    with pytest.warns(match="names .* as its base, which is no folder here: it is taken for one of"):
        isobasin.transport(tmp_path / "copy", adapter, tmp_path / "target", tmp_path / "more", **arguments)
    moved = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "more")]
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in moved[0] | moved[1])


def adapter_merged(base: Path, adapter: Path, folder: Path) -> Path:
    """What peft makes of the two."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).merge_and_unload().save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Llama and an adapter of it."""
    folder = tmp_path_factory.mktemp("adapters")
    base = LLAMA.save(folder / "base", dtype=torch.float32)
    return base, adapted(base, folder / "adapter", target_modules=["q_proj", "down_proj"])


def test_an_adapter_is_a_model_where_one_is_asked_for(trained: tuple[Path, Path], tmp_path: Path):
    """It is merged as peft does it, and what is written of it is a whole model."""
    base, adapter = trained
    adapter_merged(base, adapter, tmp_path / "merged")
    isobasin.interpolate(base, adapter, 1.0, tmp_path / "end")
    wanted, found = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "end"))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-6, atol=1e-7), name
    assert isobasin.verify(tmp_path / "merged", adapter).equal
    assert not isobasin.verify(base, adapter).equal


def test_an_adapter_on_the_hub_is_known_by_its_small_files(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A dry run says what is written of one, and of a whole model no values are fetched to find out what it is."""
    base, adapter = trained
    asked: list[str] = []

    def download(repo_id: str, allow_patterns: list[str], **_: object) -> str:
        asked.extend(allow_patterns)
        return str({"me/lora": adapter, "me/model": base}[repo_id])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = outline([], tmp_path / "out", matching=None, running=Running(), moved="me/lora")
    assert found.writes == sum(x.nbytes for x in load_file(adapter / "adapter_model.safetensors").values())
    asked.clear()
    assert adapter_in("me/model") is None
    assert asked == ["*.json"]


def test_an_adapter_that_a_tied_table_has_leaves_the_other_use_alone(tmp_path: Path):
    base = tiny("llama", "tied", config={"tie_word_embeddings": True}).save(tmp_path / "base", dtype=torch.float64)
    adapter = adapted(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    isobasin.interpolate(base, adapter, 1.0, tmp_path / "end", untie=True)
    wanted = outputs(base, adapter)
    assert torch.allclose(outputs_of(tmp_path / "end"), wanted, rtol=0, atol=ROUNDING * float(wanted.abs().max()))


def test_a_bias_that_would_move_with_the_adapter_is_refused(tmp_path: Path):
    """GPT-2's normalisations have biases, which its readers take in when the stream turns."""
    base = GPT2.save(tmp_path / "base", dtype=torch.float64)
    adapter = adapted(base, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True)
    alignment = isobasin.scramble(base, tmp_path / "moved", seed=1, scope="model", verify=False).alignment
    with pytest.raises(AlignmentError, match=r"adapter: changes '.*bias' of its moved base too"):
        isobasin.apply(alignment, adapter, tmp_path / "out", moved_base=tmp_path / "moved")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_moved_adapter_names_has_to_be_its_moved_base(trained, dtype: torch.dtype, tmp_path: Path):
    """On its old base, or on a fine-tune that was moved alike, it would do something else."""
    base, adapter = trained
    moved, out = tmp_path / "moved", tmp_path / "out"
    alignment = isobasin.scramble(base, moved, seed=1, scope="block", dtype=dtype, verify=False).alignment
    tuned = transformers.AutoModelForCausalLM.from_pretrained(base)
    tuned.model.layers[1].self_attn.o_proj.weight.data[3, 5] += 0.1
    tuned.save_pretrained(tmp_path / "tuned")
    alignment.apply(tmp_path / "tuned", tmp_path / "tuned-moved", dtype=dtype, verify=False)
    with pytest.raises(IsobasinError, match=r"say where its moved base lies, which OUT names \(--moved-base\)"):
        alignment.apply(adapter, out)
    for other in (base, tmp_path / "tuned-moved"):
        with pytest.raises(IsobasinError, match=f"{other}: isn't what {base} becomes by this move: its '"):
            alignment.apply(adapter, out, moved_base=other)
    other = tiny("llama", "deeper", config=UNTIED | {"num_hidden_layers": 3}).save(tmp_path / "deeper")
    with pytest.raises(IsobasinError, match="becomes by this move, which has other tensors: name the folder that is"):
        alignment.apply(adapter, out, moved_base=other)
    assert not out.exists()
    alignment.apply(adapter, out, moved_base=moved)
    alignment.apply(adapter, tmp_path / "later", moved_base=tmp_path / "not-there-yet")


def changed(adapter: Path, folder: Path, tensors: dict[str, Tensor] | None = None, **entries: Any) -> Path:
    """A copy of an adapter with other entries or tensors."""
    shutil.copytree(adapter, folder)
    (folder / "adapter_config.json").write_text(json.dumps(config_of(adapter) | entries))
    if tensors is not None:
        save_file(load_file(adapter / "adapter_model.safetensors") | tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"use_dora": True}, "a PEFT adapter with use_dora: merge it into its base first"),
        ({"modules_to_save": ["lm_head"]}, "a PEFT adapter with modules_to_save: merge"),
        ({"bias": "all"}, "a PEFT adapter with biases: merge"),
        ({"peft_type": "IA3"}, "a PEFT adapter of type IA3: merge"),
        ({"peft_type": "PREFIX_TUNING"}, "of type PREFIX_TUNING: what it learned is no change of weights"),
        ({"init_lora_weights": "pissa"}, r"that began from its base's own weights \(pissa\): merge"),
        ({"base_model_name_or_path": None}, "that doesn't say what it adds to"),
        ({"base_model_name_or_path": "/nowhere"}, "the base that its adapter_config.json names can't be had: "),
        ({"rank_pattern": {"(q|k)_proj": 2}}, "a pattern: name modules by their paths"),
        ({"r": 4}, "and not matrices of rank 4"),
        ({"r": None}, "r of '.*' is None, and should be a number above 0"),
        ({"alpha_pattern": {"q_proj": "x"}}, "lora_alpha of '.*q_proj' is 'x', and should be a number above 0"),
    ],
)
def test_adapters_of_other_kinds_are_refused_in_a_line(trained, entries: dict, said: str, tmp_path: Path):
    adapter = changed(trained[1], tmp_path / "changed", **entries)
    with pytest.raises((CheckpointError, TensorError), match=said) as refused:
        isobasin.verify(trained[0], adapter)
    assert "\n" not in str(refused.value)


def test_tensors_that_are_no_factors_are_refused(trained, tmp_path: Path):
    other = changed(trained[1], tmp_path / "other", {"base_model.model.score.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match=re.escape("with a tensor 'base_model.model.score.weight'")):
        isobasin.verify(trained[0], other)
    name = "base_model.model.model.layers.9.self_attn.q_proj.lora_{}.weight"
    factors = {name.format(which): torch.ones(3, 3, dtype=torch.float64) for which in "AB"}
    with pytest.raises(TensorError, match=r"adds to 'model.layers.9.self_attn.q_proj', and .* has no such weight"):
        isobasin.verify(trained[0], changed(trained[1], tmp_path / "more", factors))


def test_tables_that_lie_in_the_file_are_the_bases(trained, tmp_path: Path):
    base = trained[0]
    adapter = adapted(base, tmp_path / "adapter", target_modules=["lm_head"])
    (name,) = (key for key in load_file(adapter / "adapter_model.safetensors") if "base_layer" in key)
    table = load_file(base / "model.safetensors")["lm_head.weight"]
    own = changed(adapter, tmp_path / "own", {name: table + 1})
    with pytest.raises(TensorError, match="has a 'lm_head' of its own, and not its base's"):
        isobasin.verify(base, own)


def test_a_dry_run_merges_no_adapter(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base, adapter = trained
    monkeypatch.setattr(Checkpoint, "read", None)
    found = outline([base, base], tmp_path / "out", matching=None, running=Running(), moved=adapter)
    assert [model.model for model in found.models] == [str(base), str(base), str(adapter)]
    assert found.writes == sum(x.nbytes for x in load_file(adapter / "adapter_model.safetensors").values())
    with pytest.raises(OutputError, match="is, holds or lies in the input"):
        outline([base], adapter, matching=None, running=Running(force=True), moved=adapter)


def test_an_adapter_is_written_to_a_folder_of_its_own(trained, tmp_path: Path):
    base, adapter = trained
    alignment = isobasin.scramble(base, tmp_path / "moved", seed=1, verify=False).alignment
    with pytest.raises(OutputError, match="is, holds or lies in the input"):
        isobasin.apply(alignment, adapter, adapter, force=True, moved_base=tmp_path / "moved")
    # Where it is merged on the fly, what is read lies elsewhere.
    for kept in (adapter, base):
        with pytest.raises(OutputError, match=f"is, holds or lies in the input {kept}"):
            isobasin.scramble(adapter, kept, seed=1, force=True)
        with pytest.raises(OutputError, match=f"is, holds or lies in the input {kept}"):
            isobasin.interpolate(tmp_path / "moved", adapter, 0.5, kept, force=True)
    with pytest.raises(IsobasinError, match="is for adapters"):
        isobasin.apply(alignment, base, tmp_path / "out", moved_base="x")
    with pytest.raises(IsobasinError, match="is written to a folder"):
        isobasin.apply(alignment, adapter)
