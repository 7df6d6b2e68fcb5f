"""A page: one self-contained HTML file, for light and dark, phones, wide screens and paper."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
# the browser loads nothing and runs no script
NO_SCRIPTS = "default-src 'none'; style-src 'unsafe-inline'"


def render_page(template: Path, *, policy: str = NO_SCRIPTS, **values: Any) -> str:
    """Returns the HTML of a template that extends base.html.j2.

    Args:
        template: a file that may import the templates of this folder. Text is escaped, unless marked `|safe`.
        policy: content security policy.
        values: variables of the template, `title` among them; a missing one is an error.
    """
    environment = Environment(
        loader=FileSystemLoader((template.parent, HERE)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (HERE / "page.css").read_text()
    return environment.get_template(template.name).render(policy=policy, style=style, **values)
