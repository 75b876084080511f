"""`isobasin run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isobasin.beside import ALIGNMENT, RECIPE
from isobasin.cli import options
from isobasin.text import near

EXAMPLE = "isobasin run merged/recipe.yaml -o merged-again"


def run(
    context: typer.Context,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help=f"{RECIPE} of a folder that isobasin wrote, or that folder.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Folder to write, if the recipe names none, or another."),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Run the command that wrote a folder once more, with the same options; paths are as they were given to it."""
    from isobasin.recipes import Recipe
    from isobasin.tasks.strict_yaml import read_yaml

    file = recipe / RECIPE if recipe.is_dir() else recipe
    found = Recipe.parsed(read_yaml(file), str(file))
    program: Any = context.parent and context.parent.command
    command = program.get_command(context, found.command)
    if command is None or command.name == "run" or hasattr(command, "commands"):
        raise _wrong(file, f"there is no command {found.command!r} to run", found.command, program.commands)
    given = {**found.options, "output": output or found.options.get("output"), "force": force, "as_json": as_json}
    beside = file.parent / ALIGNMENT
    given = {name: beside if value == ALIGNMENT else value for name, value in given.items()}
    parameters = {parameter.name: parameter for parameter in command.params}
    if unknown := [name for name, value in given.items() if value and name not in parameters]:
        raise _wrong(file, f"{found.command} has no option {unknown[0]!r}", unknown[0], parameters)
    arguments = [word for name in parameters for word in _words(parameters[name], given.get(name))]
    places = [word for name in parameters for word in _places(parameters[name], given.get(name))]
    with command.make_context(found.command, [*arguments, "--", *places], parent=context.parent) as inner:
        command.invoke(inner)


def _wrong(file: Path, problem: str, name: str, known: Any) -> Exception:
    from isobasin.errors import ConfigurationError

    return ConfigurationError(f"{file}: {problem}: {near(name, known)}")


def _words(parameter: Any, value: Any) -> list[str]:
    """An option as it is written on the command line."""
    if value is None or parameter.param_type_name == "argument":
        return []
    if getattr(parameter, "is_flag", False):
        flags = parameter.opts if value is True else parameter.secondary_opts
        return list(flags[:1])
    return [word for item in _items(value) for word in (parameter.opts[0], item)]


def _places(parameter: Any, value: Any) -> list[str]:
    """An argument likewise."""
    return _items(value) if value is not None and parameter.param_type_name == "argument" else []


def _items(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value])]
