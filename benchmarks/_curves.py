"""The picture of an experiment's curves: how the validation figure of every model improves over
steps, and over processor time. A panel shows one family of models, before all others in grey."""

import hashlib
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._benchmark import Figure, Row
from ._experiments import DAGGER
from ._families import FAMILIES, family
from ._markdown import RESULTS
from ._plots import styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = RESULTS / "experiments" / "curves"

_TIMES = {"steps": "steps", "cpu_seconds": "seconds of processor time"}
_POINTS, _GREY_POINTS = 40, 12
_ACCURACIES = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)


def draw(document: Mapping[str, Any], figure: Figure) -> None:
    """Draws the curves in a file that `rnnscale experiment --curves` wrote."""
    rows = document["rows"]
    models = dict.fromkeys(row["entry"] for row in rows)
    members = {each: [m for m in models if family(m) == each] for each in FAMILIES}
    members = {each: found for each, found in members.items() if found}
    columns = 2 if len(members) in (2, 4) else 3
    lines = math.ceil(len(members) / columns)
    figure.set_size_inches(3.9 * columns, 2 * lines * 2.4 + 0.4)
    figure.suptitle(
        f"{document['experiment']}: {document['metric']} during training, by steps and by time.\n"
        f"With each name its best value; {DAGGER} cut short by its budget. Grey: all other models",
        fontsize=9,
    )
    panels: Any = figure.subplots(2 * lines, columns, squeeze=False)
    for half, time in enumerate(_TIMES):
        frame = _Frame.around(rows, time, document["metric"])
        of_half = panels[half * lines : (half + 1) * lines].flat
        for panel in of_half[len(members) :]:
            panel.set_axis_off()
        for panel, (title, names) in zip(of_half, members.items(), strict=False):
            frame.prepare(panel)
            panel.set_title(title, fontsize=9, loc="left")
            _draw_grey(panel, frame, [row for row in rows if row["entry"] not in names])
            _draw_models(panel, frame, [row for row in rows if row["entry"] in names])


@dataclass(frozen=True)
class _Frame:
    """The axes that panels have in common. They are logarithmic, and that of an accuracy shows the
    errors, which tells good models apart."""

    time: str
    accuracy: bool
    xlim: tuple[float, float]
    ylim: tuple[float, float]

    @classmethod
    def around(cls, rows: Sequence[Row], time: str, metric: str) -> "_Frame":
        frame = cls(time, metric.endswith("accuracy"), (1, 1), (0, 1))
        xs = [x for row in rows for x in row[time]]
        ys = [frame.height(value) for row in rows for value in row["values"]]
        margin = 0.05 * (max(ys) - min(ys)) or 0.1
        ylim = min(ys) - margin, max(ys) + margin
        return cls(time, frame.accuracy, (min(xs), 1.1 * max(xs)), ylim)

    def height(self, value: float) -> float:
        return -math.log10(max(1 - value, 0.003)) if self.accuracy else math.log10(value)

    def prepare(self, panel: "Axes") -> None:
        from matplotlib.ticker import LogLocator

        panel.set_xscale("log")
        panel.set(xlim=self.xlim, ylim=self.ylim)
        panel.set_xlabel(_TIMES[self.time], fontsize=8, labelpad=1)
        ticks = _ACCURACIES if self.accuracy else self._nice_values()
        shown = [x for x in ticks if self.ylim[0] <= self.height(x) <= self.ylim[1]]
        panel.set_yticks([self.height(x) for x in shown], [f"{x:g}" for x in shown])
        if self.xlim[1] < 100 * self.xlim[0]:  # few powers of ten
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.minorticks_off()
        panel.tick_params(labelsize=7.5)
        panel.grid(color="0.93", linewidth=0.6)

    def _nice_values(self) -> Iterable[float]:
        """Round values for a logarithmic axis; many if it spans less than a factor of ten."""
        low, high = self.ylim
        steps = range(10, 100, 2 if high - low < 0.3 else 5 if high - low < 0.7 else 10)
        if high - low > 2:
            steps = [10]
        exponents = range(math.floor(low) - 1, math.ceil(high))
        return [float(f"{step}e{exponent}") for exponent in exponents for step in steps]

    def path(self, rows: Sequence[Row], most: int) -> tuple[list[float], list[float]]:
        """The curves one after the other, with gaps, as one path: about as many points of each as
        given, with its last one."""
        xs, ys = [], []
        for row in rows:
            every = slice(None, None, -max(1, len(row["values"]) // most))
            xs += [*row[self.time][every][::-1], math.nan]
            ys += [*map(self.height, row["values"][every][::-1]), math.nan]
        return xs[:-1], ys[:-1]


def _draw_grey(panel: "Axes", frame: _Frame, rows: Sequence[Row]) -> None:
    """One seed of each model, in few points, since every panel has nearly all models."""
    alone = list({row["entry"]: row for row in rows}.values())
    panel.plot(*frame.path(alone, _GREY_POINTS), color="0.86", linewidth=0.7, zorder=1)


def _draw_models(panel: "Axes", frame: _Frame, rows: Sequence[Row]) -> None:
    """All seeds of each model, with its name at the end of the last one."""
    from matplotlib.colors import to_rgb

    seeds: dict[str, list[Row]] = {}
    for row in rows:
        seeds.setdefault(row["entry"], []).append(row)
    ends: dict[str, tuple[float, float]] = {}
    looks = styles(seeds)
    for name, found in seeds.items():
        look = {each: looks[name][each] for each in ("color", "linestyle")}
        xs, ys = frame.path(found, max(1, _POINTS // len(found)))
        panel.plot(xs, ys, linewidth=1.2, **look)
        panel.plot(xs[-1], ys[-1], ".", color=look["color"], markersize=4)
        ends[name] = xs[-1], ys[-1]
    low, high = frame.ylim
    wanted = {name: (y - low) / (high - low) for name, (_, y) in ends.items()}
    for name, place in _apart(wanted, 0.1).items():
        colour = looks[name]["color"]
        panel.annotate(
            _label(seeds[name], max if frame.accuracy else min),
            ends[name],
            xytext=(1.06, place),
            textcoords="axes fraction",
            color=[0.75 * each for each in to_rgb(colour)],  # text has to be darker than lines
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2
            },
        )  # fmt: skip


def _label(rows: Sequence[Row], best: Callable[[Iterable[float]], float]) -> str:
    """The name of a model with its best value, the mean over its seeds, and a dagger if the budget
    cut one of them short."""
    value = statistics.mean(best(row["values"]) for row in rows)
    mark = DAGGER if any(row["ended"] == "budget" for row in rows) else ""
    return f"{rows[0]['entry']} {value:#.3g}{mark}"


def _apart(wanted: Mapping[str, float], gap: float) -> dict[str, float]:
    """Places as near to the wanted ones as they can be with a gap between two of them, up to 1."""
    names = sorted(wanted, key=lambda name: wanted[name])
    places: list[float] = []
    for name in names:
        places.append(max(wanted[name], places[-1] + gap if places else 0))
    above = 1.0 + gap
    for i in reversed(range(len(places))):
        places[i] = above = min(places[i], above - gap)
    return dict(zip(names, places, strict=True))


def write_picture(data: Path) -> None:
    """Draws a file of curves into a picture beside it, with text as text and short coordinates. It
    says which data it shows, so that a test finds a picture that is out of date."""
    import matplotlib as mpl

    from rnnscale.analysis import figure_class

    figure = figure_class()(layout="constrained")
    written = io.StringIO()
    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": data.stem,
            "font.sans-serif": "DejaVu Sans",
            "path.simplify_threshold": 0.4,
        }
    ):
        draw(json.loads(data.read_text(encoding="utf-8")), figure)
        figure.savefig(
            written, format="svg", metadata={"Date": None, "Creator": None, "Source": source(data)}
        )
    picture(data).write_text(_compact(written.getvalue()), encoding="utf-8")


def _compact(svg: str) -> str:
    """Without spaces between the tags, and the digits in them that nobody sees."""
    short = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d)\d+", r"\1", tag[0]), svg)
    return re.sub(r"^ +| +$", "", short, flags=re.MULTILINE)


def picture(data: Path) -> Path:
    return data.with_suffix(".svg")


def source(data: Path) -> str:
    """What a picture says of the data that it was drawn from."""
    return f"{data.name}, sha256 {hashlib.sha256(data.read_bytes()).hexdigest()}"
