"""The curves of a run, drawn with matplotlib, which is an extra."""

from collections.abc import Mapping, Sequence
from typing import Any

_NOT_DRAWN = {"step", "elapsed", "cpu_seconds", "tokens_per_second", "learning_rate"}


def draw_curves(rows: Sequence[Mapping[str, Any]], figure: Any) -> int:
    """Draws the metrics over the steps, with one panel for each and validation in the same panel.
    The figures of single layers, such as `parallel_residual/layer_0`, are left out.

    **Arguments:**

    - `rows`: the rows of `metrics.jsonl`.
    - `figure`: a figure of matplotlib.

    **Returns:** the number of panels.
    """
    names = dict.fromkeys(name for row in rows for name in row if name not in _NOT_DRAWN)
    panels = [name for name in names if not name.startswith("validation_") and "/" not in name]
    for i, name in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for curve, style in ((name, "-"), (f"validation_{name}", "--")):
            points = [(r["step"], r[curve]) for r in rows if r.get(curve) is not None]
            if points:
                # A single point, such as a validation at the end only, needs a marker to be seen.
                mark = "o" if len(points) == 1 else None
                axes.plot(*zip(*points, strict=True), style, marker=mark, label=curve)
        axes.set(xlabel="step", title=name.replace("_", " "))
        axes.legend(fontsize="small")
    return len(panels)
