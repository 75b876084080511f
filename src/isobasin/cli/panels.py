"""Under which heading `--help` shows a command or an option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isobasin.cli.options import DATA, ENGINE

COMMANDS = {
    "Align": ("align", "refine", "apply"),
    "Merge": ("check", "merge", "interpolate", "transport", "barrier"),
    "Compare": ("verify", "equivalent", "diagnose", "compare", "fingerprint", "scan"),
    "The same function in other weights": ("canonicalize", "gauge", "scramble"),
    "Symmetry": ("symmetry", "certify"),
    "Studies": ("demo", "experiment", "run"),
}
"""Every command, in the order in which all are listed."""

OPTIONS = {
    "Matching": ("method", "head_cost", "scope", "keep_gains", "objective", "untie", "max_condition"),
    "Learning": (
        *("refine", "steps", "minutes", "batch_size", "rate", "both", "patience", "targets", "noise", "tries"),
        "mixed_precision",
    ),
    "Data": DATA,
    "Models that differ": ("take_config", "by_name", "common_rows", "head"),
    "Running": (*ENGINE, "device", "seed", "no_verify", "allow_pickle", "dry_run"),
    "Output": ("output", "force", "dtype", "push_to_hub", "public", "as_json"),
}
"""Options that several commands have; a command's own are under `Options`, or where they say."""


def put_under_headings(command: Any, name: str) -> None:
    """Say of a command, and of all options of it and of those below it, where they are shown."""
    command.rich_help_panel = command.rich_help_panel or _heading(name, COMMANDS)
    for parameter in command.params:
        if parameter.param_type_name == "option":
            parameter.rich_help_panel = parameter.rich_help_panel or _heading(parameter.name, OPTIONS)
    for below, inner in getattr(command, "commands", {}).items():
        put_under_headings(inner, below)


def _heading(name: str, headings: Mapping[str, Sequence[str]]) -> str | None:
    return next((heading for heading, names in headings.items() if name in names), None)
