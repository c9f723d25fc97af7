"""Padding of a task's sequences, so that their time axis can be split evenly over devices."""

from dataclasses import replace

from rnnscale.data import PaddedSource, Source
from rnnscale.tasks._task import Task

# The arrays of a record whose leading axis is time: always, and if there is a label per step.
_OVER_TIME = ("inputs", "intervals", "reset")
_OVER_LABELS = ("labels", "scored", "weight")


def pad_time(task: Task, multiple_of: int) -> Task:
    """Pads the sequences of a task with zeros to a multiple of a number of steps.

    A mesh that splits the time axis over `n` devices needs sequences of a multiple of `n` steps.

    ```python
    from rnnscale.tasks import load_task, pad_time

    task = pad_time(load_task("adding", seq_len=500), multiple_of=8)
    record = task.train[0]      # inputs: (504, 2), lengths: 500
    ```

    **Arguments:**

    - `task`: the task. Its `seq_len`, the number of steps before the padding, stays the same.
    - `multiple_of`: at least 1.

    **Returns:** the padded task, or `task` itself if its sequences need no padding. See
    `PaddedSource` for what the padding contains.

    **Raises:** `ValueError` if `multiple_of` is below 1.
    """
    if multiple_of > 0 and task.seq_len % multiple_of == 0:
        return task
    per_step = _OVER_TIME + (_OVER_LABELS if task.labels == "step" else ())

    def padded(source: Source) -> Source:
        return PaddedSource(source, multiple_of, per_step=per_step)

    return replace(
        task,
        train=padded(task.train),
        validation=padded(task.validation),
        test=padded(task.test),
    )
