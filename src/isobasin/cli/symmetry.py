"""`isobasin symmetry`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.cli.console import show, show_json, working
from isobasin.cli.options import AllowPickleOption, JsonOption

EXAMPLE = "isobasin symmetry openai-community/gpt2"


def symmetry(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Local folder or hub id of a checkpoint; it isn't changed.")
    ] = None,
    every_family: Annotated[
        bool, typer.Option("--families", help="The groups of every supported model type, instead of MODEL's.")
    ] = False,
    allow_pickle: AllowPickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the symmetry group of every layer and what share of the parameters is redundant."""
    if every_family == (model is not None):
        raise typer.BadParameter("give either MODEL or --families")
    if model is None:
        _families(as_json)
    else:
        _model(model, allow_pickle, as_json)


def _families(as_json: bool) -> None:
    with working("reading"):
        from isobasin.verbs.families import all_families

        found = all_families()
    if as_json:
        show_json({"families": [family.to_json() for family in found]})
        return
    from isobasin.cli.symmetry_report import families_report

    show(*families_report(found))


def _model(model: str, allow_pickle: bool, as_json: bool) -> None:
    with working("reading"):
        from isobasin.verbs.symmetry import symmetry

        found = symmetry(model, allow_pickle=allow_pickle)
    if as_json:
        show_json(found.to_json())
        return
    from isobasin.cli.symmetry_report import symmetry_report

    show(*symmetry_report(found))
