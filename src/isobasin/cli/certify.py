"""`isobasin certify`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.cli import options
from isobasin.cli.certify_report import certify_report
from isobasin.cli.console import answer, working

EXAMPLE = "isobasin certify llama"


def certify(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY|MODEL",
            help="A model type such as llama, of which a small random one is made; or a folder or hub id (ID@REVISION)",
        ),
    ],
    all_variants: Annotated[
        bool, typer.Option("--all-variants", help="Every variant of FAMILY that changes the group or the attention.")
    ] = False,
    seed: options.Seed = 0,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Measure whether the stated symmetry groups are exactly right: exit code 0 if all are, 1 if not."""
    with working("measuring") as progress:
        from isobasin.certification.certify import certify, variants

        names = variants(source) if all_variants else [source]
        found = [certify(name, seed=seed, allow_pickle=allow_pickle, progress=progress) for name in names]
    exact = all(certificate.exact for certificate in found)
    content = {"exact": exact, "certificates": [certificate.to_json() for certificate in found]}
    report = [line for certificate in found for line in ("", *certify_report(certificate))][1:]
    answer(lambda: content, report, as_json, holds=exact)
