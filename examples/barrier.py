"""Loss barriers from Python: two tiny models made from a configuration, and a loss of your own.

Runs as it is: `python examples/barrier.py`.
"""

from __future__ import annotations

import tempfile

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import isobasin
from isobasin.lines import LinearPath, barrier

torch.manual_seed(0)
config = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
reference = GPT2LMHeadModel(config).eval()
with torch.no_grad():
    for parameter in reference.parameters():
        parameter.normal_(std=0.4)
tokens = torch.randint(50, (64, 16))


def surprise(model: nn.Module) -> float:
    """How far a model's next tokens are from the reference's: any function of a model will do."""
    with torch.no_grad():
        wanted, found = (one(tokens).logits.log_softmax(-1) for one in (reference, model))
    return nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True).item() / tokens.shape[1]


with tempfile.TemporaryDirectory() as folder:
    # A disguised copy: the same function in other weights.
    isobasin.scramble(reference, f"{folder}/copy", seed=1)
    copy = GPT2LMHeadModel.from_pretrained(f"{folder}/copy").eval()
    isobasin.align(reference, copy, f"{folder}/aligned")
    aligned = GPT2LMHeadModel.from_pretrained(f"{folder}/aligned").eval()

for name, model in (("naive", copy), ("aligned", aligned)):
    curve = barrier(LinearPath.between(reference, model), surprise)
    print(f"{name}: the loss rises by {curve.height:.2g} at most, at t = {curve.worst_t:.2f}")
