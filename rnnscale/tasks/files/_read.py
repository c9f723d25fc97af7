"""From a path to a table of series: which files are read, and in which format."""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Protocol

from rnnscale._errors import UserError
from rnnscale.data import files_under
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks.files import _arrays, _csv, _parquet, _ts
from rnnscale.tasks.files._series_table import SeriesTable, joined, split_named


class _Reader(Protocol):
    """Reads a file. `new` says that these are new data, whose labels can be missing."""

    def __call__(self, path: Path, options: DataOptions, *, new: bool) -> SeriesTable: ...


# The readers by the suffixes of files. The archives have the same data in several formats; of these
# the first one is read.
READERS: Mapping[str, _Reader] = {
    ".ts": _ts.read,
    ".npz": _arrays.read,
    ".npy": _arrays.read,
    ".parquet": _parquet.read,
    ".csv": _csv.read,
    ".tsv": _csv.read,
}


def read_table(path: str | PathLike[str], options: DataOptions) -> SeriesTable:
    """The series of a file or a folder.

    If names end in `_TRAIN` and `_TEST`, the files are the splits. Of a file `NAME_TRAIN`, the
    other splits are the files next to it. In a folder with several such data sets, that with the
    name of the folder is read.

    **Raises:** `ValueError` with file and line if there is no such file, or it can't be used.
    """
    path = Path(path)
    files = _files(path)
    if path.is_file() and (split := split_of_name(path)):
        files = [f for f in sorted(path.parent.iterdir()) if _is_split_of(f, path)]
        if split != "train":
            raise UserError(
                f"{path} is the {split} split; give the file for training or the folder"
            )
    by_name: dict[str, list[Path]] = {}
    for file in files:
        by_name.setdefault(_without_split(file) if split_of_name(file) else "", []).append(file)
    if path.is_dir() and len(by_name) > 1:
        files = by_name.get(path.resolve().name.lower(), [])
        if not files:
            names = ", ".join(sorted(name or "files without a split" for name in by_name))
            raise UserError(f"{path} has several data sets ({names}); give one of their files")
    splits = {file: split_of_name(file) for file in files}
    named: dict[str, Path] = {}
    for file, split in splits.items():
        if split and (other := named.setdefault(split, file)) != file:
            raise UserError(
                f"{other} and {file} are both the {split} split; give the file for training"
            )
    tables = []
    for file, split in splits.items():
        table = _reader(file)(file, options, new=False)
        if split is not None:
            table = replace(table, splits=[split] * len(table))
        tables.append(table)
    table = replace(joined(tables), files=[str(file) for file in files])
    # With one series, nothing says whether its label is one of the series or of its steps.
    return with_constant_labels_once(table) if options.label and len(table) > 1 else table


def read_new(path: str | PathLike[str], options: DataOptions) -> SeriesTable:
    """The series of new data, all of them, for predictions."""
    return joined([_reader(file)(file, options, new=True) for file in _files(Path(path))])


def with_constant_labels_once(table: SeriesTable) -> SeriesTable:
    """The table, with one label per series if labels at each step never change within a series."""
    if not table.labels_per_step:
        return table
    if any((labels != labels[0]).any() for labels in table.labels):
        return table
    return replace(table, labels=[labels[0] for labels in table.labels])


def has_series(path: Path) -> bool:
    """Whether a file, or any file of a folder, has the suffix of a format for series."""
    files = files_under(path) if path.is_dir() else [path]
    return any(file.suffix.lower() in READERS for file in files)


def split_of_name(path: Path) -> str | None:
    """The split that a file's name ends with; None if it ends with none."""
    return split_named(path.stem.rpartition("_")[2])


def name_of(path: Path) -> str:
    """The name of a data set: that of its file or folder, without suffix and split."""
    stem = path.resolve().stem
    return stem.rpartition("_")[0] if path.is_file() and split_of_name(path) else stem


def _reader(path: Path) -> _Reader:
    return READERS[path.suffix.lower()]


def _without_split(path: Path) -> str:
    return path.stem.rpartition("_")[0].lower()


def _is_split_of(file: Path, path: Path) -> bool:
    """Whether a file is a split of the data set that another one is a split of."""
    same = file.suffix.lower() == path.suffix.lower() and _without_split(file) == _without_split(
        path
    )
    return same and split_of_name(file) is not None


def _files(path: Path) -> list[Path]:
    """The files to read, all of one format: that of the first suffix of `READERS`."""
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise UserError(f"{path} must end in {', '.join(READERS)}; got {path.suffix!r}")
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no file or folder {path}")
    found = files_under(path)
    for known in READERS:
        if files := [file for file in found if file.suffix.lower() == known]:
            others = [f for f in found if f.suffix.lower() in READERS and f not in files]
            if others and not all(split_of_name(file) for file in files):
                raise UserError(
                    f"{path} has files of several formats ({files[0].name}, {others[0].name}); "
                    "give one of them, or a folder with one format"
                )
            return files
    suffixes = ", ".join(sorted({file.suffix or "none" for file in found})) or "no files"
    raise UserError(f"{path} must have files that end in {', '.join(READERS)}; it has {suffixes}")
