"""One's own data as tasks: files of every format, splits, preprocessing, and errors."""

import json
from pathlib import Path

import numpy as np

from rnnscale.tasks import Preprocessing, Task, task_from

TS = "@univariate false\n@equalLength false\n@classLabel true b a\n@data\n"


def two_classes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Series of 12 steps and 2 channels with far from standard scales, and their classes."""
    random = np.random.RandomState(seed)
    labels = random.permutation(np.arange(count) % 2)
    inputs = random.normal(size=(count, 12, 2)) * [10, 0.1] + [100, -3]
    return inputs + labels[:, None, None], labels


def test_preprocessing_is_fitted_to_the_training_split_only():
    inputs, labels = two_classes(40, 0)
    split = np.array(["train", "validation", "test", "train"] * 10)
    task = Task.from_arrays(inputs, labels, split=split)
    training = inputs[split == "train"].reshape(-1, 2)
    mean, std = training.mean(axis=0), training.std(axis=0)
    assert task.preprocessing is not None
    np.testing.assert_allclose(task.preprocessing.mean, mean, rtol=1e-12)
    for name, source in (("validation", task.validation), ("test", task.test)):
        for record, expected in zip(source, inputs[split == name], strict=True):  # type: ignore
            scaled = ((expected - mean) / std).astype(np.float32)
            np.testing.assert_array_equal(record["inputs"], scaled)
    # Other data outside of the training split change nothing in it.
    inputs[split != "train"] *= 1000
    changed = Task.from_arrays(inputs, labels, split=split)
    assert changed.preprocessing == task.preprocessing


def test_new_data_are_read_as_in_training(tmp_path: Path):
    inputs, labels = two_classes(40, 0)
    np.savez(tmp_path / "all.npz", X=inputs, y=np.where(labels, "up", "down"))
    task = task_from(tmp_path / "all.npz")
    assert task.preprocessing is not None
    stored = json.loads(json.dumps(task.preprocessing.to_json()))
    preprocessing = Preprocessing.from_json(stored)
    assert preprocessing == task.preprocessing
    np.savez(tmp_path / "new.npz", X=inputs)  # without labels
    new = preprocessing.read(tmp_path / "new.npz")
    assert len(new) == 40 and "labels" not in new[0]
    found = {new[index]["inputs"].tobytes() for index in range(40)}
    assert {task.test[index]["inputs"].tobytes() for index in range(len(task.test))} < found
    outputs = np.log([[0.25, 0.75], [0.6, 0.4]])
    decoded = preprocessing.decode(outputs)
    assert decoded["prediction"].tolist() == ["up", "down"]
    np.testing.assert_allclose(decoded["probability of down"], [0.25, 0.6])
