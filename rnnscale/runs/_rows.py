"""The rows of the batches of a run, for training and for evaluation."""

from typing import Literal

import grain

from rnnscale._errors import UserError
from rnnscale.data import (
    SequenceSource,
    Source,
    arrays_over_time,
    element_spec,
    lanes,
    lanes_once,
    pack,
    repeat,
    shuffle,
)
from rnnscale.runs._config import TrainConfig
from rnnscale.tasks import Task

type Split = Literal["validation", "test"]


def training_rows(config: TrainConfig, task: Task) -> grain.MapDataset:
    """The rows of the training batches, without end.

    **Raises:** `ValueError` if the task has no such rows.
    """
    match config.rows:
        case "records":
            return repeat(shuffle(task.train, seed=config.seed))
        case "packed":
            packed = pack(_sequences(config, task, "train"), task.seq_len)
            return repeat(shuffle(packed, seed=config.seed))
        case "lanes":
            sequences = _sequences(config, task, "train")
            return lanes(sequences, config.batch_size, task.seq_len, seed=config.seed)


def evaluation_rows(config: TrainConfig, task: Task, split: Split) -> Source | grain.MapDataset:
    """The rows of a split, with each label once."""
    if config.rows == "lanes":
        return lanes_once(_sequences(config, task, split), config.batch_size, task.seq_len)
    return task.validation if split == "validation" else task.test


def _sequences(config: TrainConfig, task: Task, split: str) -> SequenceSource:
    found = task.sequences.get(split)
    if found is None or set(element_spec(found)) - set(arrays_over_time(element_spec(found))):
        raise UserError(
            f"rows={config.rows} needs sequences of any length with a label at each step, and "
            f"{task.name!r} has none: use rows=records, or the task bytes"
        )
    return found
