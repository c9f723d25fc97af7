"""`describe`: what is understood of one's own data, in words, before anything is trained."""

from collections import Counter
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rnnscale.data import Source
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks._task import Task
from rnnscale.tasks._task_from import is_series, task_from, task_of_table
from rnnscale.tasks.files._read import read_table
from rnnscale.tasks.files._series_table import SPLITS, SeriesTable

# Columns and classes that are listed.
_MOST = 20


def describe(
    path: str | PathLike[str], *, seq_len: int | None = None, **options: Any
) -> Iterator[str]:
    """What `task_from` understands of one's own data, line by line.

    **Arguments:** see `task_from`.

    **Returns:** lines of text: first what the files have, then the task that is made of it.

    **Raises:** see `task_from`; data that can be read but not used are described first.
    """
    chosen = DataOptions(path=str(path), **options)
    if is_series(Path(path), chosen):
        table = read_table(path, chosen)
        yield from _about_table(table)
        task = task_of_table(Path(path), table, chosen, seq_len)
    else:
        task = task_from(path, seq_len=seq_len, **options)
        notes = (f"{name} {value}" for name, value in task.notes.items() if value not in ("", []))
        yield _line("notes", ", ".join(notes))
    yield from _about_task(task)


def _about_table(table: SeriesTable) -> Iterator[str]:
    yield _line("files", _listed(table.files))
    yield _line("series", f"{len(table):,}, of {_range(table.lengths)} steps")
    values = np.concatenate(table.inputs)
    missing = np.isnan(values)
    for number, column in enumerate(table.columns[:_MOST]):
        known = values[~missing[:, number], number]
        spread = "no values"
        if len(known):
            spread = f"{known.min():.4g} to {known.max():.4g}, mean {known.mean():.4g}"
        yield _line("" if number else "inputs", f"{column}: {spread}")
    if len(table.columns) > _MOST:
        yield _line("", f"and {len(table.columns) - _MOST} more")
    if table.times:
        between = np.concatenate([np.diff(times) for times in table.times])
        if len(between):
            yield _line("times", f"{_range(between)} apart")
    counts = missing.sum(axis=0)
    found = [f"{c} {n:,}" for c, n in zip(table.columns, counts.tolist(), strict=True) if n]
    of_all = f"{missing.sum():,} of {missing.size:,} values: {_listed(found)}" if found else "none"
    yield _line("missing", of_all)


def _about_task(task: Task) -> Iterator[str]:
    fitted = task.preprocessing
    yield _line("kind", f"{_kind(task)}; metric {task.metric}")
    if fitted is not None and fitted.kind == "regression":
        scales = zip(fitted.targets, fitted.target_mean, fitted.target_std, strict=True)
        texts = [f"{name} (mean {mean:.4g}, deviation {std:.4g})" for name, mean, std in scales]
        yield _line("labels", _listed(texts))
    record = {name: np.asarray(array) for name, array in task.train[0].items()}
    shapes = [f"{name} {array.dtype}{list(array.shape)}" for name, array in record.items()]
    yield _line("record", ", ".join(shapes))
    sizes = [f"{split} {len(getattr(task, split)):,}" for split in SPLITS]
    yield _line("split", ", ".join(sizes))
    if fitted is not None and fitted.classes is not None:
        yield from _class_counts(fitted.classes, task)


def _kind(task: Task) -> str:
    if task.preprocessing is not None and task.preprocessing.kind == "forecast":
        return f"forecast, {task.preprocessing.options.horizon} steps ahead at each step"
    if task.inputs == "tokens" and task.idim == task.classes:
        return "next_token"
    kind = "regression" if task.classes is None else "classification"
    return f"{kind}, a label for each {'step' if task.labels == 'step' else 'series'}"


def _class_counts(classes: tuple[str, ...], task: Task) -> Iterator[str]:
    """How many labels of each class a split has."""
    counts = {split: Counter(_labels(task.sequences[split])) for split in SPLITS}
    width = max(map(len, classes[:_MOST]))
    for number, name in enumerate(classes[:_MOST]):
        each = ", ".join(f"{split} {counts[split][number]:,}" for split in SPLITS)
        yield _line("" if number else "classes", f"{name:{width}}  {each}")
    if len(classes) > _MOST:
        yield _line("", f"and {len(classes) - _MOST} more")


def _labels(source: Source) -> Iterator[int]:
    for index in range(len(source)):
        yield from np.atleast_1d(source[index]["labels"]).tolist()


def _range(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    if low == high:
        return f"{low:,}"
    return f"{low:,.6g} to {high:,.6g} (median {np.median(values):,.6g})"


def _listed(words: Iterable[str]) -> str:
    words = list(words)
    more = f", and {len(words) - _MOST} more" if len(words) > _MOST else ""
    return ", ".join(words[:_MOST]) + more


def _line(name: str, text: str) -> str:
    return f"{name:9}{text}"
