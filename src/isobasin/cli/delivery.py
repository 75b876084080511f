"""What the commands that only write a checkpoint print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from isobasin.cli.console import show, show_json, show_path

if TYPE_CHECKING:
    from isobasin.verbs.apply import Moved


def show_moved(moved: Moved, output: Path, as_json: bool, **more: object) -> None:
    """Say where the result is and how it was verified, and more for machines."""
    if as_json:
        verified = None if moved.verified is None else moved.verified.to_json()
        show_json({"output": str(output), "verified": verified, **more})
        return
    from isobasin.cli.alignment_report import untied_line, verification_line

    show(*untied_line(moved.alignment), verification_line(moved.verified))
    show_path("Written to", output)
