"""Everything that transformers loads for us, and on which terms: no code of a folder runs, and nobody is asked."""

from isobasin.loading.calls import auto, configuration, like, pretrained, quiet_transformers
from isobasin.loading.classes import Plan, check_plan, load, misfit, plans
from isobasin.loading.deferred import made
from isobasin.loading.streaming import Held, Streamed, layers
from isobasin.loading.untying import untied

__all__ = [
    "Held",
    "Plan",
    "Streamed",
    "auto",
    "check_plan",
    "configuration",
    "layers",
    "like",
    "load",
    "made",
    "misfit",
    "plans",
    "pretrained",
    "quiet_transformers",
    "untied",
]
