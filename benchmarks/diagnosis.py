"""What `isobasin diagnose` says of conversions that went wrong on purpose, and of ones that didn't, in every family.

Run: python benchmarks/diagnosis.py OUT [--seeds 0 1 2] [--families llama gpt2] [--pairs 6] [--every 6] [--turned]
(15 seconds of processor time for each family and seed)

OUT gets `cases.csv`, a row for each conversion, and `table.md`. A diagnosis is right if it names the defects that were
planted and no others, and nothing else is left; of a copy, a moved copy or a fine-tune if it names no defect. With
--turned only copies whose residual stream was turned are judged, with each defect that is known there.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import USUAL
from isobasin.architectures.tiny import TinyModel
from isobasin.errors import IsobasinError
from isobasin.inputs import model_inputs
from isobasin.testing.planted import PLANTS, Plant, plant

FIELDS: tuple[str, ...] = ("kind", "what", "family", "seed", "right", "judgement", "found", "left", "seconds")
NOISE = (1e-4, 1e-2, 0.3)
STEPS = 5
# What would hide another defect, or undo it.
_ALONE = ("layer twice",)
# What is known beside a turned residual stream.
_TURNED = ("layers swapped", "layer twice", "rope base", "epsilon", "activation")
_OPPOSED = ({"folded", "unfolded"},)


def judged(a: Path, b: Path, plants: Sequence[Plant]) -> dict[str, Any]:
    """What is said of a conversion, and whether it is right."""
    start = time.process_time()
    try:
        found = isobasin.diagnose(a, b)
    except IsobasinError as error:
        return {"right": False, "judgement": "error", "found": str(error), "left": "", "seconds": 0}
    kinds = {finding.defect for finding in found.findings}
    allowed = frozenset[Any]().union(*(one.accepted for one in plants))
    right = kinds <= allowed and all(one.accepted & kinds for one in plants) and not (plants and found.left)
    return {
        "right": right,
        "judgement": str(found.judgement),
        "found": " + ".join(sorted(kinds)),
        "left": len(found.left),
        "seconds": f"{time.process_time() - start:.2f}",
    }


def planted(a: Path, home: Path, plants: Sequence[Plant], seed: int) -> dict[str, Any] | None:
    """A conversion with some defects, judged; None where there is no place for them."""
    folder = home / "conversion"
    shutil.rmtree(folder, ignore_errors=True)
    ordered = tuple(sorted(plants, key=lambda one: "layers" not in one.accepted))
    b = plant(a, folder, ordered, seed)
    return None if b is None else judged(ORIGINAL.get(a, a), b, plants)


ORIGINAL: dict[Path, Path] = {}
"""Of moved copies what they are copies of."""


def pairs(names: Iterable[str], count: int, seed: int) -> list[tuple[str, str]]:
    """Some pairs of defects of different kinds."""
    fit = [
        (x, y)
        for x, y in combinations([name for name in names if name not in _ALONE], 2)
        if not PLANTS[x].accepted & PLANTS[y].accepted
        and not any(opposed == {*map(str, PLANTS[x].accepted | PLANTS[y].accepted)} for opposed in _OPPOSED)
    ]
    return random.Random(seed).sample(fit, min(count, len(fit)))


def controls(model: TinyModel, a: Path, home: Path, seed: int) -> Iterator[tuple[str, Path]]:
    """Conversions without a defect."""
    yield "copy", a
    for scope in ("attention", "block", "model"):
        try:
            isobasin.scramble(a, home / scope, scope=scope, seed=seed, condition=10, verify=False, force=True)
        except IsobasinError:
            continue
        yield f"moved, {scope}", home / scope
    for size in NOISE:
        yield f"noise of {size:g}", noisy(a, home / f"noise {size}", size, seed)
    yield f"{STEPS} steps of training", trained(model, home / "trained", seed)


def noisy(a: Path, folder: Path, size: float, seed: int) -> Path:
    """A copy with normal noise of a share of each tensor's root mean square."""
    generator = torch.Generator().manual_seed(seed)
    shutil.copytree(a, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    for name, x in tensors.items():
        if x.is_floating_point():
            tensors[name] = x + size * x.square().mean().sqrt() * torch.randn(x.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def trained(model: TinyModel, folder: Path, seed: int) -> Path:
    """A copy after some steps of AdamW on the size of its outputs."""
    found = model.build(seed, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(found.parameters(), lr=1e-3)
    inputs = [given for _, given in model_inputs(found, seed)]
    for step in range(STEPS):
        optimizer.zero_grad()
        outputs = found(**inputs[step % len(inputs)]).to_tuple()
        floats = [x for x in outputs if isinstance(x, torch.Tensor) and x.is_floating_point() and x.requires_grad]
        floats[0].square().mean().backward()
        optimizer.step()
    found.save_pretrained(folder)
    return folder


def cases(model: TinyModel, home: Path, seed: int, count: int) -> Iterator[dict[str, Any]]:
    """All cases of one family and seed."""
    a = model.save(home / "original", seed, dtype=torch.float32)
    there: list[str] = []
    for name, one in PLANTS.items():
        found = planted(a, home, [one], seed)
        if found is not None:
            there.append(name)
            yield {"kind": "one defect", "what": name, **found}
    for names in pairs(there, count, seed):
        found = planted(a, home, [PLANTS[name] for name in names], seed)
        if found is not None:
            yield {"kind": "two defects", "what": " + ".join(names), **found}
    for what, b in controls(model, a, home, seed):
        yield {"kind": "no defect", "what": what, **judged(a, b, [])}
    moved = home / "block" if (home / "block").exists() else home / "attention"
    ORIGINAL[moved] = a
    for name in random.Random(seed).sample(there, min(3, len(there))):
        found = planted(moved, home, [PLANTS[name]], seed)
        if found is not None:
            yield {"kind": "moved, and a defect", "what": name, **found}


def turned(model: TinyModel, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Cases of a copy in another basis of the residual stream; none where nothing is known of that."""
    a, moved = model.save(home / "original", seed, dtype=torch.float32), home / "turned"
    try:
        isobasin.scramble(a, moved, scope="model", seed=seed, condition=10, verify=False)
    except IsobasinError:
        return
    ORIGINAL[moved] = a
    for name in _TURNED:
        found = planted(moved, home, [PLANTS[name]], seed)
        if found is not None:
            yield {"kind": "turned, and a defect", "what": name, **found}


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table: of each kind of case the share that is right, in all and by seed."""
    yield "| conversion | families | cases | right | by seed |\n|---|---|---|---|---|\n"
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        what = "" if row["kind"].startswith(("two", "moved", "turned")) else row["what"]
        groups[row["kind"], what].append(row)
        if what:
            groups[row["kind"], "**all**"].append(row)
    for (kind, what), found in groups.items():
        seeds = sorted({row["seed"] for row in found})
        shares = [_share([row for row in found if row["seed"] == seed]) for seed in seeds]
        families = len({row["family"] for row in found})
        name = (f"{kind}: {what}" if what else kind).replace("|", r"\|")
        yield f"| {name} | {families} | {len(found)} | {_share(found)} | {' / '.join(shares)} |\n"


def by_family(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Of every family, how many diagnoses of each kind are right, of how many."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    yield f"| family | {' | '.join(kinds)} |\n{'|---' * (1 + len(kinds))}|\n"
    for family in dict.fromkeys(row["family"] for row in rows):
        found = [row for row in rows if row["family"] == family]
        own = [[str(row["right"]) == "True" for row in found if row["kind"] == kind] for kind in kinds]
        yield f"| {family} | {' | '.join(f'{sum(some)} of {len(some)}' if some else '–' for some in own)} |\n"


def _share(rows: Sequence[dict[str, Any]]) -> str:
    return f"{100 * sum(str(row['right']) == 'True' for row in rows) / len(rows):.1f} %"


def main() -> None:
    """Judge all cases, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--families", nargs="+", default=list(USUAL))
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--every", type=int, default=1, help="of the families only every so many, others for each seed")
    parser.add_argument("--turned", action="store_true", help="only copies whose residual stream was turned")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with (given.out / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for seed in given.seeds:
            for family in given.families[seed :: given.every] if given.every > 1 else given.families:
                with tempfile.TemporaryDirectory() as home:
                    model = USUAL[family], Path(home), seed
                    for found in turned(*model) if given.turned else cases(*model, given.pairs):
                        rows.append({"family": family, "seed": seed, **found})
                        writer.writerow(rows[-1])
                        file.flush()
    (given.out / "table.md").write_text("".join([*table(rows), "\n", *by_family(rows)]))


if __name__ == "__main__":
    main()
