"""A table in three formats: Markdown for a terminal and a README, HTML for a page, LaTeX for a paper.

Notes beside the numbers (comparability, coverage of intervals) are part of the table, so that no format leaves them
out. Pages also show exact values, details and drawings.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from distributed.drawing.charts import Chart
from distributed.drawing.wording import EN_DASH, MINUS, latex

HERE = Path(__file__).parent
# the browser loads nothing and runs no script
NO_SCRIPTS = "default-src 'none'; style-src 'unsafe-inline'"
_MARKDOWN = str.maketrans({"|": r"\|", "<": "&lt;", "\n": " "})


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        small: text in smaller type behind it, such as an interval.
        strong: emphasised.
        mark: a sign that a note explains.
        value: the exact number, for scripts that read the page.
        detail: on pages only, such as the layer of a score.
        drawing: SVG, on pages only.
        look: a class of page.css, e.g. a tone.
    """

    text: str
    small: str = ""
    strong: bool = False
    mark: str = ""
    value: float | None = None
    detail: str = ""
    drawing: str = ""
    look: str = ""

    @property
    def is_number(self) -> bool:
        """True for a number, which is set flush right."""
        return bool(re.match(rf"[+{MINUS}]?\d", self.text))

    @property
    def is_absent(self) -> bool:
        """True for a missing value."""
        return self.text in ("", EN_DASH) and not self.small and not self.drawing


ABSENT = Cell(EN_DASH)


@dataclass(frozen=True)
class Group:
    """Rows that are comparable with each other, but not with other groups."""

    heading: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Table:
    """Rows in groups, below one head.

    Attributes:
        notes: sentences below it.
        zero: position of its drawings' zero line, from the left, in CSS, e.g. "40%".
    """

    title: str
    head: tuple[Cell, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    zero: str = ""

    @property
    def flush_right(self) -> tuple[bool, ...]:
        """True for a column of numbers; the first column holds names."""
        rows = [row for group in self.groups for row in group.rows]
        return tuple(column > 0 and any(row[column].is_number for row in rows) for column in range(len(self.head)))


@dataclass(frozen=True)
class Drawings:
    """Charts of one kind, on pages only."""

    title: str
    charts: tuple[Chart, ...]


def texts(*words: str) -> tuple[Cell, ...]:
    """Returns plain cells."""
    return tuple(map(Cell, words))


def to_markdown(tables: Sequence[Table]) -> str:
    """Returns the tables as GitHub's Markdown; a group's heading is a row."""
    return "\n".join(line for table in tables for line in _markdown_lines(table))


def to_latex(tables: Sequence[Table]) -> str:
    """Returns the tables as LaTeX that needs the packages booktabs and graphicx."""
    head = "% \\usepackage{booktabs, graphicx}\n"
    return head + "\n".join(line for table in tables for line in _latex_lines(table))


def render_page(template: Path, *, policy: str = NO_SCRIPTS, **values: Any) -> str:
    """Returns one self-contained HTML file, for light and dark, phones, wide screens and paper.

    Args:
        template: extends base.html.j2, and may import this folder's templates. Text is escaped, unless marked `|safe`.
        policy: content security policy.
        values: variables of the template, `title` among them; a missing one is an error.
    """
    environment = Environment(
        loader=FileSystemLoader((template.parent, HERE)),  # a template finds its own folder first
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt variable fails instead of leaving a hole in the page
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (HERE / "page.css").read_text()
    return environment.get_template(template.name).render(policy=policy, style=style, **values)


def to_page(tables: Sequence[Table], *, title: str, lead: Sequence[str] = (), drawings: Sequence[Drawings] = ()) -> str:
    """Returns a self-contained HTML page, for light and dark, a phone, a wide screen and paper."""
    return render_page(HERE / "tables.html.j2", title=title, lead=lead, tables=tables, drawings=drawings)


def _markdown_lines(table: Table) -> list[str]:
    lines = [f"## {table.title}", "", _markdown_row([escape(h.text, quote=False) for h in table.head])]
    lines.append("|---" * len(table.head) + "|")
    for group in table.groups:
        if group.heading:
            lines.append(_markdown_row([f"*{group.heading}*", *[""] * (len(table.head) - 1)]))
        lines += [_markdown_row([_markdown(cell) for cell in row]) for row in group.rows]
    return [*lines, "", *(f"- {note}" for note in table.notes), *([""] if table.notes else [])]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(cell: Cell) -> str:
    text = cell.text.translate(_MARKDOWN) + cell.mark
    text = f"**{text}**" if cell.strong else text
    return f"{text} {cell.small.translate(_MARKDOWN)}" if cell.small else text


def _latex_lines(table: Table) -> list[str]:
    columns = "".join("r" if right else "l" for right in table.flush_right)
    lines = [r"\begin{table*}", r"\centering", rf"\caption{{{latex(table.title)}.}}"]
    lines += [rf"\resizebox{{\textwidth}}{{!}}{{\begin{{tabular}}{{{columns}}}"]
    lines += [r"\toprule", _latex_row([latex(h.text) for h in table.head])]
    for group in table.groups:
        lines.append(r"\midrule")
        if group.heading:
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{latex(group.heading)}}}}} \\")
        lines += [_latex_row([_latex(cell) for cell in row]) for row in group.rows]
    lines += [r"\bottomrule", r"\end{tabular}}", r"\begin{flushleft}\footnotesize"]
    lines += [rf"{latex(note)}\par" for note in table.notes]
    return [*lines, r"\end{flushleft}", r"\end{table*}", ""]


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _latex(cell: Cell) -> str:
    text = latex(cell.text + cell.mark)
    text = rf"\textbf{{{text}}}" if cell.strong else text
    return rf"{text} {{\scriptsize {latex(cell.small)}}}" if cell.small else text
