"""The splits of the LinOSS paper, on a small archive folder in the format of the archives."""

import logging
from pathlib import Path

import numpy as np
import pytest

from rnnscale.tasks import load_task, uea

SEED = 6789
# From the key that the authors' code permutes with, by jax 0.4.35 with its defaults.
ORDER_OF_12 = {2345: [6, 5, 0, 10, 4, 9, 1, 2, 8, 11, 7, 3]}


def write(folder: Path, name: str, series: np.ndarray, labels: list[str]) -> None:
    """A file `name` of `series`, "series time channel"."""
    lines = ["@univariate false", "@equalLength true", "@classLabel true up down", "@data"]
    for values, label in zip(series, labels, strict=True):
        channels = [",".join(map(repr, channel.tolist())) for channel in values.T]
        lines.append(":".join([*channels, label]))
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, np.ndarray, list[str]]:
    """Twelve different series; the first of the training file comes again in both files."""
    series = np.random.default_rng(0).integers(0, 3, (12, 5, 2)).astype(np.float64)
    assert len(np.unique(series, axis=0)) == 12
    labels = ["up" if n % 3 else "down" for n in range(12)]
    folder = tmp_path / "Tiny"
    train, test = [*range(7), 0], [7, 8, 0, 9, 10, 11]
    for split, rows in (("TRAIN", train), ("TEST", test)):
        write(folder, f"Tiny_{split}.ts", series[rows], [labels[row] for row in rows])
    return folder, series, labels


def test_records_are_those_of_the_authors_code(archive, caplog):
    folder, series, labels = archive
    with caplog.at_level(logging.INFO):
        task = load_task("uea", folder=folder, protocol="linoss")
    # Sorted as tuples of numbers, which is the order of numpy.unique.
    rows = sorted(range(12), key=lambda row: tuple(series[row].ravel()))
    order = [rows[n] for n in ORDER_OF_12[2345]]
    sizes = {"train": order[:8], "validation": order[8:10], "test": order[10:]}
    for split, expected in sizes.items():
        source = getattr(task, split)
        assert len(source) == len(expected)
        for n, row in enumerate(expected):
            record = source[n]
            assert record.keys() == {"inputs", "labels"}
            np.testing.assert_array_equal(record["inputs"], series[row].astype(np.float32))
            # Classes in the order of their names: down, up.
            assert record["labels"] == (labels[row] == "up")
    assert (task.name, task.idim, task.classes, task.seq_len) == ("Tiny", 2, 2, 5)
    assert "Tiny: 12 series, without 2 copies; train 8, validation 2, test 2" in caplog.text
    assert task.notes["series"] == 12 and task.notes["test"] == 2


def test_time_is_the_first_channel(archive):
    folder, *_ = archive
    task, timed = (uea(folder, protocol=name, split_seed=7) for name in ("linoss", "linoss-time"))
    assert timed.idim == 3
    assert len(task.train) == len(timed.train)
    for n in range(len(task.train)):
        record, with_time = task.train[n], timed.train[n]
        np.testing.assert_array_equal(with_time["inputs"][:, 1:], record["inputs"])
        np.testing.assert_allclose(with_time["inputs"][:, 0], np.arange(5) / 5, rtol=1e-6)


def test_the_split_is_that_of_its_seed_only(archive):
    folder, *_ = archive

    def inputs(seed):
        task = uea(folder, protocol="linoss", split_seed=seed)
        return np.stack([task.train[n]["inputs"] for n in range(len(task.train))])

    np.testing.assert_array_equal(inputs(SEED), inputs(SEED))
    assert (inputs(SEED) != inputs(SEED + 1)).any()


def test_the_default_is_the_split_of_the_archive(archive):
    folder, *_ = archive
    assert len(uea(folder).test) == 6
    assert uea(folder, protocol="archive").preprocessing is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"protocol": "archive", "split_seed": 3}, "the archive has one split"),
        ({"protocol": "linos"}, "protocol must be"),
        ({"protocol": "linoss", "split_seed": -1}, "split_seed must be at least 0"),
    ],
)
def test_bad_options(archive, changed, message):
    with pytest.raises(ValueError, match=message):
        uea(archive[0], **changed)


def test_other_data_are_refused(archive):
    folder, series, labels = archive
    (folder / "Tiny_TEST.ts").rename(folder / "Other_TEST.ts")
    with pytest.raises(ValueError, match=r"needs NAME_TRAIN.ts and NAME_TEST.ts; got .*TRAIN.ts"):
        uea(folder, protocol="linoss")
    write(folder, "Tiny_TEST.ts", series[:, :3], labels)
    with pytest.raises(ValueError, match="series of one length; those of .* have 3 to 5 steps"):
        uea(folder, protocol="linoss")
    series[0, 1, 0] = np.nan
    write(folder, "Tiny_TEST.ts", series, labels)
    with pytest.raises(ValueError, match="1 values are missing"):
        uea(folder, protocol="linoss")
    with pytest.raises(ValueError, match="'digits' takes no protocol; tasks that do: uea"):
        load_task("digits", protocol="linoss")
