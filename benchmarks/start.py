"""How long commands take to start, in processor seconds, against what Python needs for torch alone.

    python benchmarks/start.py [--rounds 5] [--folder DIR]

"first tensor" ends where `align` reads its first one: imports, both configurations, both headers. "first byte" ends
where the system is asked to read the first weights ahead, while all that goes on. The processor time of a child is that
of all its threads, so it doesn't grow with what else the machine does as wall time would.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from checkpoints import make

TINY = {
    "class": "LlamaForCausalLM",
    "config": {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 128, "tie_word_embeddings": False,
    },
}  # fmt: skip

PROGRAM = "import sys; sys.argv = ['isobasin', *sys.argv[1:]]; from isobasin.cli.main import run; run()"
FIRST_TENSOR = """
import os
from isobasin.checkpoints import Checkpoint
Checkpoint.read = lambda *args: os._exit(0)
""" + PROGRAM  # fmt: skip
FIRST_BYTE = """
import os
from isobasin import ahead
ahead._ask = lambda *args: os._exit(0)
""" + PROGRAM  # fmt: skip


def seconds(code: str, *arguments: str) -> float:
    """Processor seconds of a Python process that runs some code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(folder: Path, rounds: int) -> None:
    import torch

    a, b = (str(make(folder / f"tiny-{seed}", {**TINY, "dtype": torch.float32}, seed)) for seed in (0, 1))
    align = "align", a, b, "-o", str(folder / "out"), "--no-verify", "--device", "cpu"
    runs = {
        "python -c 'import torch'": ("import torch",),
        "transformers' configuration of a Llama": ("from transformers import LlamaConfig",),
        "isobasin --help": (PROGRAM, "--help"),
        "isobasin align --help": (PROGRAM, "align", "--help"),
        "isobasin align, to its first byte": (FIRST_BYTE, *align),
        "isobasin align, to its first tensor": (FIRST_TENSOR, *align),
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, arguments in runs.items():
            best[name] = min(best[name], seconds(*arguments))
    floor = best["python -c 'import torch'"]
    for name, found in best.items():
        print(f"{name}: {found:.2f} s, {found / floor:.2f} of torch alone")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        main(Path(scratch), chosen.rounds)
