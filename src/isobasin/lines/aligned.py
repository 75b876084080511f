"""Copies of two models that an earlier command moved, as the ends of another line between the same functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from isobasin.alignment import Alignment
from isobasin.beside import REFERENCE, alignment_file
from isobasin.canonical import Canonical, open_canonical
from isobasin.choices import HeadCost, Way
from isobasin.errors import AlignmentError, IsobasinError
from isobasin.lines import moves
from isobasin.model import Model
from isobasin.records.file import Key
from isobasin.records.provenance import model_sha256
from isobasin.records.schema import AlignedRecord, AlignmentRecord, ModelRecord
from isobasin.verification import verify_models


@dataclass(frozen=True, eq=False)
class Aligned:
    """The ends of a line, one or both of which an earlier command moved.

    Attributes:
        method: What the line is called, beside the ways of the run that measures it.
        alignment: What moved the second model.
        last: The moved second model.
        first: The moved first model; None where that stays as it is.
        form: The two models in the form in which the alignment was found, tied or untied, as `last` and `first` are.
        line: What was moved in the form in which its line is measured.
    """

    method: str
    alignment: Alignment
    last: Canonical
    first: Canonical | None
    form: tuple[Canonical, ...] = ()
    line: tuple[Canonical, ...] = ()

    @property
    def ends(self) -> list[Canonical]:
        """What was moved: the second model, and the first one if it was."""
        return [self.last, *([] if self.first is None else [self.first])]

    def record(self) -> AlignedRecord:
        """What is said of it in the first line of the records."""
        facts, operation = self.alignment.provenance, self.alignment.provenance.get("operation", "unknown")
        model, *reference = (ModelRecord(name=x.name, sha256=model_sha256(x.checkpoint), moved=True) for x in self.ends)
        how = facts.get("method", operation) if operation == "align" else operation
        return AlignedRecord(method=self.method, how=how, model=model, reference=next(iter(reference), None))

    def check(self, a: Model, b: Model, device: str) -> None:
        """Refuse copies that don't compute what the models do.

        Raises:
            AlignmentError: Naming the folder.
        """
        for end, original in zip(self.line, (b, a), strict=False):
            found = verify_models(original, Model.of(end), device=device)
            if not found.equal:
                problem = f"doesn't compute what {original.name} does ({found.reason})"
                raise AlignmentError(f"{end.name}: {problem}: give what was made of the two models, in this order")

    def moves(self, key: Key, cost: HeadCost) -> AlignmentRecord:
        """What its alignment says of every block of the two models."""
        a, b = map(Model.of, self.form)
        first = a if self.first is None else Model.of(self.first)
        return moves.measured(key, (a, b), (first, Model.of(self.last)), self.alignment, cost)


@contextmanager
def open_aligned(folders: Sequence[str], allow_pickle: bool = False) -> Generator[list[Aligned]]:
    """Open folders that `align` or `refine` wrote.

    Raises:
        AlignmentError: There is no alignment in one.
        CheckpointError: There is no checkpoint in one.
    """
    found: list[Aligned] = []
    with ExitStack() as stack:
        for folder, method in zip(folders, _methods(folders), strict=True):
            alignment, reference = Alignment.load(folder), Path(folder) / REFERENCE
            last = stack.enter_context(open_canonical(folder, allow_pickle=allow_pickle))
            both = alignment_file(reference).is_file()
            first = stack.enter_context(open_canonical(str(reference), allow_pickle=allow_pickle)) if both else None
            found.append(Aligned(method, alignment, last, first))
        yield found


def _methods(folders: Sequence[str]) -> list[str]:
    """What lines to folders are called: the last part of the path where no other line is called so."""
    short = [Path(folder).resolve().name for folder in folders]
    taken = Counter([*short, *Way])
    names = [whole if taken[name] > 1 else name for name, whole in zip(short, folders, strict=True)]
    for name, count in Counter([*names, *Way]).items():
        if count > 1:
            raise IsobasinError(f"aligned {name!r}: another line is called so: give a folder once, by its whole path")
    return names
