"""Time series classification: data sets of the UCR and UEA archives that the package aeon has."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from types import MappingProxyType
from typing import Literal

from rnnscale._checks import Count, check_arguments
from rnnscale._errors import UserError, check_name
from rnnscale.tasks._linoss_split import linoss_task
from rnnscale.tasks._packages import file_of_package
from rnnscale.tasks._task import Task
from rnnscale.tasks._task_from import task_from

type Protocol = Literal["archive", "linoss", "linoss-time"]

LINOSS_SEEDS = (2345, 3456, 4567, 5678, 6789)
"""The seeds of the protocol `"linoss"`, see `uea`."""


@dataclass(frozen=True)
class ArchiveInfo:
    """What is known about a data set of the archives before its files are read.

    **Attributes:**

    - `file`: its name in the archives.
    - `description`: one line.
    - `classes`: number of classes.
    - `reference`: who published it.
    """

    file: str
    description: str
    classes: int
    reference: str


ARCHIVE: Mapping[str, ArchiveInfo] = MappingProxyType(
    {
        "japanese-vowels": ArchiveInfo(
            "JapaneseVowels",
            "nine speakers by two vowels, 12 channels, 7 to 29 steps",
            9,
            "Kudo, Toyama and Shimbo, Pattern Recognition Letters 20 (1999)",
        ),
        "acsf1": ArchiveInfo(
            "ACSF1",
            "ten kinds of appliances by their power, 1460 steps",
            10,
            "Gisler et al., ISCC 2013",
        ),
        "osu-leaf": ArchiveInfo(
            "OSULeaf",
            "six kinds of leaves by their outlines, 427 steps",
            6,
            "Grandhi, Oregon State University",
        ),
        "pickup-gesture": ArchiveInfo(
            "PickupGestureWiimoteZ",
            "ten people by how they pick up a controller, 29 to 361 steps",
            10,
            "Guna, Humar and Pogacnik, TSP 2012",
        ),
        "basic-motions": ArchiveInfo(
            "BasicMotions",
            "four activities by a watch, 6 channels, 100 steps",
            4,
            "Clements, University of East Anglia",
        ),
        "gunpoint": ArchiveInfo(
            "GunPoint",
            "drawing a gun or pointing, 150 steps, 2 classes",
            2,
            "Ratanamahatana and Keogh, SDM 2005",
        ),
        "arrow-head": ArchiveInfo(
            "ArrowHead",
            "three kinds of projectile points by their outlines, 251 steps",
            3,
            "Ye and Keogh, KDD 2009",
        ),
        "italy-power-demand": ArchiveInfo(
            "ItalyPowerDemand",
            "summer or winter by a day's power demand, 24 steps, 2 classes",
            2,
            "Keogh et al., KDD 2006",
        ),
    }
)


def archive_task(name: str) -> Task:
    """Classification of a data set of the UCR and UEA archives.

    The training and test records are those of the archives; a tenth of each class of the training
    records, rounded up, becomes the validation split. Inputs are float32 of shape `(seq_len,
    channels)`; each channel is normalised by its mean and standard deviation in the remaining
    training records, and padded with zeros to the longest sequence, from step `"lengths"` on. The
    label is the class. `Task.sequences` has the sequences without padding.

    **Arguments:**

    - `name`: a key of `ARCHIVE`.

    **Returns:**

    The task. Its `baseline` is the accuracy of the most frequent class in the test split.

    **Raises:** `ValueError` if the name is unknown; `ImportError` if aeon, which contains the
    files, is not installed.

    **Reference:** Dau et al., "The UCR time series archive", IEEE/CAA Journal of Automatica Sinica
    6 (2019), and Bagnall et al., "The UEA multivariate time series classification archive", 2018;
    `ARCHIVE` names the origin of each data set.

    **Differs from the papers:** they have no validation split and train on all training records.
    """
    check_name(name, ARCHIVE, "data set")
    info = ARCHIVE[name]
    training = file_of_package("aeon", f"aeon/datasets/data/{info.file}/{info.file}_TRAIN.ts")
    notes = {"source": f"{info.file} of aeon", "reference": info.reference}
    return replace(task_from(training), name=name, notes=notes)


@check_arguments
def uea(
    folder: str | PathLike[str],
    *,
    protocol: Protocol = "archive",
    split_seed: Count | None = None,
) -> Task:
    """Classification or regression of any data set of the UCR and UEA archives.

    With the protocol `"archive"`, splits, inputs and labels are as in `archive_task`; the labels of
    a regression are normalised by the training records. The test split stays that of the archive.

    The protocol `"linoss"` is that of the papers of Log-NCDE, LinOSS and D-LinOSS, for sets of
    equal lengths with classes. Training and test series are put together, exact copies are left
    out, and the rest is split 70/15/15 at random, by the seed, without regard to classes. Inputs
    are not normalised. `"linoss-time"` is the same with the time, from 0 to below 1, as an
    additional first channel. Papers report the mean over the seeds 2345, 3456, 4567, 5678 and 6789.
    The sets that they use have 36 to 85 series to test, so one series is one to three points.

    **Arguments:**

    - `folder`: contains `NAME_TRAIN.ts` and `NAME_TEST.ts`, as timeseriesclassification.com has
        them. If it has several data sets, that with the name of the folder is read.
    - `protocol`: `"archive"`, `"linoss"` or `"linoss-time"`.
    - `split_seed`: of the split of the last two, at least 0; 2345 by default.

    **Returns:** the task, named after the folder. Its `notes` and, for the last two, a line of the
    log have the sizes.

    **Raises:** `ValueError` if the folder has no such files, a file can't be used, or an option
    does not fit.

    **Reference:** see `archive_task`; Rusch and Rus, *Oscillatory State-Space Models*, ICLR 2025,
    and Walker et al., *Log Neural Controlled Differential Equations*, ICML 2024.

    **Differs from the papers:** see `archive_task`. The authors of `"linoss"` read ARFF files. If
    their decimals are others than those of the .ts files, there may be other copies.
    """
    if protocol == "archive":
        if split_seed is not None:
            raise UserError(
                "split_seed is for the protocols linoss and linoss-time; the archive has one split"
            )
        return task_from(folder)
    seed = LINOSS_SEEDS[0] if split_seed is None else split_seed
    return linoss_task(folder, split_seed=seed, time_channel=protocol == "linoss-time")
