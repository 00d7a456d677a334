"""One self-contained HTML page for one run, made from plain records.

jinja2 escapes everything that is put into the page. The page loads nothing from anywhere, and runs no script but its
own: what a label or text holds can do nothing. It can be mailed, printed, or opened years later.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from ulmfit_pipe.console import in_one_line, visible
from ulmfit_pipe.reports.number_words import duration, number, percent
from ulmfit_pipe.reports.run_view import view_of

PAGE = Path(__file__).with_name("page")


def run_report(record: Mapping[str, Any]) -> bytes:
    """Return a run's page in UTF-8.

    Args:
        record: What the run's files say, as `run_view.view_of` takes it.
    """
    return render("run.html", view_of(record))


def render(name: str, view: Mapping[str, Any]) -> bytes:
    """Return a template of the page's folder filled in, in UTF-8; what UTF-8 does not know is escaped."""
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    page = (
        _templates()
        .get_template(name)
        .render(view, policy=policy, script=markupsafe.Markup(script), style=markupsafe.Markup(style))
    )
    return page.encode("utf-8", "backslashreplace")


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(PAGE)
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters.update(
        number=number,
        percent=percent,
        duration=duration,
        visible=lambda value: visible(str(value)),
        line=in_one_line,
        capitalize_first=lambda value: value[:1].upper() + value[1:],
    )
    return templates
