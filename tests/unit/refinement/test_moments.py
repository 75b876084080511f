"""Second moments of what blocks read, and alignments weighted by them."""

from __future__ import annotations

import pytest
import torch

import isobasin
from isobasin.architectures.examples import tiny, variant
from isobasin.choices import TaskKind
from isobasin.errors import IsobasinError
from isobasin.model import open_model
from isobasin.refinement.calibration import DataCalibration
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.kind import load_model
from isobasin.tasks.options import DataFacts

UNTIED = {"tie_word_embeddings": False}
MODELS = (tiny("gpt2", "weighed", config=UNTIED), tiny("llama", "weighed", config=UNTIED))


def tokens(kind: TaskKind = TaskKind.causal_lm, *, padded: bool = False, count: int = 80) -> TensorExamples:
    """Random tokens; `padded`: every other example has three that are none."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (count, 12), generator=generator)
    values = {"input_ids": ids, "labels": ids}
    if padded:
        mask = torch.ones_like(ids)
        mask[::2, -3:] = 0
        values["attention_mask"] = mask
    return TensorExamples(kind, DataFacts("made up", None, str(kind), count, "none"), values)


def first_inputs(model, x: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """What the first attention layer's projections multiply, from the embeddings on."""
    hidden = model(input_ids=x, output_hidden_states=True).hidden_states[0]
    if kind is TaskKind.masked_lm:
        return hidden
    inner = getattr(model, "transformer", None)
    return inner.h[0].ln_1(hidden) if inner is not None else model.model.layers[0].input_layernorm(hidden)


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "causal-lm"), ("llama", "causal-lm"), ("bert", "masked-lm")])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_moments_are_those_of_the_inputs(name, kind, padded, tmp_path):
    kind = TaskKind(kind)
    tiny_model = {"gpt2": MODELS[0], "llama": MODELS[1], "bert": tiny("bert", "masked", head="BertForMaskedLM")}[name]
    folder, data = tiny_model.save(tmp_path / "model"), tokens(kind, padded=padded)
    with open_model(folder) as opened:
        block = opened.specification.attention[0]
        names = {reader.weight for reader in block.readers.values()}
        found = DataCalibration(data).moments(opened, names)
    batch = data.fetch(range(len(data)))
    x = first_inputs(load_model(folder, kind), batch["input_ids"], kind).double()
    x = x[batch["attention_mask"].bool()] if padded else x.flatten(0, 1)
    rows = torch.nn.functional.pad(x, (0, 1), value=1.0)
    assert found.keys() == names
    for moment in found.values():
        torch.testing.assert_close(moment, rows.mT @ rows / len(rows), rtol=1e-6, atol=1e-6)
        assert moment[-1, -1] == 1


@pytest.mark.parametrize("scope", ["attention", "block", "model"])
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_scrambled_model_is_brought_back(model, scope, tmp_path):
    a, b = model.save(tmp_path / "a", dtype=torch.float32 if scope == "model" else torch.float64), tmp_path / "b"
    isobasin.scramble(a, b, seed=1, condition=3.0, scope=scope, verify=False)
    found = isobasin.align(
        a, b, tmp_path / "out", scope=scope, objective="activations", calibration=DataCalibration(tokens())
    )
    assert found.verified.equal
    assert found.provenance["objective"] == "activations"
    before = sum(layer.statistics.distance_before for layer in found.layers)
    after = sum(layer.statistics.distance_after for layer in found.layers)
    # RMSNorm and embeddings are float32 inside transformers, and so is the data's view of the stream.
    assert after < (2e-2 if scope == "model" else 1e-6) * before


def test_there_must_be_data(tmp_path):
    a = MODELS[0].save(tmp_path / "a")
    with pytest.raises(IsobasinError, match=r"^objective activations needs data to weigh by: give --data$"):
        isobasin.align(a, a, objective="activations")


def test_experts_that_are_stored_one_by_one_read_what_their_router_reads(tmp_path):
    folder = variant("mixtral").save(tmp_path / "a", dtype=torch.float32)
    block = "model.layers.0.block_sparse_moe"
    router, *experts = (
        f"{block}.gate.weight",
        *(f"{block}.experts.{e}.{w}.weight" for e in (0, 2) for w in ("w1", "w3")),
    )
    with open_model(folder) as opened:
        found = DataCalibration(tokens()).moments(opened, [router, *experts])
    for name in experts:
        assert torch.allclose(found[name], found[router], atol=1e-12)
