"""The data of the LinOSS and Log-NCDE papers: their splits of sets of the UEA archive."""

import logging
from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data import ArraySource
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks._task import Task
from rnnscale.tasks.files._read import name_of, read_table
from rnnscale.tasks.files._series_table import SPLITS, SeriesTable, check_complete

_log = logging.getLogger(__name__)


@check_arguments
def linoss_task(folder: str | PathLike[str], *, split_seed: int, time_channel: bool) -> Task:
    """The task of a folder with `NAME_TRAIN.ts` and `NAME_TEST.ts`, as these papers split it.

    See `uea` for the protocol and the errors.
    """
    table = read_table(folder, DataOptions(path=str(folder)))
    inputs, labels, classes = _arrays(table)
    count = len(inputs)
    # In the order of their values, as the authors' code has them before it permutes them.
    _, kept = np.unique(inputs, axis=0, return_index=True)
    inputs, labels = inputs[kept], labels[kept]
    if time_channel:
        steps = inputs.shape[1]
        time = np.float32(1 / steps) * np.arange(steps, dtype=np.float32)
        time = np.broadcast_to(time[:, None], (*inputs.shape[:2], 1))
        inputs = np.concatenate([time, inputs], axis=-1)
    order = _permutation(split_seed, len(inputs))
    bounds = [int(len(inputs) * 0.7), int(len(inputs) * 0.85)]
    splits = dict(zip(SPLITS, np.split(order, bounds), strict=True))
    if empty := [split for split, rows in splits.items() if not len(rows)]:
        raise UserError(
            f"{folder} has {len(inputs)} different series, too few to split: {', '.join(empty)} "
            "would be empty"
        )
    name = name_of(Path(folder))
    sizes = {split: len(rows) for split, rows in splits.items()}
    _log.info(
        "%s: %d series, without %d copies; %s",
        name,
        len(inputs),
        count - len(inputs),
        ", ".join(f"{split} {size}" for split, size in sizes.items()),
    )
    train, validation, test = (
        ArraySource(inputs=inputs[rows], labels=labels[rows]) for rows in splits.values()
    )
    return Task(
        name,
        train,
        validation,
        test,
        inputs="features",
        idim=inputs.shape[2],
        classes=len(classes),
        labels="sequence",
        seq_len=inputs.shape[1],
        metric="accuracy",
        notes={"data": str(folder), "series": len(inputs), "copies": count - len(inputs), **sizes},
    )


def _arrays(table: SeriesTable) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs of float32, "series time channel", training before test; labels; names of classes."""
    if not {"train", "test"} <= set(table.splits):
        raise UserError(
            "the split of LinOSS needs NAME_TRAIN.ts and NAME_TEST.ts; got "
            + ", ".join(table.files)
        )
    if table.kind != "classification":
        raise UserError(f"the split of LinOSS is for classes, and {table.files[0]} has none")
    check_complete(table)
    if len(set(table.lengths.tolist())) > 1:
        raise UserError(
            f"the split of LinOSS is for series of one length; those of {table.files[0]} have "
            f"{table.lengths.min()} to {table.lengths.max()} steps"
        )
    splits = np.array(table.splits)
    rows = np.concatenate([np.flatnonzero(splits == split) for split in ("train", "test")])
    names = [str(table.labels[row][0]) for row in rows]
    classes = sorted(set(names))
    inputs = np.stack([table.inputs[row] for row in rows]).astype(np.float32)
    return inputs, np.array([classes.index(name) for name in names], np.int32), classes


def _permutation(seed: int, count: int) -> np.ndarray:
    """The order of the series, from the seed of an experiment of these papers."""
    import jax  # here, because the list of tasks needs no jax

    # The random numbers of the versions of jax that the papers used.
    with jax.threefry_partitionable(False):
        data_key, *_ = jax.random.split(jax.random.PRNGKey(seed), 4)
        split_key, _ = jax.random.split(data_key)
        return np.asarray(jax.random.permutation(split_key, count))
