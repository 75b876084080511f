"""A gauged checkpoint through transformers' own quantisation (torchao, on the CPU), beside rounding it here.

    isobasin gauge MODEL --for rtn3 --data text.txt -o GAUGED
    python benchmarks/quantised.py MODEL GAUGED --data text.txt --for rtn3

MODEL is a causal language model whose projections are `nn.Linear`, as Llama's; torchao converts no others. Both
checkpoints are loaded with `TorchAoConfig`: nothing of isobasin runs then.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.util import find_spec
from typing import Any

import torch
import transformers

from isobasin.choices import TaskKind
from isobasin.model import open_model
from isobasin.quantisation.linears import linears, rounded
from isobasin.quantisation.quantiser import Quantiser
from isobasin.refinement.names import named_parameters, names_in_memory
from isobasin.tasks.data import DataOptions, prepare, read_dataset
from isobasin.tasks.examples import Examples
from isobasin.tasks.losses import evaluate
from isobasin.tasks.processors import load_processor


def main() -> None:
    """Print the loss of either checkpoint as it is, rounded here, and quantised by torchao."""
    asked = _asked()
    if find_spec("torchao") is None:
        sys.exit("torchao is not installed, so there is nothing to show: pip install torchao")
    options = DataOptions(asked.data, max_examples=asked.max_examples, length=asked.length, seed=0)
    kind, rounds = TaskKind.causal_lm, Quantiser.of(asked.rounding, asked.group)
    processor = load_processor(asked.model, kind, asked.tokenizer)
    config = transformers.AutoConfig.from_pretrained(asked.model)
    examples = prepare(read_dataset(options, kind), kind, processor, options, config=config)
    print(f"{'':30} {'as it is':>10} {'isobasin':>10} {'torchao':>10}   loss, {rounds}")
    for folder in (asked.model, asked.gauged):
        plain, ours = _loaded(folder), _loaded(folder)
        _round(folder, ours, kind, rounds)
        theirs = _loaded(folder, quantization_config=transformers.TorchAoConfig(_torchaos(rounds)))
        losses = (_loss(module, examples) for module in (plain, ours, theirs))
        print(f"{folder[-30:]:30} " + " ".join(f"{loss:10.4f}" for loss in losses), flush=True)


def _torchaos(rounds: Quantiser) -> Any:
    """The same quantiser as torchao has it: symmetric, and the scale that `MappingType.SYMMETRIC` takes."""
    # An experiment's own package, which the environment of the tests lacks.
    torchao = importlib.import_module("torchao.quantization")
    if not rounds.rounding.startswith("rtn"):
        sys.exit(f"{rounds.rounding}: torchao computes with it on a GPU only; give rtn2, rtn3 or rtn4")
    kind = getattr(torch, f"int{rounds.rounding[-1]}")
    granularity = torchao.PerGroup(rounds.group) if rounds.group else torchao.PerAxis(0)
    return torchao.IntxWeightOnlyConfig(kind, granularity=granularity)


def _loaded(folder: str, **more: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval()


@torch.no_grad()
def _round(folder: str, module: Any, kind: TaskKind, rounds: Quantiser) -> None:
    """Round a loaded model's weights in place."""
    with open_model(folder) as model:
        weights, names, held = linears(model), names_in_memory(model, kind), named_parameters(module)
        tensors = {one.weight: held[names[one.weight][0].parameter] for one in weights}
    for name, x in rounded(tensors, weights, rounds).items():
        held[names[name][0].parameter].copy_(x)


def _loss(module: Any, examples: Examples) -> float:
    return evaluate(module, examples, batch_size=32, device="cpu", temperature=False).loss


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("gauged")
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer")
    parser.add_argument("--for", dest="rounding", default="rtn4")
    parser.add_argument("--group", type=int)
    parser.add_argument("--max-examples", type=int, default=256)
    parser.add_argument("--length", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
