"""The program: its verbs, each found by the name of its file."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from isobasin import __version__, cli
from isobasin.cli.console import QUIET, VERBOSE, complain
from isobasin.cli.failures import reported
from isobasin.cli.panels import COMMANDS, put_under_headings
from isobasin.cli.writing import with_output
from isobasin.recipes import recorded


class _Program(TyperGroup):
    """The group of all verbs; every failure inside ends as one line and an exit code.

    A verb is a file beside this one that has an `EXAMPLE` and, of its own name, a function or a `typer.Typer` of
    several. It is imported when it is asked for.
    """

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One verb; where there is none of this name all are imported, to say which was meant."""
        self._find(cmd_name)
        if cmd_name not in self.commands:
            self.list_commands(ctx)
        return self.commands.get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all verbs, in the order of their headings."""
        for name in _FILES:
            self._find(name)
        order = [name for names in COMMANDS.values() for name in names]
        return sorted(self.commands, key=order.index)

    def _find(self, name: str) -> None:
        """Import the verb of this name, if there is one."""
        if name not in _FILES or name in self.commands:
            return
        module = import_module(f"{cli.__name__}.{name}")
        if hasattr(module, "EXAMPLE"):
            verb = getattr(module, name)
            if not isinstance(verb, typer.Typer):
                alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
                alone.command(epilog=f"Example: {module.EXAMPLE}")(recorded(verb))
                command = get_command(alone)
                with_output(command, verb)
            else:
                command = get_command(verb)
            put_under_headings(command, name)
            self.add_command(command, name)

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **kwargs: Any) -> Any:
        """Parse the options before the verb."""
        words = list(args)  # parsing consumes them
        with reported(words):
            context = super().make_context(info_name, args, *more, **kwargs)
        context.meta[_WORDS] = words
        return context

    def invoke(self, ctx: Any) -> Any:
        """Parse the rest, and run the verb."""
        with reported(ctx.meta[_WORDS]):
            return super().invoke(ctx)


_WORDS = "isobasin.words"  # what the command line says, in the context of the program
_FILES = {found.name for found in iter_modules(cli.__path__)}
app = typer.Typer(
    name="isobasin",
    cls=_Program,
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
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Before the command: no progress or warnings, errors alone.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Before the command: what other libraries say, and tracebacks of errors."),
    ] = False,
) -> None:
    """Bring two transformer checkpoints into the same basin with moves that never change what they compute."""
    QUIET.set(quiet)
    VERBOSE.set(verbose)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


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
    if sys.flags.optimize > 1:
        complain("python -OO leaves out docstrings, which transformers reads: run it without, or with -O")
        sys.exit(2)
    # Not `app()`: that would put typer's hook for uncaught exceptions in the place of ours.
    get_command(app)(prog_name="isobasin")
