"""The report of a run as one file, an HTML page or a picture: tables and plots."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rnnscale._errors import MissingPackageError
from rnnscale.sharding import Layout

# Height in inches of the report's head, of a title, and of a line of text in a picture.
_HEAD, _TITLE, _LINE = 0.7, 0.4, 0.15
_TITLE_STYLE = {"fontsize": 12, "weight": "bold"}
_TEXT_STYLE = {"fontsize": 7.5, "family": "monospace"}


class Table(NamedTuple):
    """A table of the report, as text, with a line of text below its title."""

    title: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] | None = None
    caption: str | None = None

    @property
    def lines(self) -> list[str]:
        """The table as lines of text."""
        rows = self.rows if self.header is None else [self.header, *self.rows]
        caption = [] if self.caption is None else [self.caption]
        return [*caption, *in_columns(rows)]


class Panel(NamedTuple):
    """A plot of the report.

    - `title`, `caption`: the heading, and the text below it.
    - `height`: in inches.
    - `draw`: draws on a `matplotlib.figure.Figure` or `SubFigure`.
    """

    title: str
    caption: str
    height: float
    draw: Callable[[Any], Any]


class Report(NamedTuple):
    """The parts of a report. Values are formatted here, so they may be of any type.

    - `title`, `status`: the heading, and the text below it.
    - `figures`: numbers of the run by name.
    - `panels`: the plots.
    - `tables`: tables below the plots.
    - `options`: options of the run by name; those that are `None` are left out.
    - `mesh`: the sizes of the mesh axes that `layouts` is about.
    - `layouts`: what `rnnscale.sharding.layouts` returned for the model.
    """

    title: str
    status: str
    figures: Mapping[str, Any]
    panels: Sequence[Panel]
    tables: Sequence[Table]
    options: Mapping[str, Any]
    mesh: Mapping[str, int]
    layouts: Sequence[Layout]

    def as_html(self) -> str:
        """A page that contains its pictures."""
        figures, *others = self._tables()
        parts = [f"<h1>{_escape(self.title)}</h1>", f"<p>{_escape(self.status)}</p>"]
        parts += _html_table(figures)
        for panel in self.panels:
            figure = figure_class()(figsize=(10, panel.height), layout="constrained")
            panel.draw(figure)
            data = base64.b64encode(_png(figure)).decode()
            parts += [
                f"<h2>{_escape(panel.title)}</h2>",
                f"<p>{_escape(panel.caption)}</p>",
                f'<img alt="{_escape(panel.title)}" src="data:image/png;base64,{data}">',
            ]
        for table in others:
            parts += _html_table(table)
        return _PAGE.format(title=_escape(self.title), body="\n".join(parts))

    def as_png(self) -> bytes:
        """A picture, ten inches wide, with the plots above the tables."""
        texts = [(table.title, table.lines) for table in self._tables() if table.rows]
        heights = [_HEAD, *(panel.height + _TITLE for panel in self.panels)]
        heights += [_TITLE + 0.2 + _LINE * len(lines) for _, lines in texts]
        figure = figure_class()(figsize=(10, sum(heights)), layout="constrained")
        head, *places = figure.subfigures(len(heights), 1, height_ratios=heights)
        head.text(0.02, 0.65, self.title, fontsize=16, weight="bold", va="center", parse_math=False)
        head.text(0.02, 0.2, self.status, va="center", parse_math=False)
        plots, pages = places[: len(self.panels)], places[len(self.panels) :]
        for panel, place in zip(self.panels, plots, strict=True):
            place.suptitle(panel.title, x=0.02, ha="left", weight="bold")
            panel.draw(place)
        for (title, lines), place, height in zip(texts, pages, heights[-len(texts) :], strict=True):
            _write(place, 0.2 / height, title, _TITLE_STYLE)
            for i, line in enumerate(lines, start=1):
                _write(place, (0.35 + _LINE * i) / height, line, _TEXT_STYLE)
        return _png(figure)

    def _tables(self) -> list[Table]:
        return [
            Table("Figures", [(name, _formatted(value)) for name, value in self.figures.items()]),
            *self.tables,
            _parameter_table(f"Parameters on {_formatted(self.mesh)}", self.layouts),
            Table(
                "Options", [(k, _formatted(v)) for k, v in self.options.items() if v is not None]
            ),
        ]


def figure_class() -> Any:
    """`matplotlib.figure.Figure`. Without `pyplot`, which would look for a display.

    **Raises:** `MissingPackageError` without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        message = "plots need matplotlib: python -m pip install 'rnnscale[plots]'"
        raise MissingPackageError(message) from None
    return Figure


def _parameter_table(title: str, layouts: Sequence[Layout]) -> Table:
    rows: list[Sequence[str]] = [
        (
            each.path,
            " × ".join(map(str, each.shape)) or "scalar",
            " ".join(axis or "_" for axis in each.axes),
            " ".join("+".join(axes) or "_" for axes in each.mesh_axes),
            f"{each.bytes_per_device:,}",
        )
        for each in layouts
    ]
    total = sum(each.bytes_per_device for each in layouts)
    rows.append(("total", "", "", "", f"{total:,}"))
    return Table(title, rows, ("parameter", "shape", "axes", "mesh axes", "bytes per device"))


def _formatted(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_formatted(each)}" for name, each in value.items())
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def _write(place: Any, depth: float, text: str, style: Mapping[str, Any]) -> None:
    """A line of text, `depth` below the top of its place as a part of the place's height."""
    place.text(0.02, 1 - depth, text, va="center", parse_math=False, **style)


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table as text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _html_table(table: Table) -> list[str]:
    """Lines of HTML; none for a table without rows."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    if not table.rows:
        return []
    caption = [] if table.caption is None else [f"<p>{_escape(table.caption)}</p>"]
    head = [] if table.header is None else [line(table.header, "th")]
    body = [line(row, "td") for row in table.rows]
    title = f"<h2>{_escape(table.title)}</h2>"
    return [title, *caption, "<table>", *head, *body, "</table>"]


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 64rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; font-size: 14px; }}
td, th {{ padding: 0.15rem 0.8rem 0.15rem 0; text-align: left; border-bottom: 1px solid #ddd; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
