"""What the site has that lies elsewhere: the reports of results/, and the reference, from typer and from docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click
from typer.main import get_command

import isobasin
from isobasin import lines
from isobasin.cli.program import app

ROOT = Path(__file__).parents[2]
SHOWN = (".md", ".html", ".png", ".csv", ".yaml", ".json")
LINK = re.compile(r"\]\((?!https?:|#)([^)\s#]+)([^)\s]*)\)")

# Rooms of the package whose names are for whoever describes architectures or works below checkpoints.
BELOW = ("alignment", "architectures", "matching", "model", "symmetries")
PYTHON = """# Python

Everything here is imported from `isobasin`; nothing else is promised. Checkpoints are folders, ids of the hub, or
models of transformers in memory. What is [below checkpoints](below.md) has a page of its own.
"""
UNDER = """# Below checkpoints

Groups, their elements and solvers on plain tensors, and what an architecture of your own is described by:
[`examples/pure_layer.py`](../../examples/pure_layer.py) and
[`examples/custom_architecture.py`](../../examples/custom_architecture.py) show how.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Reports with their figures and tables, and the reference, as pages beside those of docs/."""
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in SHOWN:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name, content in _reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links to what the site doesn't have lead to the repository."""
    source = page.file.src_uri
    # Pages that the hook makes lie where docs/ would have them, reports where they are.
    here = (ROOT if source.startswith("results/") else ROOT / "docs") / source

    def target(found: re.Match[str]) -> str:
        path = (here.parent / found[1]).resolve()
        if not path.is_relative_to(ROOT) or path.is_relative_to(ROOT / "docs") or not path.exists():
            return found[0]
        place = path.relative_to(ROOT).as_posix()
        if files.get_file_from_path(place) is not None:
            up = "../" * source.count("/")
            return f"]({up}{place}{found[2]})"
        return f"]({config.repo_url}/blob/main/{place}{found[2]})"

    return LINK.sub(target, markdown)


def _reference() -> dict[str, str]:
    """The pages of the reference by name."""
    homes: dict[str, str] = isobasin._HOME_OF  # pyright: ignore[reportPrivateUsage]
    above = [name for name, home in homes.items() if home.split(".")[0] not in BELOW or name == "Alignment"]
    functions = [name for name in above if name[0].islower()]
    results = [name for name in above if name not in functions]
    beneath = [name for name in homes if name not in above]
    along = [f"lines.{name}" for name in lines.__all__]
    return {
        "commands": _commands(),
        "python": "\n".join([PYTHON, *_section("Functions", functions), *_section("The line between two models", along),
                             *_section("Results and options", results)]),
        "below": "\n".join([UNDER, *_section("Functions and classes", sorted(beneath, key=str.lower))]),
    }  # fmt: skip


def _section(title: str, names: list[str]) -> list[str]:
    """A heading, and what the docstrings of some names say."""
    return [f"## {title}\n", *(f"::: isobasin.{name}\n" for name in names)]


def _commands() -> str:
    """What `--help` says of every command, as one page; the names that an option takes are a list below it."""
    program = get_command(app)
    text = get_docs_for_click(obj=program, ctx=program.context_class(program), name="isobasin")  # pyright: ignore
    text = re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+", "", text).replace("# `isobasin`", "# Commands", 1)
    text = re.sub(r"^Example: (.*)$", r"For example:\n\n    \1", text, flags=re.MULTILINE)
    return re.sub(r"^\* `.*?(?=\n\* |\n\n(?:#|\*\*|For example))", _option, text, flags=re.MULTILINE | re.DOTALL)


def _option(found: re.Match[str]) -> str:
    """One option: its meaning, its default, and the names that it takes."""
    default = re.search(r"\s*(\[default: .*?\])\s*$", found[0])
    said, *more = (found[0][: default.start()] if default else found[0]).strip().split("\n\n")
    names = [re.sub(r"^([\w-]+): ", r"`\1`: ", " ".join(one.split())) for one in more]
    first = f"{said.strip()} {default[1] if default else ''}".rstrip()
    # Without an empty line after it, the next option would be one of the names.
    return "\n".join([first, "", *(f"    - {name}" for name in names), ""])
