import argparse
import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rnnscale._errors import MissingPackageError, UserError
from rnnscale.cli._step_options import mesh_sizes

if TYPE_CHECKING:
    from rnnscale.runs import RunFolder, SavedRun
    from rnnscale.sharding import Layout

# How many test sequences are looked at, of how many, and how many of those for exponents.
_ROWS, _CANDIDATES, _TRAJECTORIES = 8, 64, 4

# A cell may have thousands; those after the first few tell little.
_EXPONENTS = 32

# Inches from line to line of the text in a picture, and how it looks.
_LINE = 0.15
_TITLE = {"fontsize": 12, "weight": "bold"}
_TEXT = {"fontsize": 7.5, "family": "monospace"}

type Table = list[Sequence[str]]


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "inspect",
        help="report what a run's layers have learned to remember",
        description="Writes a report of a run, from its newest checkpoint, as one file: options, "
        "figures and curves; of every recurrent layer the eigenvalues, time scales, gradients "
        "against lag and Lyapunov exponents on test sequences; and how parameters lie on the "
        "mesh. The run may be going on.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_inspect)
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--out", metavar="FILE", help="to write, .html or .png; default: inspect.html in the folder"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=1000,
        metavar="N",
        help="time steps of the sequences to look at, where they have so many; default: 1000",
    )
    parser.add_argument("--text", metavar="DIR", help="folder with the text for `bytes`")
    parser.add_argument("--folder", metavar="DIR", help="folder with the data of the task")
    parser.add_argument(
        "--mesh",
        type=mesh_sizes,
        metavar="AXIS=N,...",
        help="of the table of parameters, such as data=2,fsdp=4; default: that of the run",
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from rnnscale.runs import RunFolder, load_run

    folder = RunFolder(arguments.run)
    out = Path(arguments.out or folder.path / "inspect.html")
    if out.suffix not in (".html", ".png"):
        raise UserError(f"--out {out}: must end in .html or .png")
    if arguments.steps < 2:
        raise UserError(f"--steps must be at least 2, got {arguments.steps}")
    given = {name: getattr(arguments, name) for name in ("text", "folder")}
    saved = load_run(arguments.run, **{name: x for name, x in given.items() if x is not None})
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}")
    _import_matplotlib()
    report = _Report.of(folder, saved, arguments.steps, arguments.mesh)
    try:
        out.write_bytes(report.as_png() if out.suffix == ".png" else report.as_html().encode())
    except OSError as error:
        raise UserError(f"--out {out}: can't be written ({error.strerror})") from error
    print(f"wrote {out}")
    return 0


def _import_matplotlib() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        message = "plots need matplotlib: python -m pip install 'rnnscale[plots]'"
        raise MissingPackageError(message) from None
    # Without pyplot, which would look for a display.
    return Figure


class _Panel(NamedTuple):
    """A figure of the report, `height` inches high; `draw` fills a figure or a part of one."""

    title: str
    caption: str
    height: float
    draw: Callable[[Any], Any]


class _Report(NamedTuple):
    title: str
    status: str
    summary: Table
    panels: list[_Panel]
    config: Table
    mesh: str
    layouts: "list[Layout]"

    @classmethod
    def of(
        cls, folder: "RunFolder", saved: "SavedRun", steps: int, mesh: dict[str, int] | None
    ) -> "_Report":
        from rnnscale.sharding import AXES, layouts

        config = saved.config
        status = f"{saved.step} of {config.steps} steps done"
        summary = folder.summary() or {}
        if saved.step < config.steps:
            status += "; still training, or stopped. This is the newest checkpoint."
            summary = {}  # of an earlier run of this folder, if any
        replace(config, mesh=mesh)  # raises where an axis is none
        sizes = mesh or config.mesh or summary.get("mesh") or dict(saved.mesh.shape)
        sizes = {axis: sizes.get(axis, 1) for axis in AXES}
        return cls(
            title=f"{config.task}, {config.model}",
            status=status,
            summary=[(name, _told(value)) for name, value in summary.items()],
            panels=[
                _Panel("Curves", "Metrics over the training steps.", 3, folder.draw_curves),
                *_dynamics(saved, steps),
            ],
            config=[(k, _told(v)) for k, v in vars(config).items() if v is not None],
            mesh=_told(sizes),
            layouts=layouts(saved.model, _abstract_mesh(sizes)),
        )

    def parameters(self) -> Table:
        header = ("parameter", "shape", "axes", "mesh axes", "bytes per device")
        rows = [
            (
                each.path,
                " × ".join(map(str, each.shape)) or "scalar",
                " ".join(axis or "_" for axis in each.axes),
                " ".join("+".join(axes) or "_" for axes in each.mesh_axes),
                f"{each.bytes_per_device:,}",
            )
            for each in self.layouts
        ]
        total = sum(each.bytes_per_device for each in self.layouts)
        return [header, *rows, ("total", "", "", "", f"{total:,}")]

    def as_html(self) -> str:
        parts = [f"<h1>{_escaped(self.title)}</h1>", f"<p>{_escaped(self.status)}</p>"]
        if self.summary:
            parts += ["<h2>Figures</h2>", _html_table(self.summary)]
        for panel in self.panels:
            figure = _import_matplotlib()(figsize=(10, panel.height), layout="constrained")
            panel.draw(figure)
            picture = base64.b64encode(_png(figure)).decode()
            parts += [
                f"<h2>{_escaped(panel.title)}</h2>",
                f"<p>{_escaped(panel.caption)}</p>",
                f'<img alt="{_escaped(panel.title)}" src="data:image/png;base64,{picture}">',
            ]
        parts += [
            f"<h2>Parameters on {_escaped(self.mesh)}</h2>",
            _html_table(self.parameters()[1:], self.parameters()[0]),
            "<h2>Options</h2>",
            _html_table(self.config),
        ]
        return _PAGE.format(title=_escaped(self.title), body="\n".join(parts))

    def as_png(self) -> bytes:
        texts = [
            ("Figures", _lines(self.summary)),
            (f"Parameters on {self.mesh}", _lines(self.parameters())),
            ("Options", _lines(self.config)),
        ]
        texts = [(title, lines) for title, lines in texts if lines]
        heights = [0.7, *(panel.height + 0.4 for panel in self.panels)]
        heights += [0.6 + _LINE * len(lines) for _, lines in texts]
        figure = _import_matplotlib()(figsize=(10, sum(heights)), layout="constrained")
        head, *places = figure.subfigures(len(heights), 1, height_ratios=heights)
        head.text(0.02, 0.65, self.title, fontsize=16, weight="bold", va="center", parse_math=False)
        head.text(0.02, 0.2, self.status, va="center", parse_math=False)
        for panel, place in zip(self.panels, places, strict=False):
            place.suptitle(panel.title, x=0.02, ha="left", weight="bold")
            panel.draw(place)
        for (title, lines), place in zip(texts, places[len(self.panels) :], strict=True):
            inch = 1 / (0.6 + _LINE * len(lines))
            for i, line in enumerate([title, *lines]):
                y = 1 - (0.2 if i == 0 else 0.35 + _LINE * i) * inch
                style = _TITLE if i == 0 else _TEXT
                place.text(0.02, y, line, va="center", parse_math=False, **style)
        return _png(figure)


def _dynamics(saved: "SavedRun", steps: int) -> list[_Panel]:
    """Of the recurrent layers, on test sequences."""
    import equinox as eqx
    import jax
    import numpy as np

    from rnnscale.analysis import (
        eigenvalues,
        gradient_norms,
        lyapunov_spectrum,
        plot_eigenvalues,
        plot_gradient_norms,
        plot_lyapunov,
        plot_timescales,
        recurrences,
        recurrent_matrix,
        state_gradient_norms,
        timescales,
    )
    from rnnscale.cells import Cell

    # On one device, whatever mesh the model was loaded onto.
    model = jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x)), saved.model)
    points, by_input, by_state, exponents, memory = {}, {}, {}, {}, {}
    xs = _sequences(saved, steps)
    rows, length = xs.shape[:2]
    for name, layer, inputs in recurrences(model, jax.numpy.asarray(xs)):
        inputs = inputs.astype("float32")
        key = jax.random.key(0)
        by_input[name] = gradient_norms(layer, inputs, key=key)
        if layer.causal:
            by_state[name] = state_gradient_norms(layer, inputs, key=key)
        cell = getattr(layer, "cell", None)
        if not isinstance(cell, Cell):
            points[name] = {"decays": eigenvalues(layer)}
            memory[name] = timescales(layer)
            continue
        # Of one sequence, the last step.
        state, _ = eqx.filter_jit(layer)(inputs[0, :-1])
        points[name] = {
            "at rest": eigenvalues(cell),
            "driven": eigenvalues(cell, inputs[0, -1], state),
        }
        memory[name] = timescales(cell, inputs[0, -1], state)
        matrix = recurrent_matrix(cell)
        if matrix is not None:
            points[name]["matrix"] = np.linalg.eigvals(matrix)
        count = min(_EXPONENTS, points[name]["at rest"].size)
        spectra = lyapunov_spectrum(cell, inputs[:_TRAJECTORIES], count=count, burn_in=length // 10)
        exponents[name] = spectra.mean(axis=0)

    def draw_eigenvalues(figure: Any) -> None:
        for i, (name, series) in enumerate(points.items()):
            axes = figure.add_subplot(math.ceil(len(points) / 2), 2, i + 1)
            plot_eigenvalues(axes, series)
            axes.set_title(name, fontsize="medium")

    def draw_gradients(figure: Any) -> None:
        shown = {"last output, by an input": by_input, "last state, by a state": by_state}
        for i, (title, norms) in enumerate(shown.items()):
            if norms:  # a layer that looks ahead has no last state
                axes = figure.add_subplot(1, 2, i + 1)
                plot_gradient_norms(axes, norms)
                axes.set_title(title, fontsize="medium")

    looked_at = f"{rows} test sequences of {length} steps"
    found = [
        _Panel(
            "Eigenvalues",
            "Of one step: the decays of a diagonal layer, where S5 keeps one of each conjugate "
            "pair; of a cell, those of the derivative of the new state by the old one, at rest "
            "(before the first step, without input) and driven (at the end of a test sequence), "
            "and of its recurrent matrix, if it has one. Beyond the circle, of radius 1, a mode of "
            "a step grows; the matrix of a cell that leaks or takes Euler steps is only a part of "
            "its step.",
            0.8 + 3.2 * math.ceil(len(points) / 2),
            draw_eigenvalues,
        ),
        _Panel(
            "Time scales",
            "The steps in which a mode falls to 1/e, for the eigenvalues above; of cells, those at "
            "the end of a test sequence.",
            3.4,
            lambda figure: plot_timescales(figure.subplots(), memory, seq_len=saved.task.seq_len),
        ),
        _Panel(
            "Gradients against lag",
            f"Of each layer on its own: the root mean square over {looked_at} and over directions "
            "of the output or state. Nothing is drawn where the gradient is zero.",
            3.4,
            draw_gradients,
        ),
    ]
    if exponents:
        found.append(
            _Panel(
                "Lyapunov exponents",
                f"The largest {_EXPONENTS}, or all, as means over {min(rows, _TRAJECTORIES)} of "
                f"these sequences, without their first {length // 10} steps. Above zero nearby "
                "states part, below zero they meet. In float32 none is seen below about -16; "
                "nothing is drawn where a step sets a direction to zero.",
                3.4,
                lambda figure: plot_lyapunov(figure.subplots(), exponents),
            )
        )
    return found


def _sequences(saved: "SavedRun", steps: int) -> Any:
    """The longest of the first test sequences, all cut to the same number of steps."""
    import numpy as np

    test = saved.task.test
    records = [test[i] for i in range(min(len(test), _CANDIDATES))]
    lengths = [int(each.get("lengths", len(each["inputs"]))) for each in records]
    chosen = sorted(range(len(records)), key=lambda i: -lengths[i])[:_ROWS]
    steps = max(min(steps, *(lengths[i] for i in chosen)), 1)
    return np.stack([np.asarray(records[i]["inputs"])[:steps] for i in chosen])


def _abstract_mesh(sizes: dict[str, int]) -> Any:
    """Of devices that need not be here."""
    from jax.sharding import AbstractMesh, AxisType

    axis_types = (AxisType.Auto,) * len(sizes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=axis_types)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_told(each)}" for name, each in value.items())
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def _lines(table: Table) -> list[str]:
    """In columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


def _html_table(rows: Table, header: Sequence[str] | None = None) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_escaped(cell)}</{tag}>" for cell in cells) + "</tr>"

    lines = [line(row, "td") for row in rows]
    head = [] if header is None else [line(header, "th")]
    return "\n".join(["<table>", *head, *lines, "</table>"])


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
