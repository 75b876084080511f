"""`isobasin symmetry`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.cli import options
from isobasin.cli.console import answer, working
from isobasin.cli.symmetry_report import families_report, symmetry_report

EXAMPLE = "isobasin symmetry openai-community/gpt2"


def symmetry(
    model: Annotated[str | None, options.checkpoint("MODEL", "a checkpoint; it isn't changed.", weights=False)] = None,
    every_family: Annotated[
        bool, typer.Option("--families", help="The groups of every supported model type, instead of MODEL's.")
    ] = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Show the symmetry group of every layer and what share of the parameters is redundant."""
    if every_family == (model is not None):
        raise typer.BadParameter("give either MODEL or --families")
    with working("reading"):
        if model is None:
            from isobasin.verbs.families import all_families

            families = all_families()
            content, report = lambda: {"families": [f.to_json() for f in families]}, families_report(families)
        else:
            from isobasin.verbs.symmetry import symmetry

            found = symmetry(model, allow_pickle=allow_pickle)
            content, report = found.to_json, symmetry_report(found)
    answer(content, report, as_json)
