"""Merges of a fine-tune with a sibling that was locked or rotated: loss against the condition number of the lock.

    python benchmarks/locked.py CHECKPOINTS --data tinyshakespeare.txt --home siblings -o results/locked

Of each base, two fine-tunes on halves of the training data. The second is locked by random maps of its heads
(`isobasin scramble --condition`), or rotated as quantisation tools do it ("Hadamard"), in its stream alone ("rotated")
or in everything that moves ("all"), and merged with the first: as it is, after `align --method paper`, and after
`align`. CHECKPOINTS has scratch/llama-seed0 and scratch/gpt2-seed0; the base of the third kind, a ViT on scikit-learn's
digits, is trained here. OUT/locked.jsonl is gone on with; OUT/table.md and OUT/locked.png are written anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from characters import LENGTH, tokens, train, windows
from copies import load, moved
from torch import Tensor

import isobasin
from isobasin.checkpoints.output import replace_text
from isobasin.choices import Scope
from isobasin.model import open_model
from isobasin.quantisation.starts import at_random

STEPS, RATE = 100, 3e-4
# As quantisation tools do it: a random Hadamard matrix for the stream, rotations within heads, folded normalisations.
HADAMARD = "Hadamard"
METHODS = {"plain": None, "paper": {"method": "paper"}, "isobasin": {}}
State = dict[str, Tensor]


def linear(base: State, a: State, b: State) -> State:
    """The mean."""
    return {name: (x + b[name]) / 2 for name, x in a.items()}


def slerp(base: State, a: State, b: State) -> State:
    """The middle of the arc between two tensors, as mergekit has it: tensors that are nearly parallel are averaged."""

    def middle(x: Tensor, y: Tensor) -> Tensor:
        cosine = torch.cosine_similarity(x.flatten(), y.flatten(), dim=0)
        return (x + y) / 2 if cosine > 0.9995 else (x + y) / (2 * (cosine.clamp(min=-0.999).acos() / 2).cos())

    return {name: middle(x, b[name]) for name, x in a.items()}


def task_arithmetic(base: State, a: State, b: State) -> State:
    """The base and 0.7 of what both fine-tunes changed."""
    return {name: base[name] + 0.7 * (x + b[name] - 2 * base[name]) for name, x in a.items()}


MERGES: dict[str, Callable[[State, State, State], State]] = {
    "linear": linear,
    "SLERP": slerp,
    "task arithmetic": task_arithmetic,
}


@dataclass(frozen=True)
class Family:
    """A base with two fine-tunes, and what their merges are measured by.

    Attributes:
        name: What it is called.
        base, first, second: The folders.
        read: Reads a folder.
        loss: Of a model, on held-out data.
    """

    name: str
    base: Path
    first: Path
    second: Path
    read: Callable[[Path], Any]
    loss: Callable[[Any], float]


def language(name: str, base: Path, data: Path, home: Path, seed: int) -> Family:
    """Fine-tunes of a character model on halves of its text."""
    ids = tokens(base, data)
    half, end = len(ids) * 45 // 100, len(ids) * 95 // 100
    held_out = windows(ids[end:], LENGTH)[:128]
    tuned = [home / f"{base.name} tuned {part} {seed}" for part in (0, 1)]
    for part, target in enumerate(tuned):
        if not target.exists():
            train(load(base), ids[part * half : (part + 1) * half], STEPS, RATE, seed).save_pretrained(target)

    @torch.no_grad()
    def loss(model: Any) -> float:
        return float(model.eval()(input_ids=held_out, labels=held_out).loss)

    return Family(name, base, tuned[0], tuned[1], load, loss)


def digits(home: Path, seed: int) -> Family:
    """A ViT trained on digits, and fine-tunes on halves of the noisy images."""
    from sklearn.datasets import load_digits

    read = transformers.ViTForImageClassification.from_pretrained
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    targets, order = torch.tensor(labels), torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, half = order[:400], (len(order) - 400) // 2

    def fitted(model: Any, rows: Tensor, steps: int, rate: float, noise: float, target: Path) -> None:
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.train().parameters(), rate)
        for _ in range(steps):
            some = rows[torch.randint(len(rows), (64,), generator=generator)]
            shown = pixels[some] + noise * torch.randn(64, 1, 8, 8, generator=generator)
            optimizer.zero_grad()
            model(pixel_values=shown, labels=targets[some]).loss.backward()
            optimizer.step()
        model.save_pretrained(target)

    base = home / "vit-digits"
    if not base.exists():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 128,
        }
        sizes |= {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
        config = transformers.ViTConfig(**sizes)
        fitted(transformers.ViTForImageClassification(config), order[400:], 400, 1e-3, 0.2, base)
    tuned = [home / f"vit-digits tuned {part} {seed}" for part in (0, 1)]
    for part, target in enumerate(tuned):
        if not target.exists():
            fitted(read(base), order[400 + part * half :][:half], STEPS, RATE, 0.4, target)

    @torch.no_grad()
    def loss(model: Any) -> float:
        return float(model.eval()(pixel_values=pixels[test], labels=targets[test]).loss)

    return Family("ViT", base, tuned[0], tuned[1], read, loss)


def merges(family: Family, second: Path) -> dict[str, float]:
    """The losses of all merges of the first fine-tune with a form of the second."""
    model = family.read(family.first)
    states = [family.read(folder).state_dict() for folder in (family.base, family.first, second)]
    found: dict[str, float] = {}
    for name, merge in MERGES.items():
        result = copy.deepcopy(model)
        result.load_state_dict(merge(*states))
        found[name] = family.loss(result)
    return found


def measured(
    family: Family, home: Path, seed: int, conditions: list[float], done: set[tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    """Rows of one family and seed: every lock, every way to open it."""
    own = {"family": family.name, "seed": seed}
    ends = {"first": family.loss(family.read(family.first)), "second": family.loss(family.read(family.second))}
    if (family.name, str(seed), "unlocked", "plain") not in done:
        yield {**own, "lock": "unlocked", "method": "plain", **ends, **merges(family, family.second)}
    kinds: list[tuple[str, dict[str, Any], dict[str, dict[str, Any] | None]]] = [
        (f"{condition:.0e}", {"condition": condition}, METHODS) for condition in conditions
    ]
    whole = {"plain": None, "isobasin": {}, "isobasin --scope model": {"scope": "model"}}
    kinds += [(name, {}, whole) for name in (HADAMARD, "rotated", "all")]
    for lock, how, methods in kinds:
        locked = home / f"{family.second.name}, {lock}"
        if not locked.exists():
            if how:
                isobasin.scramble(family.second, locked, seed=seed, verify=False, **how)
            elif lock == HADAMARD:
                with open_model(family.second) as model:
                    found = at_random(model, Scope.model, seed)
                found.apply(family.second, locked, dtype=torch.float32)
            else:
                moved(family.second, locked, lock, seed, read=family.read)
        for method, options in methods.items():
            if (family.name, str(seed), lock, method) in done:
                continue
            second = locked
            if options is not None:
                second = home / "opened"
                limit = {"max_condition": math.inf, "verify": False, "force": True}
                isobasin.align(family.first, locked, second, **limit, **options)
            loss = {"locked": family.loss(family.read(locked))}
            yield {**own, "lock": lock, "method": method, **loss, **merges(family, second)}


def table(rows: list[dict[str, Any]]) -> str:
    """The least and the largest loss of all seeds, or the one that they have in three digits."""
    lines = [f"| family | lock | method | {' | '.join(MERGES)} | seeds |", "|---|---|---|" + "---|" * (len(MERGES) + 1)]
    for key in dict.fromkeys((row["family"], row["lock"], row["method"]) for row in rows):
        own = [row for row in rows if (row["family"], row["lock"], row["method"]) == key]
        cells = (_spread([row[name] for row in own]) for name in MERGES)
        lines.append(f"| {' | '.join(key)} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} – {high}"


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Losses of merges against the condition number, a column for each family: means over seeds, and their span."""
    from matplotlib import pyplot

    families = list(dict.fromkeys(row["family"] for row in rows))
    size = 3.4 * len(families), 2.4 * len(MERGES)
    shape = len(MERGES), len(families)
    _, panels = pyplot.subplots(*shape, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey="col")
    for line, merge in zip(panels, MERGES, strict=True):
        for panel, name in zip(line, families, strict=True):
            own = [row for row in rows if row["family"] == name]
            for method in METHODS:
                found = [row for row in own if row["method"] == method and row["lock"][0].isdigit()]
                at = sorted({float(row["lock"]) for row in found})
                values = [[row[merge] for row in found if float(row["lock"]) == x] for x in at]
                panel.plot(at, [sum(some) / len(some) for some in values], marker="o", markersize=4, label=method)
                panel.fill_between(at, [min(some) for some in values], [max(some) for some in values], alpha=0.2)
            unlocked = [row[merge] for row in own if row["lock"] == "unlocked"]
            panel.axhline(sum(unlocked) / len(unlocked), color="gray", linestyle=":", label="not locked")
            panel.set(xscale="log")
        line[0].set_ylabel(f"loss, {merge}")
    for panel, below, name in zip(panels[0], panels[-1], families, strict=True):
        panel.set_title(name)
        below.set_xlabel("condition number of the lock")
    panels[0][0].legend(fontsize=8)
    pyplot.savefig(path, dpi=120)


def main() -> None:
    """Measure what isn't there yet, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the text that the language models were trained on")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True, help="folder for fine-tunes and locked models")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--conditions", type=float, nargs="+", default=[10.0**n for n in range(7)])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    for folder in (asked.output, asked.home):
        folder.mkdir(parents=True, exist_ok=True)
    file = asked.output / "locked.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["family"], str(row["seed"]), row["lock"], row["method"]) for row in rows}
    for seed in range(asked.seeds):
        families = [digits(asked.home, seed)]
        for name, base in (("Llama", "llama-seed0"), ("GPT-2", "gpt2-seed0")):
            folder = asked.checkpoints / "scratch" / base
            families.append(language(name, folder, asked.data, asked.home, seed))
        for family in families:
            for row in measured(family, asked.home, seed, asked.conditions, done):
                rows.append(row)
                with file.open("a") as opened:
                    opened.write(json.dumps(row) + "\n")
    replace_text(asked.output / "table.md", table(rows))
    figure(rows, asked.output / "locked.png")


if __name__ == "__main__":
    main()
