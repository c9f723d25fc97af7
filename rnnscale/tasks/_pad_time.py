"""A task whose sequences can be split evenly over devices."""

from dataclasses import replace

from rnnscale.data.pipelines import PaddedSource
from rnnscale.data.sources import Source
from rnnscale.tasks._task import Task

# The arrays of a record that have an axis of time, the leading one.
_PER_STEP = ("inputs", "intervals")
# And where labels are of steps.
_OF_LABELS = ("labels", "scored", "weight")


def pad_time(task: Task, multiple_of: int) -> Task:
    """The task with its sequences padded, as a mesh needs them that splits time over so many
    devices; itself where they are such a multiple already.

    ```python
    from rnnscale.data import load_task, pad_time

    task = pad_time(load_task("adding", seq_len=500), multiple_of=8)
    record = task.train[0]      # inputs: (504, 2), lengths: 500
    ```

    `seq_len` remains the number of steps that count. See `PaddedSource`.

    **Raises:** `ValueError` where `multiple_of` is below 1.
    """
    if multiple_of > 0 and task.seq_len % multiple_of == 0:
        return task
    per_step = _PER_STEP + (_OF_LABELS if task.labels == "step" else ())

    def padded(source: Source) -> Source:
        return PaddedSource(source, multiple_of, per_step=per_step)

    return replace(
        task,
        train=padded(task.train),
        validation=padded(task.validation),
        test=padded(task.test),
    )
