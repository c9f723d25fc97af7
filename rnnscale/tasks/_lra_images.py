"""The image tasks of the Long Range Arena, read pixel by pixel: Image, Pathfinder and Path-X."""

from functools import partial
from importlib.util import find_spec
from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._errors import MissingPackageError, UserError
from rnnscale.data import Record, UnchangedFile
from rnnscale.tasks._baselines import labels_of, most_frequent
from rnnscale.tasks._folder import FileRecords, file_of_folder, files_of_folder
from rnnscale.tasks._task import Task

_CIFAR = "cifar-10-binary.tar.gz, of www.cs.toronto.edu/~kriz/cifar.html, unpacked"
_RELEASE = "what lra_release.gz, of github.com/google-research/long-range-arena, has in lra_release"

_CIFAR_SIDE = 32
# An image is one byte for the class, then the red, green and blue pixels.
_CIFAR_BYTES = 1 + 3 * _CIFAR_SIDE**2
# The weights of red, green and blue in the luminance of ITU-R BT.601.
_GREY = np.array([0.299, 0.587, 0.114])


def lra_image(folder: str | PathLike[str]) -> Task:
    """Image of the Long Range Arena: greyscale CIFAR-10, pixel by pixel.

    The test split is the published one of 10000 images; the last tenth of the 50000 training
    images, in the order of the files, is the validation split. Inputs are float32 of shape
    `(1024, 1)`, row by row, in `[0, 1]`; the label is one of ten classes. Each access reads an
    image from its file.

    **Arguments:**

    - `folder`: contains `cifar-10-batches-bin/data_batch_1.bin` to `data_batch_5.bin` and
        `test_batch.bin`: the binary version of CIFAR-10.

    **Returns:**

    The task. Its `baseline` is the accuracy of the most frequent class in the test split.

    **Raises:** `ValueError` if a file is missing or of another format; and at an index, if the file
    has changed.

    **Reference:** Tay et al., "Long range arena: A benchmark for efficient transformers", ICLR
    2021; after Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

    **Differs from the paper:** a pixel is a number, where the paper embeds one of 256 tokens; the
    validation split has other images.
    """

    def images(*names: str) -> list[tuple[UnchangedFile, int]]:
        paths = (file_of_folder(folder, f"cifar-10-batches-bin/{n}.bin", _CIFAR) for n in names)
        files = map(UnchangedFile.note, paths)
        return [(file, start) for file in files for start in _cifar_starts(file)]

    training = images(*(f"data_batch_{number}" for number in range(1, 6)))
    kept = len(training) - len(training) // 10
    items = training[:kept], training[kept:], images("test_batch")
    splits = [FileRecords(each, _read_cifar) for each in items]
    return Task(
        "lra-image",
        *splits,
        inputs="features",
        idim=1,
        classes=10,
        labels="sequence",
        seq_len=_CIFAR_SIDE**2,
        metric="accuracy",
        notes={"folder": str(folder)},
        baseline=lambda: most_frequent(labels_of(splits[2])),
    )


def _cifar_starts(file: UnchangedFile) -> range:
    """The byte at which each image of a file begins."""
    if file.size == 0 or file.size % _CIFAR_BYTES:
        raise UserError(
            f"{file.path} must be of the binary version of CIFAR-10, so its size must be a "
            f"multiple of {_CIFAR_BYTES} bytes; it has {file.size}"
        )
    return range(0, file.size, _CIFAR_BYTES)


def _read_cifar(place: tuple[UnchangedFile, int], index: int) -> Record:
    file, start = place
    content = file.read(start, start + _CIFAR_BYTES, index)
    if content[0] > 9:
        raise UserError(f"{file.path}, record {index}: class {content[0]} must be 0 to 9")
    grey = _GREY @ content[1:].reshape(3, -1) / 255
    return {
        "inputs": grey.astype(np.float32)[:, None],
        "labels": np.asarray(content[0], np.int32),
    }


def lra_pathfinder(folder: str | PathLike[str]) -> Task:
    """Pathfinder of the Long Range Arena: whether a path of dashes joins two dots, pixel by pixel.

    200000 images of 32 x 32 pixels, split at random, the same every time, into 80, 10 and 10 % for
    training, validation and test. Inputs are float32 of shape `(1024, 1)`, row by row, in `[0, 1]`;
    the label is 1 if the dots are joined. Each access reads an image from its file, with Pillow.

    **Arguments:**

    - `folder`: contains `pathfinder32/curv_contour_length_14/` with its `metadata/*.npy` and
        `imgs`.

    **Returns:**

    The task. Its `baseline` is the accuracy of the most frequent class in the test split.

    **Raises:** `ValueError` if a folder is missing or a list is malformed; and at an index, if the
    image is missing or can't be decoded. `ImportError` if Pillow is not installed.

    **Reference:** Tay et al., "Long range arena: A benchmark for efficient transformers", ICLR
    2021; after Linsley et al., "Learning long-range spatial dependencies with horizontal gated
    recurrent units", NeurIPS 2018.

    **Differs from the paper:** a pixel is a number, where the paper embeds one of 256 tokens; the
    splits have the same sizes and other images.
    """
    return _pathfinder("lra-pathfinder", folder, 32)


def lra_pathx(folder: str | PathLike[str]) -> Task:
    """Path-X of the Long Range Arena: `lra_pathfinder` with images of 128 x 128, 16384 steps.

    **Arguments:**

    - `folder`: contains `pathfinder128/curv_contour_length_14/` with its `metadata/*.npy` and
        `imgs`.
    """
    return _pathfinder("lra-pathx", folder, 128)


def _pathfinder(name: str, folder: str | PathLike[str], side: int) -> Task:
    if find_spec("PIL") is None:
        raise MissingPackageError(
            f"the images of {name} are read with Pillow, which is not installed; "
            "install it with: pip install pillow"
        )
    place = f"pathfinder{side}/curv_contour_length_14"
    pictures = []
    # These files are text, in spite of their suffix.
    for image_list in files_of_folder(folder, f"{place}/metadata", ".npy", _RELEASE):
        for number, line in enumerate(image_list.read_text().splitlines(), 1):
            columns = line.split()
            if len(columns) < 4 or columns[3] not in ("0", "1"):
                raise UserError(
                    f"{image_list}, line {number}: must begin with a folder, a file, a number and "
                    f"0 or 1; it is {line[:80]!r}"
                )
            pictures.append((Path(folder, place, columns[0], columns[1]), int(columns[3])))
    # RandomState, because NumPy promises never to change its stream; Generator's may change.
    order = np.random.RandomState(0).permutation(len(pictures))
    count, tenth = len(pictures), len(pictures) // 10
    parts = np.split(order, [count - 2 * tenth, count - tenth])
    splits = [[pictures[row] for row in rows] for rows in parts]
    return Task(
        name,
        *(FileRecords(split, partial(_read_picture, side)) for split in splits),
        inputs="features",
        idim=1,
        classes=2,
        labels="sequence",
        seq_len=side**2,
        metric="accuracy",
        notes={"folder": str(folder)},
        baseline=lambda: most_frequent(np.array([label for _, label in splits[2]])),
    )


def _read_picture(side: int, picture: tuple[Path, int], index: int) -> Record:
    # Imported here, because the package does not depend on it.
    from PIL import Image

    path, label = picture
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
    except OSError as error:
        raise UserError(f"{path}, record {index}: can't be read as an image: {error}") from error
    if pixels.shape != (side, side):
        raise UserError(
            f"{path}, record {index}: must have {side} x {side} pixels; it has "
            f"{pixels.shape[1]} x {pixels.shape[0]}"
        )
    return {
        "inputs": (pixels.reshape(-1, 1) / 255).astype(np.float32),
        "labels": np.asarray(label, np.int32),
    }
