"""`python -m tests.fuzz`: cases until the time is up, or one of them again."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import tempfile
from itertools import count
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--kinds", nargs="*", help="kinds of damage; all by default")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failing cases are kept")
    parser.add_argument("--count", type=int, help="how many cases at most")
    parser.add_argument("--case", type=int, help="run only the case of this number")
    parser.add_argument("--replay", type=Path, help="run a kept case again, on the inputs that were kept")
    return parser.parse_args()


def main() -> int:
    import torch
    from transformers.utils import logging

    from . import campaign, case, replay

    arguments = _arguments()
    torch.set_num_threads(1)
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    faulthandler.enable()
    if arguments.replay is not None:
        return replay.again(arguments.replay)
    with tempfile.TemporaryDirectory(prefix="fuzz-home-") as folder:
        home = Path(folder)
        start = arguments.start if arguments.case is None else arguments.case
        number = arguments.count if arguments.case is None else 1
        found = campaign.run(
            home,
            arguments.seed,
            count(start) if number is None else range(start, start + number),
            seconds=arguments.seconds,
            kinds=arguments.kinds or case.KINDS,
            keep=arguments.keep.absolute(),
            tell=lambda line: print(line, flush=True),
        )
    print(found.table())
    print(f"{found.runs} runs with seed {arguments.seed}, {len(found.failures)} broke a promise")
    if found.failures:
        print(f"kept in {arguments.keep}; again: python -m tests.fuzz --replay {arguments.keep}/SEED-NUMBER")
    return 1 if found.failures else 0


sys.exit(main())
