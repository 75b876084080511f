"""Every verb in many situations, as the table of docs/situations.md; exit code 1 if anything was wrong or crashed.

Run by `make situations`; model types as arguments choose some.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from isobasin.architectures.examples import EXAMPLES

from .kinds import KINDS, Tally


def main() -> int:
    """Go through the situations of all families or the chosen ones, and print the table."""
    chosen, tally, told = sys.argv[1:], Tally(), 0
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for model in EXAMPLES:
        if model.variant or (chosen and model.model_type not in chosen):
            continue
        for kind in KINDS:
            with tempfile.TemporaryDirectory(prefix="situations-") as work:
                for situation in kind(model, Path(work)):
                    tally.add(situation, Path(work))
        print(*tally.lines[told:], f"{model}: {tally.situations.total()} so far", sep="\n", file=sys.stderr, flush=True)
        told = len(tally.lines)
    print(*tally.table(), sep="\n")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
