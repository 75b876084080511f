"""What the site has that lies elsewhere: the reports of results/, and the reference of commands, written by typer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click
from typer.main import get_command

from isobasin.cli.program import app

ROOT = Path(__file__).parents[2]
SHOWN = (".md", ".png", ".csv", ".yaml", ".json")
ABOVE = re.compile(r"\]\(((?:\.\./)+)([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Reports with their figures and tables, as pages beside those of docs/."""
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in SHOWN:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "reference/commands.md", content=_commands()))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links that leave docs/ lead to the page that the site has of a file, or else to the repository."""
    depth = page.file.src_uri.count("/")

    def target(found: re.Match[str]) -> str:
        up, path = found[1].count("../"), found[2]
        if page.file.src_uri.startswith("results/") or up <= depth:
            return found[0]
        if files.get_file_from_path(path.partition("#")[0]) is not None:
            return f"]({'../' * depth}{path})"
        return f"]({config.repo_url}/blob/main/{path})"

    return ABOVE.sub(target, markdown)


def _commands() -> str:
    """What `--help` says of every command, as one page."""
    program = get_command(app)
    return get_docs_for_click(obj=program, ctx=program.context_class(program), name="isobasin")
