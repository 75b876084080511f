"""Four one-layer transformers that add modulo 113, trained apart: every pair aligned in every way, and refined.

    python benchmarks/group_composition.py CHECKPOINTS/group_composition_C113 -o group-composition.json

The models (github.com/bilal-chughtai/rep-theory-mech-interp) have no normalisation, so their residual streams move by
GL(128). Alignments see 30 % of all 113² sums; losses and accuracies along the lines are those of the other 70 %. Pairs
that OUT already has are left as they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import isobasin
from isobasin import Along, Layout, Projection, Role
from isobasin.checkpoints.output import replace_text
from isobasin.lines.path import points
from isobasin.records.curves import height
from isobasin.refinement.recipe import Refining
from isobasin.refinement.tensors import TensorCalibration
from isobasin.symmetries.feedforward import Scale

MODULUS, HEADS, WIDTH, FEATURES, UNITS = 113, 4, 128, 32, 512
SEEDS = range(1, 5)
TRAINED = 0.3
Tensors = Mapping[str, Tensor]


def specification() -> isobasin.Specification:
    """Attention, feed-forward block and residual stream, in TransformerLens's names."""

    def attention(letter: str) -> Projection:
        axes = "head feature width" if letter == "O" else "head width feature"
        layout = Layout(axes, (("head", HEADS), ("width", WIDTH), ("feature", FEATURES)))
        return Projection(f"blocks.0.attn.W_{letter}", f"blocks.0.attn.b_{letter}", layout)

    def units(name: str, axes: str) -> Projection:
        layout = Layout(axes, (("width", WIDTH), ("feature", UNITS)))
        return Projection(f"blocks.0.mlp.W_{name}", f"blocks.0.mlp.b_{name}", layout)

    linear = isobasin.BilinearGroup(FEATURES)
    group = isobasin.AttentionGroup(HEADS, 1, linear, linear, key_shift=True, value_shift=True)
    query, key, value, output = map(attention, "QKVO")
    block = isobasin.AttentionBlock(0, "attn", query, key, value, output, group)
    up, down = units("in", "width feature"), units("out", "feature width")
    scaled = isobasin.FeedForwardGroup(UNITS, Scale.positive)
    mlp = isobasin.FeedForwardBlock(0, "mlp", up, None, down, scaled, "relu")
    along = (
        *(Along(name, 1) for name in ("embed.W_E", "pos_embed.W_pos", "blocks.0.mlp.W_out")),
        Along("blocks.0.attn.W_O", 2),
        *(Along(name, 0) for name in ("blocks.0.attn.b_O", "blocks.0.mlp.b_out")),
        *(Along(f"blocks.0.attn.W_{letter}", 1, Role.covector) for letter in "QKV"),
        *(Along(name, 0, Role.covector) for name in ("blocks.0.mlp.W_in", "unembed.W_U")),
    )
    stream = isobasin.Stream(isobasin.StreamGroup(WIDTH, isobasin.Basis.linear), along)
    return isobasin.Specification("group-composition", (block,), (mlp,), stream)


def states(w: Tensors, sums: Tensor) -> Tensor:
    """The residual stream at "=", after all blocks, for the sums x + y of these indices 113 x + y."""
    attn = {name: w[f"blocks.0.attn.{name}"] for name in (f"{kind}_{letter}" for kind in "Wb" for letter in "QKVO")}
    numbers, place = w["embed.W_E"][:MODULUS], w["pos_embed.W_pos"]
    last = w["embed.W_E"][MODULUS] + place[2]
    tokens = torch.cat([numbers + place[0], numbers + place[1], last[None]])

    def project(x: Tensor, letter: str) -> Tensor:
        return torch.einsum("td,hdn->thn", x, attn[f"W_{letter}"]) + attn[f"b_{letter}"]

    # All tokens in all places are few: each is projected once, and every sum looks up its three.
    scores = torch.einsum("hn,thn->th", project(last[None], "Q")[0], project(tokens, "K")) / FEATURES**0.5
    read = torch.stack([sums // MODULUS, MODULUS + sums % MODULUS, torch.full_like(sums, 2 * MODULUS)], -1)
    shares = scores[read].softmax(1)
    mixed = (shares.unsqueeze(-1) * project(tokens, "V")[read]).sum(1)
    h = last + torch.einsum("shn,hnd->sd", mixed, attn["W_O"]) + attn["b_O"]
    hidden = (h @ w["blocks.0.mlp.W_in"] + w["blocks.0.mlp.b_in"]).relu()
    return h + hidden @ w["blocks.0.mlp.W_out"] + w["blocks.0.mlp.b_out"]


def logits(w: Tensors, sums: Tensor) -> Tensor:
    """What the model answers."""
    return states(w, sums) @ w["unembed.W_U"] + w["unembed.b_U"]


def answers(sums: Tensor) -> Tensor:
    """What it should answer."""
    return (sums // MODULUS + sums % MODULUS) % MODULUS


def loss(sums: Tensor, w: Tensors, rows: Tensor) -> Tensor:
    """The mean loss on some of these sums."""
    return functional.cross_entropy(logits(w, sums[rows]), answers(sums[rows]))


@torch.no_grad()
def curve(a: Tensors, b: Tensors, sums: Tensor) -> dict[str, Any]:
    """Loss and accuracy along the line."""
    losses: list[float] = []
    accuracies: list[float] = []
    for t in points():
        found = logits({name: torch.lerp(a[name], b[name], t).float() for name in a}, sums)
        losses.append(float(functional.cross_entropy(found, answers(sums))))
        accuracies.append(float((found.argmax(-1) == answers(sums)).double().mean()))
    barrier, middle = height(losses, points()), len(losses) // 2
    return {
        "barrier": barrier.height,
        "worst_t": barrier.t,
        "middle": losses[middle],
        "middle_accuracy": accuracies[middle],
        "least_accuracy": min(accuracies),
        "losses": losses,
        "accuracies": accuracies,
    }


class Ends(TensorCalibration):
    """Remembers all ends between which the loss chooses, the nearest of which would be taken without data."""

    nearest: isobasin.Alignment

    def scores(self, a: Any, b: Any, alignments: Sequence[isobasin.Alignment]) -> list[float]:
        """Those of the loss."""
        self.nearest = min(alignments, key=lambda found: found.total_distance()["after"])
        return super().scores(a, b, alignments)


def aligned(a: Tensors, b: Tensors, train: Tensor, test: Tensor, how: Refining) -> dict[str, Any]:
    """One pair in every way, with what each took in seconds of wall time, and how far it changes the moved model."""
    described, examples = specification(), partial(loss, train)
    rows: dict[str, Any] = {"none": curve(a, b, test)}

    def add(name: str, move: isobasin.Alignment, seconds: float) -> None:
        moved = move.moved_tensors(b, described)
        rows[name] = {**curve(a, moved, test), "seconds": seconds, "outputs_changed": _apart(b, moved, test)}

    for name in ("heads", "orthogonal", "paper", "gauss-newton"):
        began = time.perf_counter()
        found = isobasin.align_tensors(a, b, described, method=name)
        add(name, found, time.perf_counter() - began)
    began, ends = time.perf_counter(), Ends(examples, len(train))
    chosen = isobasin.align_tensors(a, b, described, scope="model", calibration=ends)
    seconds = time.perf_counter() - began
    add("model", ends.nearest, seconds)
    add("model-data", chosen, seconds)
    began = time.perf_counter()
    learned = isobasin.refine_tensors(a, b, described, examples, len(train), how=how, start=ends.nearest)
    add("refined", learned.alignment, time.perf_counter() - began)
    rows["refined"] |= {"steps": learned.refined.steps, "best_step": learned.refined.best_step}
    return rows


@torch.no_grad()
def _apart(a: Tensors, b: Tensors, sums: Tensor) -> float:
    """Largest difference of any output, over the largest output."""
    outputs = logits(a, sums), logits(b, sums)
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())


def frequencies(w: Tensors) -> dict[int, float]:
    """The frequencies that the embedding of numbers uses, with their share of its variance; those above 2 %."""
    numbers = w["embed.W_E"][:MODULUS]
    power = torch.fft.rfft(numbers - numbers.mean(0), dim=0).abs().square().sum(1)
    shares = (power / power.sum()).tolist()
    return {k: round(share, 4) for k, share in enumerate(shares) if share > 0.02}


def main() -> None:
    """Measure, print and write."""
    asked = _asked()
    torch.set_num_threads(asked.threads)
    order = torch.randperm(MODULUS**2, generator=torch.Generator().manual_seed(0))
    train, test = order.split([round(TRAINED * len(order)), len(order) - round(TRAINED * len(order))])
    # Every move here is linear in the weights, so that moving both ends gives no line that moving one doesn't.
    how = Refining(asked.steps, asked.batch, asked.rate, both=False, every=100, minutes=0)
    models = {seed: _read(asked.checkpoints / f"seed{seed}.pt") for seed in SEEDS}
    content: dict[str, Any] = {
        "asked": {"steps": how.steps, "batch": how.batch_size, "rate": how.rate, "threads": asked.threads},
        "examples": {"learned_from": len(train), "measured_on": len(test)},
        "frequencies": {seed: frequencies(w) for seed, w in models.items()},
        "pairs": {},
    }
    if asked.output.is_file():
        content["pairs"] = json.loads(asked.output.read_text(encoding="utf-8"))["pairs"]
    for i, j in itertools.combinations(SEEDS, 2):
        if f"{i}-{j}" in content["pairs"]:
            continue
        content["pairs"][f"{i}-{j}"] = rows = aligned(models[i], models[j], train, test, how)
        for name, row in rows.items():
            figures = "".join(f"{row[key]:>10.4f}" for key in ("barrier", "middle_accuracy", "least_accuracy"))
            print(f"{i}-{j} {name:<14}{figures}{row.get('seconds', 0.0):>9.1f} s", flush=True)
        replace_text(asked.output, json.dumps(content, indent=2) + "\n")


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors that the model computes with, in float64: what moves are compared by is their exactness."""
    stored = torch.load(file, map_location="cpu", weights_only=True)
    unused = ("x_embed", "y_embed", "blocks.0.attn.mask", "blocks.0.attn.IGNORE")
    return {name: tensor.double() for name, tensor in stored.items() if name not in unused}


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
