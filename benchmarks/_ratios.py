"""How many times as long as ours the others take, as points along a line for each job."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ._benchmark import OURS, Row
from ._plots import styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_ratios(panel: "Axes", rows: Sequence[Row], job: Callable[[Row], str]) -> None:
    """Left of the line of ones somebody is ahead of us."""
    rows = [row for row in rows if row.get("ratio") is not None]
    jobs = list(dict.fromkeys(map(job, rows)))
    chosen = styles(row["contender"] for row in rows)
    for name, style in chosen.items():
        theirs = [row for row in rows if row["contender"] == name]
        ratios = [row["ratio"] for row in theirs]
        places = [jobs.index(job(row)) for row in theirs]
        if name == OURS:
            panel.axvline(1, color=style["color"], linewidth=1)
        panel.plot(ratios, places, label=name, **{**style, "linestyle": "none", "markersize": 7})
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}")
    panel.set_yticks(range(len(jobs)), jobs)
    panel.invert_yaxis()
    panel.set_xlabel("ratio of the times")
    panel.grid(color="0.9", linewidth=0.6)
