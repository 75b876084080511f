"""`isobasin check`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Annotated

from rich.console import RenderableType
from rich.text import Text

from isobasin.cli import options
from isobasin.cli.console import answer, working
from isobasin.cli.tables import table

if TYPE_CHECKING:
    from isobasin.verbs.check import PairCheck

# Conflicts of one kind that are listed.
_SHOWN = 6

EXAMPLE = "isobasin check runs/seed0 runs/seed1"


def check(
    models: Annotated[list[str], options.checkpoint("MODELS", "two or more checkpoints: A B C ...", weights=False)],
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """List what stands between models before they are merged, with what resolves it; exit code 1 if anything does.

    Configurations, labels, tokenizers and tensors are compared with A's, and what each scope would match is said.
    """
    with working("reading"):
        from isobasin.verbs.check import check

        found = check(models, allow_pickle=allow_pickle)
    answer(found.to_json, chain.from_iterable(map(_report, found.pairs)), as_json, holds=found.clear)


def _report(pair: PairCheck) -> Iterator[RenderableType]:
    """Every conflict in a sentence, what would be matched, and the verdict."""
    from isobasin.verbs.conflicts import Option

    yield Text(f"A is {pair.a}, B is {pair.b}.")
    # What no option resolves decides; two sizes that disagree are in every tensor.
    ordered = sorted(pair.conflicts, key=lambda found: bool(found.options))
    for what in dict.fromkeys(found.what for found in ordered):
        alike = [found for found in ordered if found.what == what]
        for found in alike[:_SHOWN]:
            yield Text.assemble((f"{what}: ", "bold"), f"{found.message}: {found.advice(tuple(Option))}.")
        if len(alike) > _SHOWN:
            yield Text.assemble((f"{what}: ", "bold"), f"{len(alike) - _SHOWN} more; --json lists all.")
    for note in pair.notes:
        yield Text(f"{note}.")
    rows = table("scope", "matched", "why not", left=("scope", "why not"))
    for one in pair.matchable:
        rows.add_row(one.scope, f"{one.blocks} blocks" if one.blocks else "–", one.reason)
    yield rows
    count = len(pair.conflicts)
    if pair.clear:
        yield Text("Nothing is in the way.", "bold green")
        yield Text("Weights were not read: how far they are related says `isobasin compare A B`.")
    else:
        yield Text(f"{count} conflict{'s' * (count != 1)}." if count else "They can't be matched.", "bold red")
