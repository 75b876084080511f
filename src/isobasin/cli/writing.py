"""What every command that writes a model does besides: it keeps what it reads, and uploads what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer
from typer.main import get_command

from isobasin.cli import options
from isobasin.cli.console import show_path, working
from isobasin.reads import keeping

OUTPUT = "output"

_READ = ("alignment", "data", "tokenizer")
"""What may be read besides models; those are looked after where they are opened."""


def _options(
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="REPO",
            help="Upload OUT to this repository of the Hugging Face hub, too; a new one is private.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push-to-hub: a new repository is public.")] = False,
) -> None: ...


def with_output(command: Any, verb: Callable[..., Any]) -> None:
    """Give a command that writes a model the options of uploading, and keep it from replacing what it reads."""
    if get_type_hints(verb, include_extras=True).get(OUTPUT) != options.Output:
        return
    alone = typer.Typer(add_completion=False)
    alone.command()(_options)
    added = [parameter for parameter in get_command(alone).params if parameter.name in ("push_to_hub", "public")]
    command.params += added
    write = command.callback

    @wraps(write)
    def call(*, push_to_hub: str | None, public: bool, **arguments: Any) -> None:
        from isobasin.checkpoints.upload import check_repo, push_to_hub as push

        if public and push_to_hub is None:
            raise typer.BadParameter("--public is about what --push-to-hub makes: name that")
        if push_to_hub is not None:
            check_repo(push_to_hub)
        with keeping(*(arguments.get(name) for name in _READ)):
            write(**arguments)
        if push_to_hub is None or arguments.get("dry_run"):
            return
        with working("uploading"):
            place = push(arguments[OUTPUT], push_to_hub, private=not public)
        if not arguments["as_json"]:
            show_path("Uploaded to", place)

    command.callback = call
