"""Pages that need nothing else, neither files nor a network: what all of them have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from isobasin.errors import needing
from isobasin.reports.style import alike, number, percent
from isobasin.text import printable

if TYPE_CHECKING:
    from markupsafe import Markup

_ASSETS = files("isobasin.reports") / "assets"

# Digits of what is only drawn.
_DIGITS = 5


def rendered(template: str, scripts: Sequence[str], **values: Any) -> str:
    """A page as text. Everything in it that came from outside is escaped.

    Args:
        template: Of `assets`, which extends `base.html`.
        scripts: Of `assets`, after those that draw curves.
        values: What the template names, `styles`, `data` and `title` among them.

    Raises:
        DependencyError: Jinja2 is missing.
    """
    with needing("the report page needs Jinja2"):
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    filters: dict[str, Any] = {
        "number": number,
        "percent": percent,
        "alike": alike,
        "entry": _entry,
        "path": _breakable,
    }
    environment.filters.update(filters)
    sources = [_asset(name) for name in ("svg.js", "curves.js", *scripts)]
    return environment.get_template(template).render(css=_asset("page.css"), scripts=sources, **values)


def rounded(value: float | None) -> float | None:
    """A value that is only drawn."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _shown(value: Any) -> Any:
    """What takes the place of double braces; what comes from here (styles, scripts, data) is marked as HTML already."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _breakable(path: str) -> Markup:
    """A path that is broken after its slashes, where it doesn't fit."""
    from markupsafe import Markup, escape

    return Markup("/<wbr>").join(escape(part) for part in printable(path).split("/"))


def _entry(value: Any) -> str:
    """A setting as people read it."""
    if isinstance(value, list):
        return ", ".join(map(_entry, cast(list[Any], value)))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace("null", "none")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
