"""The program: its verbs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from isobasin import __version__
from isobasin.cli import (
    align,
    apply,
    barrier,
    canonicalize,
    certify,
    check,
    compare,
    demo,
    equivalent,
    experiment,
    fingerprint,
    interpolate,
    merge,
    refine,
    scramble,
    symmetry,
    verify,
)
from isobasin.cli.failures import reported


class _Program(TyperGroup):
    """The group of all verbs; every failure inside ends as one line and an exit code."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the options before the verb."""
        with reported():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Parse the rest, and run the verb."""
        with reported():
            return super().invoke(ctx)


app = typer.Typer(
    name="isobasin",
    cls=_Program,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: isobasin align runs/seed0 runs/seed1 -o runs/seed1-aligned",
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"isobasin {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def isobasin(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Bring two transformer checkpoints into the same basin with moves that never change what they compute."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


_VERBS: tuple[tuple[Callable[..., None], str], ...] = (
    (align.align, align.EXAMPLE),
    (apply.apply, apply.EXAMPLE),
    (verify.verify, verify.EXAMPLE),
    (equivalent.equivalent, equivalent.EXAMPLE),
    (scramble.scramble, scramble.EXAMPLE),
    (canonicalize.canonicalize, canonicalize.EXAMPLE),
    (fingerprint.fingerprint, fingerprint.EXAMPLE),
    (compare.compare, compare.EXAMPLE),
    (check.check, check.EXAMPLE),
    (symmetry.symmetry, symmetry.EXAMPLE),
    (certify.certify, certify.EXAMPLE),
    (interpolate.interpolate, interpolate.EXAMPLE),
    (merge.merge, merge.EXAMPLE),
    (refine.refine, refine.EXAMPLE),
    (barrier.barrier, barrier.EXAMPLE),
    (demo.demo, demo.EXAMPLE),
)
for _function, _example in _VERBS:
    app.command(epilog=f"Example: {_example}")(_function)
app.add_typer(experiment.app, name="experiment")


def start() -> None:
    """Run what the command line asks for; this never returns."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by whoever started us: nobody wants to read it.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            # A name that the terminal's encoding doesn't have must not stop the program.
            stream.reconfigure(errors="backslashreplace")
    # Not `app()`: that would put typer's hook for uncaught exceptions in the place of ours.
    get_command(app)(prog_name="isobasin")
