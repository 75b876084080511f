"""The certificate of every family and variant, as the table of docs/certify.md; exit code 1 if one isn't exact.

Run by `make certify`; model types as arguments choose some.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

from isobasin.architectures.examples import EXAMPLES
from isobasin.certification.certify import BlockCertificate, Certificate, certify, variants

COLUMNS = ("family", "attention: stated", "measured", "feed-forward: stated", "measured", "least gap", "verdict")


def row(found: Certificate) -> tuple[str, ...]:
    """The counts of one model's blocks, different ones after each other, and its least gap."""
    counts = [
        distinct((block for block in found.blocks if block.kind == kind), count)
        for kind in ("attention", "feed-forward")
        for count in (lambda block: block.stated, lambda block: block.measured)
    ]
    gap = min(min(block.gap, block.hidden_gap) for block in found.blocks)
    verdicts = "; ".join(dict.fromkeys(block.verdict for block in found.blocks))
    return found.name, *counts, f"{gap:.0e}", verdicts


def distinct(blocks: Iterable[BlockCertificate], count: Callable[[BlockCertificate], int]) -> str:
    """The different values of a count, in the order of the layers."""
    return ", ".join(dict.fromkeys(str(count(block)) for block in blocks)) or "–"


def main() -> int:
    """Certify all or the chosen ones, and print a line for each as soon as it is done."""
    chosen = [name for model_type in sys.argv[1:] for name in variants(model_type)]
    print("|", " | ".join(COLUMNS), "|")
    print("|---|---:|---:|---:|---:|---:|---|")
    exact = True
    for model in EXAMPLES:
        if chosen and str(model) not in chosen:
            continue
        start = time.perf_counter()
        found = certify(str(model))
        exact &= found.exact
        print("|", " | ".join(row(found)), "|", flush=True)
        print(f"{model}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
