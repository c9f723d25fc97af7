"""Time series to classify, of the UCR and UEA archives, as far as they come with aeon."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import read_ts
from rnnscale.tasks._sequences import sequences_task
from rnnscale.tasks._task import Task
from rnnscale.tasks._wheels import file_of_package


@dataclass(frozen=True)
class ArchiveInfo:
    """What one can say of a data set of the archives without reading it.

    **Attributes:**

    - `file`: its name in the archives.
    - `description`: one line.
    - `classes`: how many there are.
    - `reference`: where it comes from.
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

    Training and test records are those of the archives; every tenth record of each class of the
    training part, rounded up, is for validation. Inputs are float32 of shape `(seq_len, channels)`,
    each channel shifted and scaled by its mean and standard deviation in what remains for training,
    and filled up with zeros to the longest sequence; `"lengths"` is where that begins. The label is
    the class. `Task.sequences` has the sequences as long as they are.

    **Arguments:**

    - `name`: one of `ARCHIVE`.

    **Returns:**

    The task. Its `baseline` is the accuracy of the class that is most frequent in the test split.

    **Raises:** `ValueError` for an unknown name; `ImportError` if aeon, which holds the files, is
    not installed.

    **Reference:** Dau et al., "The UCR time series archive", IEEE/CAA Journal of Automatica Sinica
    6 (2019), and Bagnall et al., "The UEA multivariate time series classification archive", 2018;
    `ARCHIVE` says where each set comes from.

    **Differs from the papers:** they have no validation split and train on all training records.
    """
    if name not in ARCHIVE:
        nearest = difflib.get_close_matches(name, ARCHIVE, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown data set {name!r}; did you mean {nearest!r}? There are: {', '.join(ARCHIVE)}"
        )
    info = ARCHIVE[name]
    training, test = (_read(info.file, part) for part in ("TRAIN", "TEST"))
    held_out = _tenth(training[1])
    return sequences_task(
        name,
        info.description,
        {
            "train": _chosen(training, np.setdiff1d(np.arange(len(training[1])), held_out)),
            "validation": _chosen(training, held_out),
            "test": test,
        },
        info.classes,
        {"source": f"{info.file} of aeon", "reference": info.reference},
    )


type _Labelled = tuple[list[np.ndarray], np.ndarray]


def _read(file: str, part: str) -> _Labelled:
    path = file_of_package("aeon", f"aeon/datasets/data/{file}/{file}_{part}.ts")
    sequences = read_ts(path)
    records = [sequences[index] for index in range(len(sequences))]
    return [r["inputs"] for r in records], np.array([r["labels"] for r in records])


def _chosen(records: _Labelled, rows: np.ndarray) -> _Labelled:
    inputs, labels = records
    return [inputs[row] for row in rows], labels[rows]


def _tenth(labels: np.ndarray) -> np.ndarray:
    """A tenth of each class, rounded up: sorted indices."""
    # RandomState, because NumPy promises never to change its stream; Generator's may change.
    random = np.random.RandomState(0)
    held_out = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held_out.append(members[: math.ceil(len(members) / 10)])
    return np.sort(np.concatenate(held_out))
