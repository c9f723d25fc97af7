"""What `rnnscale bench plot` and the benchmarks share: figures, and the plot of timed calls."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnnscale._errors import UserError
from rnnscale.cli._options import check_file

type Row = dict[str, Any]

_SIZES = ("time", "channels", "states", "features", "units", "planes", "batch")
"""The sizes of rows, the ones that a sweep is most often over first."""
_KINDS = ("device", "operation", "cell", "dtype", "numbers", "decay")
_BASELINES = ("associative_scan", "lax_scan", "cudnn_lstm")


def new_figure(option: str, file: str) -> Any:
    """An empty figure of matplotlib, after checking that it can be saved in the file."""
    check_file(option, file)
    from rnnscale.analysis import figure_class

    figure = figure_class()(layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if Path(file).suffix.removeprefix(".") not in kinds:
        raise UserError(f"{option} {file}: must end in one of .{', .'.join(sorted(kinds))}")
    return figure


def draw_times(figure: Any, rows: Sequence[Row]) -> None:
    """Draws a panel for each mode and kind of arguments, with a line for each implementation."""
    # At a constant number of tokens, batch and time vary together: the axis shows time.
    sizes = [size for size in _SIZES if any(size in row for row in rows)]
    of_all = [size for size in sizes if all(size in row for row in rows)]
    varied = max(of_all, key=lambda size: len({row[size] for row in rows}))
    together = {varied} | ({"batch", "time"} if varied in ("batch", "time") else set())
    fixed = [size for size in sizes if size not in together]

    def kind(row: Row) -> tuple:
        """The words and the sizes in the title of a panel."""
        words = tuple(row[name] for name in _KINDS if name in row)
        return words, tuple((size, row[size]) for size in fixed if size in row)

    kinds = list(dict.fromkeys(map(kind, rows)))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure.set_size_inches(4 * len(kinds) + 2, 3.2 * len(modes))
    panels = figure.subplots(len(modes), len(kinds), squeeze=False, sharex=True, sharey=True)
    lines = {}
    for (i, mode), (j, of_kind) in itertools.product(enumerate(modes), enumerate(kinds)):
        panel = panels[i, j]
        chosen = [row for row in rows if (row["mode"], kind(row)) == (mode, of_kind)]
        for color, name in enumerate(names):
            points = sorted(
                (row[varied], row["percent_of_copy"]) for row in chosen if row["name"] == name
            )
            if points:
                style = "o--" if name in _BASELINES else "o-"
                xs, ys = zip(*points, strict=True)
                (lines[name],) = panel.plot(xs, ys, style, color=f"C{color}", label=name)
        panel.axhline(100, color="black", linewidth=0.8, linestyle=":")
        panel.set_xscale("log", base=2)
        (device, *words), numbers = of_kind
        of_panel = " ".join(f"{size}={n}" for size, n in numbers)
        panel.set_title(f"{device}\n{' '.join(words)}, {of_panel}", fontsize="small")
        panel.set_xlabel(varied)
        panel.set_ylabel(f"{mode}, % of copy bandwidth")
    figure.legend(handles=list(lines.values()), loc="outside right upper")
