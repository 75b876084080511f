"""What OUT says of how it was made, and that it can be made again by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from tiny_program import edit_tensors
from typer.testing import Result

import isobasin
from isobasin.beside import ALIGNMENT, CARD, RECIPE

Cli = Callable[..., Result]

PROJECTION = "transformer.h.1.attn.c_proj.weight"
# Commands that write models, of models a, b, and a scrambled copy of a; and whether they mix them.
COMMANDS = {
    "align": ("{a} {b} --scope block --max-condition 50", False),
    "apply": ("{scrambled} {a}", False),
    "apply --device cpu": ("{scrambled} {adapter}", False),
    "scramble": ("{a} --seed 3 --untie --dtype float64", False),
    "canonicalize": ("{a} --scope block", False),
    "interpolate": ("{a} {b} -t -0.25", True),
    "merge": ("{a} {scrambled} {a} -t 1,2 -t 3 --dtype bfloat16", True),
    "merge --refine": ("{llama} {llama} --data {text} --tokenizer {characters} --length 8 --minutes 0.001", True),
    "transport": ("{a} {b} {scrambled} --scope attention --scale -0.5", True),
    "transport --device cpu": ("{a} {adapter} {scrambled} --scope attention", True),
    "diagnose": ("{a} {transposed} --fix", False),
    "gauge": ("{a} --for rtn2 --group channel --tries 1 --steps 1", False),
    "refine": ("{llama} {llama} --data {text} --tokenizer {characters} --length 8 --steps 1 --model-only", False),
}


@pytest.fixture(scope="module")
def made(models: dict[str, Path], scrambled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Folders and files that commands read."""
    home = tmp_path_factory.mktemp("text")
    (home / "text.txt").write_text("abcd\n" * 60)
    (home / "characters.json").write_text(json.dumps(list("\nabcd")))
    transposed = shutil.copytree(models["a"], home / "transposed")
    edit_tensors(transposed, lambda x: x.update({PROJECTION: x[PROJECTION].T.contiguous()}))
    return {
        **models,
        "scrambled": scrambled,
        "transposed": transposed,
        "adapter": adapter(models["a"], home / "adapter"),
        "text": home / "text.txt",
        "characters": home / "characters.json",
    }


def adapter(base: Path, folder: Path) -> Path:
    """A LoRA adapter as peft writes it."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": True, "bias": "none"}
    config |= {"base_model_name_or_path": str(base), "init_lora_weights": True, "target_modules": ["c_attn"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    width = json.loads((base / "config.json").read_text())["n_embd"]
    name = "base_model.model.transformer.h.1.attn.c_attn.lora_{}.weight"
    factors = {name.format("A"): torch.randn(2, width), name.format("B"): torch.randn(3 * width, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_model(one: Path, other: Path) -> None:
    """Files are the same but for what is said of defaults, of which the command line has more."""
    found, expected = (contents(folder) for folder in (other, one))
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found.keys() - {CARD, RECIPE})


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_writes_is_made_again_by_its_recipe(
    command: str, cli: Cli, made: dict[str, Any], tmp_path: Path
):
    words, mixes = COMMANDS[command]
    unverified = [] if command in ("interpolate", "diagnose") else ["--no-verify"]
    command, *more = command.split()
    first = cli(command, *more, *words.format_map(made).split(), *unverified, "-o", tmp_path / "first")
    assert first.exit_code == 0, first.stderr
    recipe, card = (tmp_path / "first" / name for name in (RECIPE, CARD))
    assert (tmp_path / "first" / ALIGNMENT).exists() == (command not in ("interpolate", "diagnose"))
    if command == "apply" and "adapter" in words:
        config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(made["scrambled"])
    again = cli("run", recipe, "-o", tmp_path / "again")
    assert again.exit_code == 0, again.stderr
    assert again.stdout.replace("/again", "/first") == first.stdout
    assert contents(tmp_path / "again") == contents(tmp_path / "first")
    found = yaml.safe_load(recipe.read_text())
    assert (found["command"], found["isobasin"]) == (command, isobasin.__version__)
    assert found["options"].get("no_verify", False) == bool(unverified)
    loaded = ModelCard.load(card)
    assert loaded.data.library_name == ("peft" if "adapter" in words else "transformers")
    assert loaded.data.tags == ["isobasin", *(["merge"] if mixes else [])]
    assert recipe.read_text() in loaded.text


def test_the_result_is_the_same_to_the_bit_from_python(cli: Cli, models: dict[str, Path], tmp_path: Path):
    isobasin.merge([models["a"], models["b"]], tmp_path / "out", t=0.25, force_unrelated=True, verify=False)
    assert cli("run", tmp_path / "out", "-o", tmp_path / "again").exit_code == 0
    assert_same_model(tmp_path / "out", tmp_path / "again")


def test_an_alignment_in_memory_is_the_one_beside(cli: Cli, models: dict[str, Path], tmp_path: Path):
    found = isobasin.align(models["a"], models["b"], verify=False)
    found.apply(models["b"], tmp_path / "out", verify=False)
    assert yaml.safe_load((tmp_path / "out" / RECIPE).read_text())["options"]["alignment"] == ALIGNMENT
    # the folder may be elsewhere by then
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert cli("run", tmp_path / "moved" / RECIPE, "-o", tmp_path / "again").exit_code == 0
    assert_same_model(tmp_path / "moved", tmp_path / "again")


def test_what_no_file_can_say_makes_no_recipe(models: dict[str, Path], tmp_path: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models["a"])
    isobasin.scramble(model, tmp_path / "out", seed=5, verify=False)
    assert not (tmp_path / "out" / RECIPE).exists()
    card = ModelCard.load(tmp_path / "out" / CARD)
    assert card.data.base_model is None
    assert "with model that no file can hold" in card.text
    assert "seed: 5" in card.text


@pytest.mark.parametrize(
    ("licenses", "kept"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "apache-2.0"), None),
        (("mit", None), None),
        ((["mit"], ["mit"]), None),
        (("other", "other"), None),
    ],
)
def test_foreign_cards_give_their_licence_alone_and_only_if_they_agree(
    licenses: tuple[Any, Any], kept: str | None, models: dict[str, Path], tmp_path: Path
):
    ends = []
    for name, given in zip("ab", licenses, strict=True):
        folder = shutil.copytree(models[name], tmp_path / name)
        data = {"tags": ["theirs"], "model-index": [{"name": name}]} | ({} if given is None else {"license": given})
        (folder / CARD).write_text(f"---\n{yaml.safe_dump(data)}---\nAccuracy: 99.9 %\n")
        for log in ("train_log.json", "trainer_state.json", "eval_results.json"):
            (folder / log).write_text("{}")
        ends.append(folder)
    isobasin.interpolate(*ends, output=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / CARD)
    assert card.data.license == kept
    assert card.data.base_model == [str(end) for end in ends]
    assert card.data.tags == ["isobasin", "merge"]
    assert card.data.eval_results is None
    assert "99.9" not in card.content
    names = {"config.json", "generation_config.json", "model.safetensors", CARD, RECIPE}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(
    "text",
    [
        *("---\n: [\n---\n", "---\n- a\n---\n", "---\nlicense: 2020-01-01\n---\n", "no metadata", "\xff"),
        f"---\n{'[' * 5000}\n---\n",
    ],
    ids=["broken", "a list", "a date", "none", "no text", "deep"],
)
def test_a_card_that_cannot_be_read_says_nothing(text: str, models: dict[str, Path], tmp_path: Path):
    folder = shutil.copytree(models["a"], tmp_path / "a")
    (folder / CARD).write_text(text, encoding="latin-1")
    isobasin.scramble(folder, tmp_path / "out", verify=False)
    assert ModelCard.load(tmp_path / "out" / CARD).data.license is None


def test_a_folder_is_no_id_of_the_hub(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(models["a"], tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    isobasin.scramble("owner/name", "out", verify=False)
    assert ModelCard.load(Path("out") / CARD).data.base_model == ["./owner/name"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("- a", "isn't a recipe: it has no entry 'command'"),
        ("{command: merge, option: {}}", "unknown entry 'option'"),
        ("{command: merge, options: [1]}", "options is no table"),
        ("{command: mergo}", "there is no command 'mergo' to run: did you mean 'merge'?"),
        ("{command: run, options: {recipe: x}}", "there is no command 'run' to run"),
        ("{command: experiment}", "there is no command 'experiment' to run"),
        ("{command: scramble, options: {model: x, sede: 1}}", "scramble has no option 'sede': did you mean 'seed'?"),
        ("{command: scramble, options: {model: x, seed: few}}", "--seed"),
        ("{command: scramble, options: {model: nowhere}}", "nowhere"),
        ("{command: scramble", "isn't valid YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_line(content: str, problem: str, cli: Cli, tmp_path: Path):
    (tmp_path / RECIPE).write_text(content)
    result = cli("run", tmp_path / RECIPE, "-o", tmp_path / "out")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert problem in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_line_is_learned_on_data_between_two(cli: Cli, models: dict[str, Path], tmp_path: Path):
    for given in ((models["a"], models["b"]), (models["a"], models["b"], models["a"], "--data", "text.txt")):
        result = cli("merge", *given, "--refine", "-o", tmp_path / "out")
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert "--refine learns the line between two models on --data" in result.stderr


def test_a_recipe_by_hand_may_say_where_to_write(cli: Cli, models: dict[str, Path], tmp_path: Path):
    options = {"model": str(models["a"]), "seed": 1, "no_verify": True, "output": str(tmp_path / "said")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"command": "scramble", "options": options}))
    assert cli("run", tmp_path / "mine.yaml").exit_code == 0
    assert json.loads(cli("run", tmp_path / "mine.yaml", "-o", tmp_path / "other", "--json").stdout)["verified"] is None
    assert contents(tmp_path / "said") == contents(tmp_path / "other")
    again = cli("run", tmp_path / "mine.yaml")
    assert (again.exit_code, "--force" in again.stderr) == (2, True)
    assert cli("run", tmp_path / "mine.yaml", "--force").exit_code == 0
