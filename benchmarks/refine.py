"""One step of `refine` beside one plain training step of the same model and batch: the ratio, and the share of parts.

    python benchmarks/refine.py A B --batch 32 --length 128

A and B are checkpoints of one decoder; without them two random Llamas of `--width` and `--layers` stand for them. A
training step is a forward pass, a backward pass and AdamW in the type that models are loaded in.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.choices import TaskKind
from isobasin.model import open_model
from isobasin.refinement.descent import Descent
from isobasin.refinement.line import ModuleLine
from isobasin.refinement.recipe import Refining
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.kind import load_model
from isobasin.tasks.options import DataFacts


class Reads(TorchDispatchMode):
    """Counts how often a tensor's value is asked for, for which a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Measure and print."""
    asked = _asked()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        a, b = (asked.a, asked.b) if asked.a else _random(Path(folder), asked)
        train = _training(a, asked)
        kept = _memory()
        _refining(a, b, asked, train)
        print(f"peak memory: {kept:.0f} MiB after training steps, {_memory():.0f} MiB after steps of refine")


def _training(folder: Any, asked: argparse.Namespace) -> float:
    """Seconds of a training step."""
    model: Any = load_model(folder, TaskKind.causal_lm, asked.device).train()
    tokens = _tokens(model.config.vocab_size, asked.batch, asked.length).to(asked.device)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        adam.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        adam.step()

    return _best(asked, step)


def _refining(first: Any, second: Any, asked: argparse.Namespace, train: float) -> None:
    """Steps of refine, whole and in parts."""
    with open_model(first) as a, open_model(second) as b:
        start = isobasin.random_alignment(second, condition=1.5, scope=asked.scope)
        line = ModuleLine.between(
            a,
            b,
            start,
            TaskKind.causal_lm,
            moves=(True, True),
            device=asked.device,
            mixed_precision=asked.mixed_precision,
        )
    module: Any = line.module
    tokens = _tokens(module.config.vocab_size, 2 * asked.batch, asked.length)
    facts = DataFacts("random", None, "causal-lm", len(tokens), "none")
    examples = TensorExamples(TaskKind.causal_lm, facts, {"input_ids": tokens, "labels": tokens})
    descent = Descent(line, examples, Refining(batch_size=asked.batch))
    batch = examples.fetch(range(asked.batch))

    def timed(work: Callable[[], object]) -> float:
        return _best(asked, work)

    step = timed(descent.step)
    moved = timed(lambda: [end.tensors() for end in line.ends])
    to_point = timed(lambda: line.at(0.5))
    point = list(dict.fromkeys(x for x in line.at(0.5).values() if x.requires_grad))
    to_coordinates = timed(lambda: _back(point, line))
    forward = timed(lambda: line.loss(0.5, batch)) - to_point
    whole = timed(lambda: line.divergence(0.5, batch)) - to_point - forward
    backward = timed(lambda: line.loss(0.5, batch).backward()) - to_point - forward - to_coordinates
    adam = timed(lambda: [optimiser.step() for optimiser in descent.optimisers])
    with Reads() as reads:
        descent.step()
    descent.know(lambda *_: None)
    knowing = timed(descent.step)
    print(f"training step {1e3 * train:8.1f} ms")
    print(f"refine step   {1e3 * step:8.1f} ms, {step / train:.2f} times as long, {reads.count} values read")
    print(f"  once predictions of all examples are known {1e3 * knowing:8.1f} ms, {knowing / train:.2f} times")
    parts = {
        "ends moved": moved,
        "interpolated and cast": to_point - moved,
        "gradient of both": to_coordinates,
        "forward": forward,
        "backward": backward,
        "what the ends predict": whole,
        "optimiser": adam,
    }
    for name, seconds in (*parts.items(), ("the rest", step - sum(parts.values()))):
        print(f"  {name:<22}{1e3 * seconds:8.1f} ms  {seconds / step:6.1%}")


def _back(point: list[torch.Tensor], line: ModuleLine) -> None:
    """From slopes of a point to those of the coordinates; the graph is kept for the next time."""
    torch.autograd.grad(point, line.coordinates(), [torch.ones_like(x) for x in point], retain_graph=True)


def _tokens(vocabulary: int, count: int, length: int) -> torch.Tensor:
    return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(0))


def _random(folder: Path, asked: argparse.Namespace) -> list[Path]:
    config = {
        "hidden_size": asked.width,
        "num_hidden_layers": asked.layers,
        "num_attention_heads": asked.width // 32,
        "num_key_value_heads": asked.width // 64,
        "intermediate_size": 11 * asked.width // 4,
        "tie_word_embeddings": False,
    }
    model = tiny("llama", "measured", config=config)
    return [model.save(folder / str(seed), seed, dtype=torch.float32) for seed in (0, 1)]


def _best(asked: argparse.Namespace, work: Callable[[], object]) -> float:
    """Shortest of several times: of a GPU by the clock, of a CPU by what this process got of it."""
    clock = time.perf_counter if asked.device == "cuda" else time.process_time
    found: list[float] = []
    for _ in range(asked.rounds):
        began = clock()
        work()
        if asked.device == "cuda":
            torch.cuda.synchronize()
        found.append(clock() - began)
    return min(found)


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", nargs="?")
    parser.add_argument("b", nargs="?")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scope", default="model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mixed-precision", action="store_true", help="forward passes of refine in bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
