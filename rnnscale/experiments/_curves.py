"""The curves of an experiment: the validation figure of each run over its steps and its time, few
enough points to be kept with the results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnnscale._errors import UserError
from rnnscale.experiments._experiment import Row, folder_of
from rnnscale.experiments._train import last_run
from rnnscale.runs import RunFolder

_POINTS = 40


def curves(out: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """The curves of rows of an experiment, from the folders of its runs.

    **Arguments:**

    - `out`: the folder of the experiment, as for `Experiment.run`.
    - `rows`: rows that `Experiment.run` yielded for it.

    **Returns:** `metric`, the name of the validation figure, and `rows`, one for each entry and
    seed: `entry`, `seed`, `parameters` and `ended` as in the rows of results, and lists of `steps`,
    `cpu_seconds` and `values`. A curriculum has the curve of its last run. There are about 40
    points, evenly spaced on a logarithmic axis, and the best evaluation is one of them.

    **Raises:** `ValueError` if nothing was evaluated during training.
    """
    found, metric = [], ""
    for row in rows:
        for seed, ended, seconds in zip(row["seeds"], row["ended"], row["seconds"], strict=True):
            folder = RunFolder(last_run(row["options"], folder_of(out, row["entry"], seed)))
            if (spec := folder.task_spec()) is None:  # nothing was trained
                continue
            metric = spec.metric
            best = (folder.summary() or {}).get("best_step")
            # The run may have gone on since it had its figure, whose time is in milliseconds.
            until = seconds + 1e-3
            logged = [each for each in folder.rows() if each.get("cpu_seconds", 0) <= until]
            if points := _points(logged, f"validation_{metric}", best):
                about = {"entry": row["entry"], "seed": seed, "parameters": row["parameters"]}
                found.append({**about, "ended": ended, **points})
    if not found:
        raise UserError("nothing was evaluated during training, so there are no curves")
    return {"metric": f"validation {metric.replace('_', ' ')}", "rows": found}


def _points(rows: Sequence[Row], name: str, best_step: int | None) -> dict[str, list[float]]:
    """The steps, times and values of some of the rows that have a figure."""
    rows = [row for row in rows if row.get(name) is not None]
    if not rows:
        return {}
    chosen = {round(len(rows) ** (i / (_POINTS - 1))) - 1 for i in range(_POINTS)}
    kept = [row for i, row in enumerate(rows) if i in chosen or row["step"] == best_step]
    return {
        "steps": [row["step"] for row in kept],
        "cpu_seconds": [float(f"{row['cpu_seconds']:.4g}") for row in kept],
        "values": [float(f"{row[name]:.4g}") for row in kept],
    }
