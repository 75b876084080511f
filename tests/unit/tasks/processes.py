"""A program for several processes: evaluate what was saved, and write what each of them found."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator

from isobasin.choices import TaskKind
from isobasin.tasks.examples import TensorExamples
from isobasin.tasks.kind import load_model
from isobasin.tasks.losses import evaluate
from isobasin.tasks.options import DataFacts


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    for kind in ("causal-lm", "masked-lm"):
        tensors = torch.load(folder / f"{kind}.pt")
        facts = DataFacts("set", None, kind, len(tensors["labels"]), "", characters=2.0)
        model = load_model(folder / kind, kind)
        examples = TensorExamples(TaskKind(kind), facts, tensors)
        for size in (4, 1000):
            found = asdict(evaluate(model, examples, batch_size=size, accelerator=accelerator))
            found.pop("seconds")
            name = f"{kind}-{size}-{accelerator.num_processes}-{accelerator.process_index}.json"
            (folder / name).write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
