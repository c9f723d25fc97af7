"""Shoulder exercises, recognised from the motion of a smartwatch and split by person."""

import hashlib
import io
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from rnnscale._errors import UserError
from rnnscale.tasks._packages import file_of_package
from rnnscale.tasks._task import Task

_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
WATCH_PEOPLE = range(1, 11)


def watch(test_people: Collection[int] = (9, 10), validation_person: int = 8) -> Task:
    """Which of seven shoulder exercises a person does, from the motion of a smartwatch.

    Ten people did each exercise once with either arm: 140 series of 947 to 2618 steps at 50 Hz,
    with three axes of acceleration and three of rotation. Each person is in one split only. Inputs
    are float32 of shape `(2618, 6)`; each channel is normalised by its mean and standard deviation
    in the training split, and padded with zeros from step `"lengths"` on. The label is the
    exercise, 0 to 6: pendulum, abduction, forward elevation, internal rotation, external rotation,
    trapezius extension, row. `Task.sequences` has the series without padding.

    To leave out one person at a time:

    ```python
    for person in WATCH_PEOPLE:
        task = watch(test_people=[person], validation_person=person % 10 + 1)
    ```

    **Arguments:**

    - `test_people`: the people in the test split, 1 to 10.
    - `validation_person`: the person in the validation split, 1 to 10.

    **Returns:**

    The task. Its `baseline` is the accuracy of always answering the same class: 1/7.

    **Raises:** `ValueError` if a person is not 1 to 10, is in two splits, or nobody is left for
    training; `ImportError` if seglearn, which contains the data, is not installed.

    **Reference:** Burns et al., "Shoulder physiotherapy exercise recognition: machine learning the
    inertial signals from a smartwatch", Physiological Measurement 39 (2018).

    **Differs from the paper:** the paper has 20 people, ten of whom are in seglearn, and classifies
    windows of a few seconds instead of complete series.
    """
    testing = sorted(set(test_people))
    strangers = sorted({*testing, validation_person} - set(WATCH_PEOPLE))
    if strangers or not testing:
        raise UserError(
            "test_people and validation_person must be people 1 to 10, at least one of them for "
            f"test; got {test_people} and {validation_person}"
        )
    if validation_person in testing:
        raise UserError(
            f"validation_person must not be one of test_people {testing}; got {validation_person}"
        )
    training = [p for p in WATCH_PEOPLE if p not in testing and p != validation_person]
    if not training:
        raise UserError(f"nobody is left for training with {test_people} for test")
    path = file_of_package("seglearn", "seglearn/data/watch_dataset.npy")
    content = path.read_bytes()
    # The file is a pickle, and unpickling can run any code, so only the known file is read.
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256:
        raise UserError(
            f"{path} is not the file that seglearn 1.2.5 has: its SHA-256 is {found} and should be "
            f"{_SHA256}; install seglearn again"
        )
    stored = np.load(io.BytesIO(content), allow_pickle=True).item()
    people, labels = np.asarray(stored["subject"]), np.asarray(stored["y"])
    splits = {"train": training, "validation": [validation_person], "test": testing}
    of_person = {person: split for split, who in splits.items() for person in who}
    task = Task.from_arrays(
        list(stored["X"]),
        labels,
        kind="classification",
        split=[of_person[person] for person in people.tolist()],
        name="watch",
    )
    notes = {
        "source": "watch_dataset of seglearn",
        "exercises": list(stored["y_labels"]),
        **{f"{split}_people": who for split, who in splits.items()},
    }
    return replace(task, notes=notes)
