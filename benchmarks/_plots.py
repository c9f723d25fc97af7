"""Line plots whose lines differ by colour, and in grey by marker and dash."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ._benchmark import OURS, Figure, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The palette of Okabe and Ito, for colour-blind readers too; its yellow is too pale here.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (9, 3)))

type Styles = dict[str, dict[str, Any]]


def styles(names: Iterable[str]) -> Styles:
    """A style for each name, ours first: for all panels of a figure, so that each keeps its own."""
    ordered = sorted(dict.fromkeys(names), key=lambda name: name != OURS)
    return {
        name: {
            "color": _COLOURS[i % len(_COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": _DASHES[i % len(_DASHES)],
            "linewidth": 2.2 if name == OURS else 1.4,
            "markersize": 5,
        }
        for i, name in enumerate(ordered)
    }


def lines(
    panel: "Axes", rows: Sequence[Row], x: str, y: str, chosen: Styles, by: str = "contender"
) -> None:
    """A line for each name of `by`, over the rows that have both figures. Sizes that are powers
    of two get a logarithmic axis."""
    sizes = set()
    for name, style in chosen.items():
        points = sorted(
            (row[x], row[y])
            for row in rows
            if row[by] == name and row.get(x) is not None and row.get(y) is not None
        )
        if points:
            xs, ys = zip(*points, strict=True)
            panel.plot(xs, ys, label=name, **style)
            sizes |= set(xs)
    if len(sizes) > 1 and all(isinstance(n, int) and n & (n - 1) == 0 < n for n in sizes):
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted(sizes), map(_short, sorted(sizes)))
        panel.minorticks_off()
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.grid(color="0.9", linewidth=0.6)


def ratios(
    what: str, job: Callable[[Row], str], *, height: float = 3.5
) -> Callable[[Sequence[Row], Figure], None]:
    """A plot of how many times as long as ours the others take, for a `Benchmark`: points along a
    line for each job, of rows with a `mode` those of the gradient."""

    def plot(rows: Sequence[Row], figure: Figure) -> None:
        figure.set_size_inches(9, height)
        shown = [row for row in rows if row.get("mode", "gradient") == "gradient"]
        _draw_ratios(figure.subplots(), shown, job)
        legend(figure)
        figure.suptitle(f"{what}, times as long as rnnscale")

    return plot


def _draw_ratios(panel: "Axes", rows: Sequence[Row], job: Callable[[Row], str]) -> None:
    """Left of the line of ones somebody is ahead of us."""
    rows = [row for row in rows if row.get("ratio") is not None]
    jobs = list(dict.fromkeys(map(job, rows)))
    chosen = styles(row["contender"] for row in rows)
    for name, style in chosen.items():
        theirs = [row for row in rows if row["contender"] == name]
        factors = [row["ratio"] for row in theirs]
        places = [jobs.index(job(row)) for row in theirs]
        if name == OURS:
            panel.axvline(1, color=style["color"], linewidth=1)
        panel.plot(factors, places, label=name, **{**style, "linestyle": "none", "markersize": 7})
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}")
    panel.set_yticks(range(len(jobs)), jobs)
    panel.invert_yaxis()
    panel.set_xlabel("ratio of the times")
    panel.grid(color="0.9", linewidth=0.6)


def legend(figure: Figure) -> None:
    """One for all panels."""
    found = {}
    for panel in figure.axes:
        found |= {
            line.get_label(): line for line in panel.get_lines() if line.get_marker() != "None"
        }
    figure.legend(found.values(), found.keys(), loc="outside right upper", handlelength=4)


def _short(size: int) -> str:
    for unit, letter in ((2**20, "M"), (2**10, "k")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)
