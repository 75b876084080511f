"""`isobasin symmetry`."""

from __future__ import annotations

from isobasin.cli.console import show, show_json, working
from isobasin.cli.options import AllowPickleOption, JsonOption, ModelArgument

EXAMPLE = "isobasin symmetry openai-community/gpt2"


def symmetry(model: ModelArgument, allow_pickle: AllowPickleOption = False, as_json: JsonOption = False) -> None:
    """Show the symmetry group of every layer and what share of the parameters is redundant."""
    with working("reading"):
        from isobasin.pipeline.inventory import symmetry

        found = symmetry(model, allow_pickle=allow_pickle)
    if as_json:
        show_json(found.to_json())
        return
    from isobasin.cli.symmetry_report import symmetry_report

    show(*symmetry_report(found))
