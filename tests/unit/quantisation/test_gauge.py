"""`gauge`: the same function, where rounding costs no more than it did as trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import isobasin
from isobasin.alignment import Alignment
from isobasin.architectures.examples import tiny
from isobasin.architectures.tiny import TinyModel
from isobasin.choices import Costs, Scope, TaskKind
from isobasin.errors import IsobasinError, OutputError
from isobasin.model import open_model
from isobasin.quantisation.gauge import LEARNING, gauge, search
from isobasin.quantisation.linears import linears, rounded
from isobasin.quantisation.objectives import Cost, bare
from isobasin.quantisation.quantiser import Quantiser
from isobasin.quantisation.starts import hadamard, still
from isobasin.refinement.chart import Chart
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.options import DataFacts
from isobasin.testing.assertions import assert_function_preserved
from isobasin.verbs.settings import Running
from isobasin.verbs.whole import widest

UNTIED = {"tie_word_embeddings": False}
SHORT = replace(LEARNING, steps=6, batch_size=8, every=3, warmup=2, minutes=0.0, held_out=0.25)
# Tied, with biases, grouped queries and normalised queries and keys; experts, latents and two towers.
FAMILIES = (
    *(tiny("gpt2"), tiny("gpt2", "apart", config=UNTIED), tiny("llama"), tiny("qwen2"), tiny("qwen3"), tiny("bert")),
    *(tiny("gpt_neox"), tiny("gpt_oss"), tiny("deepseek_v3"), tiny("t5"), tiny("dinov2")),
)
quiet = pytest.mark.filterwarnings("ignore:.*stays as it is")


def tokens(count: int = 48) -> TensorExamples:
    ids = torch.randint(3, 50, (count, 12), generator=torch.Generator().manual_seed(0))
    facts = DataFacts("made up", None, "causal-lm", count, "none")
    return TensorExamples(TaskKind.causal_lm, facts, {"input_ids": ids, "labels": ids})


@quiet
@pytest.mark.parametrize("model", FAMILIES, ids=str)
def test_what_lies_elsewhere_in_the_group_is_moved_back(model: TinyModel, tmp_path: Path):
    """All tensors, at random coordinates; and every rounded weight is among them, whatever way it is stored."""
    with open_model(model.save(tmp_path / "model", dtype=torch.float64)) as opened:
        scope = widest([opened])
        stream = opened.stream() if scope is Scope.model else None
        chart = Chart(opened, feedforward=scope.feedforward, stream=stream)
        own, generator = chart.bare(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for coordinate in chart.coordinates.values():
                coordinate.copy_(torch.randn(coordinate.shape, generator=generator, dtype=torch.float64) * 0.2)
            moved = chart.tensors()
            back = chart.returned(moved)
        weights = linears(opened)
        stored = opened.read([one.weight for one in weights])
    assert {one.weight for one in weights} <= back.keys()
    assert not torch.allclose(moved[weights[0].weight], own[weights[0].weight], atol=1e-2)
    for name, x in back.items():
        torch.testing.assert_close(x, own[name].detach(), rtol=0, atol=1e-11 * float(own[name].detach().abs().max()))
    for one in weights:
        matrix = one.matrix(stored[one.weight])
        assert torch.equal(one.stored(matrix), stored[one.weight])


def test_rows_of_a_matrix_are_outputs(tmp_path: Path):
    """Of GPT-2's, stored inputs first, and of Llama's: what a module makes of unit vectors."""
    for model, names in ((tiny("gpt2"), ("c_attn", "c_fc", "c_proj")), (tiny("llama"), ("q_proj", "down_proj"))):
        folder = model.save(tmp_path / model.model_type, dtype=torch.float64)
        with open_model(folder) as opened:
            found = {one.weight: one.matrix(opened.read([one.weight])[one.weight]) for one in linears(opened)}
        loaded = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64)
        seen = 0
        for path, part in loaded.named_modules():
            weight = next((x for name, x in found.items() if name.endswith(f"{path}.weight")), None)
            if path.rpartition(".")[2] in names and weight is not None:
                bias = 0 if part.bias is None else part.bias
                made = part(torch.eye(weight.shape[-1], dtype=torch.float64)) - bias
                torch.testing.assert_close(made.mT, weight, rtol=1e-12, atol=1e-12)
                seen += 1
        assert seen == 2 * (4 if model.model_type == "gpt2" else 2)


@pytest.mark.parametrize(("name", "by"), [("gpt2", "weights"), ("qwen3", "layers"), ("llama", "predictions")])
def test_the_function_stays_and_rounding_costs_less(name: str, by: str, tmp_path: Path):
    model = tiny(name, "gauged", config=UNTIED).save(tmp_path / "model", dtype=torch.float32)
    data = None if by == "weights" else tokens()
    found = gauge(model, "rtn3", tmp_path / "out", data=data, by=by, tries=1, how=SHORT)
    assert_function_preserved(model, tmp_path / "out", 1e-5, hidden=False)
    assert found.verified is not None
    assert found.verified.equal
    assert found.learned.after <= min(found.starts.values()) == found.learned.before
    assert found.learned.after < found.starts["as trained"]
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    assert {n: (x.shape, x.dtype) for n, x in before.items()} == {n: (x.shape, x.dtype) for n, x in after.items()}
    assert (tmp_path / "out" / "config.json").read_bytes() == (model / "config.json").read_bytes()
    assert found.alignment.provenance["operation"] == "gauge"


@pytest.mark.parametrize(("steps", "share"), [(2, 0.3), (100, 1.0)])
def test_in_few_steps_what_is_no_rotation_moves_by_less(
    steps: int, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[float] = []
    line = Cost.line

    def noted(cost: Cost, start: Alignment, stretching: float = 1.0):
        asked.append(stretching)
        return line(cost, start, stretching)

    monkeypatch.setattr(Cost, "line", noted)
    how = replace(SHORT, steps=steps, rate=30.0, patience=1)  # which ends at its first look
    model = tiny("llama", "gauged").save(tmp_path / "model", dtype=torch.float32)
    gauge(model, "rtn4", tmp_path / "out", tries=1, how=how)
    assert asked == [share, share]


def test_where_nothing_is_better_the_model_stays_as_it_is(tmp_path: Path):
    """A rate that only ever makes it worse."""
    model = tiny("llama", "gauged").save(tmp_path / "model", dtype=torch.float32)
    found = gauge(model, "rtn4", tmp_path / "out", tries=0, how=replace(SHORT, rate=30.0))
    assert found.learned.after == found.starts["as trained"]
    for name, x in load_file(model / "model.safetensors").items():
        torch.testing.assert_close(load_file(tmp_path / "out" / "model.safetensors")[name], x, rtol=1e-6, atol=1e-7)
    assert found.after.error == pytest.approx(found.before.error, rel=1e-5)


@torch.no_grad()
def test_costs_are_what_they_are_by_hand(tmp_path: Path):
    """Where the model is as trained: of weights with the gains folded in; of its layers; of what it predicts."""
    folder = tiny("llama", "gauged", config=UNTIED).save(tmp_path / "model", dtype=torch.float64)
    rounds, data = Quantiser.of("rtn3"), tokens(8)
    with open_model(folder) as opened:
        costs = {by: Cost(opened, rounds, by, "cpu", data, data.kind) for by in Costs}
        lines = {by: cost.line(still(opened, Scope.model)) for by, cost in costs.items()}
        own = opened.double(opened.view.tensors.values())
        weights = linears(opened)
        gains = {f"model.layers.{i}.": own[f"model.layers.{i}.input_layernorm.weight"] for i in (0, 1)}
    found = {by: float(line.divergence(1.0, data.fetch(range(8)))) for by, line in lines.items()}
    folded, shares, moments = bare(lines[Costs.weights].ends[1]), [], lines[Costs.layers].moments
    for one in weights:
        w = own[one.weight]
        if "q_proj" in one.weight:
            torch.testing.assert_close(folded[one.weight], w * gains[one.weight.partition("self_attn")[0]])
        gain = (folded[one.weight] / w)[:1]
        # The largest of a group may lie half-way between two codes: the last bit says which it gets.
        near = lines[Costs.weights].ends[1].tensors()[one.weight]
        torch.testing.assert_close(near, w, rtol=1e-12, atol=1e-12)
        lost, size = (rounds(near) - w) * gain, folded[one.weight]
        square = moments[one.weight][:-1, :-1]
        shares.append(
            [lost.square().sum() / size.square().sum(), (lost @ square * lost).sum() / (size @ square * size).sum()]
        )
    assert found[Costs.weights] == pytest.approx(sum(float(x) for x, _ in shares) / len(shares), rel=1e-6)
    assert found[Costs.layers] == pytest.approx(sum(float(x) for _, x in shares) / len(shares), rel=1e-6)
    module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    p = module(input_ids=data.tensors["input_ids"]).logits[:, :-1].log_softmax(-1)
    for name, x in rounded(lines[Costs.weights].ends[1].tensors(), weights, rounds).items():
        module.get_parameter(name).copy_(x)
    q = module(input_ids=data.tensors["input_ids"]).logits[:, :-1].log_softmax(-1)
    assert found[Costs.predictions] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)


@quiet
@pytest.mark.parametrize("scope", Scope)
def test_narrower_scopes_leave_the_rest(scope: Scope, tmp_path: Path):
    model = tiny("gpt2").save(tmp_path / "model", dtype=torch.float32)
    found = gauge(model, "rtn3", tmp_path / "out", tries=1, scope=scope, how=SHORT)
    assert_function_preserved(model, tmp_path / "out", 1e-5, hidden=False)
    assert (found.alignment.stream is not None) == (scope is Scope.model)
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    wte = "transformer.wte.weight" if "transformer.wte.weight" in before else "wte.weight"
    assert torch.equal(before[wte], after[wte]) or scope is Scope.model


def test_a_model_in_memory_gives_one_and_a_seed_the_same_file(tmp_path: Path):
    folder = tiny("llama", "gauged").save(tmp_path / "model", dtype=torch.float32)
    module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    found = gauge(module, "nvfp4", tries=1, how=SHORT)
    assert type(found.model) is type(module)
    for name in ("one", "other"):
        gauge(folder, "mxfp4", tmp_path / name, tries=2, how=SHORT)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


@pytest.mark.parametrize("width", [1, 8, 12, 7])
def test_hadamard_is_orthogonal_and_flat(width: int):
    found = hadamard(width, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found @ found.mT, torch.eye(width, dtype=torch.float64))
    if width == 8:
        torch.testing.assert_close(found.abs(), torch.full((8, 8), 8**-0.5, dtype=torch.float64))


def test_bad_input_is_refused_and_nothing_written(tmp_path: Path):
    model, out = tiny("llama").save(tmp_path / "model"), tmp_path / "out"
    for problem, how in (
        ("by layers is measured on data: give --data", {"by": "layers"}),
        ("tries is -1", {"tries": -1}),
        ("group is 16, and mxfp4 has groups of 32", {"group": 16}),
        ("scope 'all'", {"scope": "all"}),
    ):
        with pytest.raises(IsobasinError, match=problem):
            gauge(model, "mxfp4" if "group" in how else "rtn4", out, how=SHORT, **how)
    experts = tiny("gpt_oss").save(tmp_path / "experts", dtype=torch.float32)
    with pytest.raises(IsobasinError, match="layers can't weigh experts"):
        gauge(experts, "rtn4", out, data=tokens(), by="layers", how=SHORT)
    with open_model(model) as opened, pytest.raises(IsobasinError, match="by weights is no finite number"):
        search(Cost(opened, lambda x: x * torch.nan, Costs.weights, "cpu"), Scope.model, 0, SHORT, Running())
    with pytest.raises(OutputError):
        gauge(model, "rtn4", model, how=SHORT)
    assert not out.exists()
    assert isobasin.verify(model, model).equal
