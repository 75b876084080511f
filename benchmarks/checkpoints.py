"""End to end on random checkpoints of real shapes: time against the floor, and peak memory against depth.

    python benchmarks/checkpoints.py time   [--threads 1] [--folder DIR]
    python benchmarks/checkpoints.py memory [--case align] [--folder DIR]
    python benchmarks/checkpoints.py verify [--threads 1] [--folder DIR]

The floor is what any aligner must do: read the attention of both checkpoints and the rest of the model, write the
model's bytes (timed here, on the same files), and the matrix products of matching and moving, counted and divided by
this machine's measured float64 rate: stage 1's products of stacked projections, one triangular factorisation per side
and head, and the moved projections. The solver's own iterations are not in the floor. `verify` is what comparing a
moved model takes, beside one forward pass of each on the same inputs, loaded as a whole before. All of it is processor
time, so that a busy machine changes little.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timing import best_of

import isobasin
from isobasin.checkpoints.shards import PIECE
from isobasin.inputs import model_inputs
from isobasin.model import Model, open_model
from isobasin.symmetries.groups import AttentionGroup

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-small": {
        "class": "GPT2LMHeadModel",
        "config": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257},
        "dtype": torch.float32,
    },
    "llama-1b": {
        "class": "LlamaForCausalLM",
        "config": {
            "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
        "dtype": torch.bfloat16,
    },
}  # fmt: skip

# Small outside its layers, so that what grows with them is seen.
DEEP: dict[str, Any] = {
    "class": "LlamaForCausalLM",
    "config": {
        "model_type": "llama", "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": 1024, "vocab_size": 4096, "tie_word_embeddings": False,
    },
    "dtype": torch.bfloat16,
}  # fmt: skip


def make(folder: Path, shape: dict[str, Any], seed: int, **changes: int) -> Path:
    """A random checkpoint of a real shape, one shard a few layers: normal weights of deviation 0.02."""
    import transformers

    entries: dict[str, Any] = {**shape["config"], **changes}
    config = transformers.AutoConfig.for_model(**entries)
    config.architectures = [shape["class"]]
    with torch.device("meta"):
        model = getattr(transformers, shape["class"])(config)
    generator = torch.Generator().manual_seed(seed)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    names = [name for name in model.state_dict() if name not in tied]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({**config.to_dict(), "architectures": [shape["class"]]}, default=str)
    )
    shards = [names[i : i + 40] for i in range(0, len(names), 40)]
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            n: torch.empty(model.state_dict()[n].shape).normal_(0, 0.02, generator=generator).to(shape["dtype"])
            for n in shard
        }
        save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def products(group: AttentionGroup, width: int) -> float:
    """Floating-point operations of one layer's matrix products that no aligner can do without."""
    h, g, s = group.heads, group.kv_heads, group.queries_per_kv
    n, m = group.query_key.features, group.value_output.features
    stage1 = 2 * width * ((h * n) ** 2 + (g * n) ** 2 + (g * m) ** 2 + (h * m) ** 2)
    if group.query_key.planes:  # only the same plane of two heads is compared: complex, so four times the real work
        stage1 = 2 * width * (4 * (n // 2) * (h**2 + g**2) + (g * m) ** 2 + (h * m) ** 2)
    factors = sum(2 * rows * (2 * k) ** 2 for rows, k in ((s * width, m), (width, m)))
    factors += 0 if group.query_key.planes else sum(2 * rows * (2 * n) ** 2 for rows in (s * width, width))
    moves = 2 * width * (h * m * m + g * m * m) + (0 if group.query_key.planes else 2 * width * (h * n * n + g * n * n))
    return stage1 + g * factors + moves


def measured_rate() -> float:
    """Float64 operations a second of a large matrix product."""
    x = torch.randn(2048, 2048, dtype=torch.float64)
    seconds, _ = best_of(3, lambda: x @ x, time.process_time)
    return 2 * 2048**3 / seconds


def copy_bytes(a: Model, b: Model, target: Path) -> None:
    """Read both models' attention and all of b, write b's bytes."""
    for model in (a, b):
        for block in model.specification.attention:
            model.stored(block)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in b.checkpoint.files:
        with (b.checkpoint.folder / file).open("rb") as source, (target / file).open("wb") as copy:
            while chunk := source.read(PIECE):
                copy.write(chunk)


def bench_time(folder: Path, threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    for name, shape in SHAPES.items():
        a, b = (make(folder / f"{name}-{seed}", shape, seed) for seed in (0, 1))
        near, sibling = folder / f"{name}-near", folder / f"{name}-sibling"
        isobasin.interpolate(a, b, 0.1, near)
        isobasin.scramble(near, sibling, seed=3, condition=10.0, verify=False)
        shutil.rmtree(near)
        rate = measured_rate()
        for kind, model in (("near and scrambled (0.9 A + 0.1 B)", sibling), ("independent", b)):
            with open_model(a) as one, open_model(model) as other:
                moving, _ = best_of(
                    rounds, lambda one=one, other=other: copy_bytes(one, other, folder / "copy"), time.process_time
                )
                flops = sum(products(block.group, block.width) for block in other.specification.attention)
            seconds, alignment = best_of(
                rounds,
                lambda a=a, model=model: isobasin.align(a, model, folder / "out", verify=False, force=True),
                time.process_time,
            )
            floor = moving + flops / rate
            steps = [layer.statistics.iterations for layer in alignment.layers]
            print(
                f"{name}, {kind}: {seconds:.2f} s, floor {floor:.2f} s (bytes {moving:.2f}, products "
                f"{flops / rate:.2f} at {rate / 1e9:.0f} GFLOP/s), ratio {seconds / floor:.2f}; "
                f"{min(steps)}-{max(steps)} steps; {threads} thread(s)"
            )


def bench_verify(folder: Path, threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    original = make(folder / "original", SHAPES["gpt2-small"], 0)
    for dtype in (torch.float32, torch.bfloat16):
        stored, moved = folder / f"stored-{dtype}", folder / f"moved-{dtype}"
        isobasin.scramble(original, stored, condition=10.0, dtype=dtype, verify=False)
        isobasin.scramble(stored, moved, seed=1, condition=10.0, verify=False)
        passes = 0.0
        for model in (stored, moved):
            held = transformers_model(model)
            inputs = [given for _, given in model_inputs(held, 0, crossed=False)]
            passes += best_of(rounds, lambda held=held, inputs=inputs: run(held, inputs), time.process_time)[0]
        seconds, verified = best_of(
            rounds, lambda stored=stored, moved=moved: isobasin.verify(stored, moved), time.process_time
        )
        print(
            f"gpt2-small, {dtype}: {seconds:.2f} s, forward passes {passes:.2f} s, ratio {seconds / passes:.2f}; "
            f"{verified.how}; {threads} thread(s)"
        )


def transformers_model(folder: Path) -> Any:
    """A checkpoint in memory, in float64."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


@torch.no_grad()
def run(model: Any, inputs: Sequence[dict[str, Any]]) -> None:
    """Forward passes, without a cache."""
    for given in inputs:
        model(**given, use_cache=False)


# What is measured of memory: name, and the command's call on two models and a folder to write to.
MEMORY: dict[str, Callable[[str, str, Path], Any]] = {
    "align": lambda a, b, out: isobasin.align(a, b, out, verify=False),
    "align, scope block": lambda a, b, out: isobasin.align(a, b, out, scope="block", verify=False),
    "align, scope model": lambda a, b, out: isobasin.align(a, b, out, scope="model", verify=False),
    "align, verified": lambda a, b, out: isobasin.align(a, b, out),
    "apply": lambda a, b, out: isobasin.apply(isobasin.Alignment.load(b), a, out, verify=False),
    "scramble": lambda a, b, out: isobasin.scramble(a, out, verify=False),
    "canonicalize": lambda a, b, out: isobasin.canonicalize(a, out, scope="block", verify=False),
    "equivalent": lambda a, b, out: isobasin.equivalent(a, b),
    "compare": lambda a, b, out: isobasin.compare(a, b),
    "fingerprint": lambda a, b, out: isobasin.fingerprint(a),
    "interpolate": lambda a, b, out: isobasin.interpolate(a, b, 0.5, out),
    "merge, scope attention": lambda a, b, out: isobasin.merge([a, b], out, force_unrelated=True, verify=False),
    "merge": lambda a, b, out: isobasin.merge([a, b], out, scope="block", force_unrelated=True, verify=False),
    "merge, space circuit": lambda a, b, out: isobasin.merge(
        [a, b], out, space="circuit", force_unrelated=True, verify=False
    ),
}
DEPTHS = 6, 24


def bench_memory(folder: Path, only: Sequence[str]) -> None:
    """Peak memory above the start of a process of its own, on a Llama and its scrambled copy of each depth."""
    pairs: dict[int, tuple[Path, Path]] = {}
    for layers in DEPTHS:
        a = make(folder / f"deep{layers}", DEEP, 0, num_hidden_layers=layers)
        pairs[layers] = a, folder / f"deep{layers}-scrambled"
        isobasin.scramble(a, pairs[layers][1], scope="block", verify=False)
        size = sum(f.stat().st_size for f in a.glob("*.safetensors")) / 2**20
        print(f"{layers} layers: {size:.0f} MiB a checkpoint")
    for case in only or MEMORY:
        peaks: list[float] = []
        for a, b in pairs.values():
            command = [sys.executable, __file__, "peak", str(a), str(b), "--case", case, "--folder", str(folder)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            found = json.loads(said)
            peaks.append((found["peak"] - found["start"]) / 2**20)
        print(f"{case}: {peaks[0]:.0f} and {peaks[1]:.0f} MiB, {peaks[1] / peaks[0]:.2f}", flush=True)


def peak_bytes() -> int:
    """Most memory that this process ever had; not getrusage's, which a child inherits from its parent."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak(folder: Path, case: str, a: str, b: str) -> None:
    """One case in this process; print its peak memory, before and after, in bytes."""
    # What is imported is no part of what a case adds.
    for module in ("transformers.models.llama.modeling_llama", "isobasin.verbs.merge"):
        importlib.import_module(module)
    call, start = MEMORY[case], peak_bytes()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        call(a, b, Path(scratch) / "out")
        print(json.dumps({"start": start, "peak": peak_bytes()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "memory", "verify", "peak"])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--case", action="append", default=[], choices=list(MEMORY), help="of memory, all by default")
    arguments = parser.parse_args()
    if arguments.what == "peak":
        peak(arguments.folder, arguments.case[0], *arguments.models)
    else:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            if arguments.what in ("time", "verify"):
                bench = bench_time if arguments.what == "time" else bench_verify
                bench(Path(scratch), arguments.threads, arguments.rounds)
            else:
                bench_memory(Path(scratch), arguments.case)
