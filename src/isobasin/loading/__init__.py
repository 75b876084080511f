"""Everything that transformers loads for us, and on which terms: no code of a folder runs, and nobody is asked."""

from isobasin.loading.calls import auto, configuration, described, like, pretrained, quiet_transformers
from isobasin.loading.classes import Plan, check_plan, load, plans

__all__ = [
    "Plan",
    "auto",
    "check_plan",
    "configuration",
    "described",
    "like",
    "load",
    "plans",
    "pretrained",
    "quiet_transformers",
]
