"""The options by which every command that writes a model uploads it, too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from typer.main import get_command

from isobasin.cli.console import show_path, working

OUTPUT = "output"


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


def with_pushing(command: Any, verb: Callable[..., Any]) -> None:
    """Give a command that writes a model these options."""
    written = inspect.signature(verb).parameters.get(OUTPUT)
    if written is None or written.annotation != "options.Output":
        return
    alone = typer.Typer(add_completion=False)
    alone.command()(_options)
    added = [parameter for parameter in get_command(alone).params if parameter.name in ("push_to_hub", "public")]
    command.params += added
    write = command.callback

    @wraps(write)
    def call(*, push_to_hub: str | None, public: bool, **arguments: Any) -> None:
        if push_to_hub is None:
            if public:
                raise typer.BadParameter("--public is about what --push-to-hub makes: name that")
            write(**arguments)
            return
        from isobasin.checkpoints.upload import check_repo, push_to_hub as push

        check_repo(push_to_hub)
        write(**arguments)
        if arguments.get("dry_run"):
            return
        with working("uploading"):
            place = push(arguments[OUTPUT], push_to_hub, private=not public)
        if not arguments["as_json"]:
            show_path("Uploaded to", place)

    command.callback = call
