"""Packed rows, which `rnnscale data pack` wrote, as the records of a task."""

from pathlib import Path
from typing import Any

import numpy as np

from rnnscale import data
from rnnscale._errors import UserError
from rnnscale.data import Record, Source
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks._split import stratified_split
from rnnscale.tasks.files._series_table import SPLITS


def is_packed(path: Path) -> bool:
    """Whether a path is a folder of packed rows."""
    return (path / "index.json").is_file()


def packed_fields(path: Path, options: DataOptions, seq_len: int | None) -> dict[str, Any]:
    """The fields of a `Task` of a folder of packed rows.

    Rows are split by the fractions, and read one by one. Features and real labels are
    standardised by the training rows, without padding.

    **Raises:** `ValueError` if the rows can't be used for training, or the options don't fit them.
    """
    rows = data.PackedSource(path)  # imported here, since it needs Grain
    spec = rows.element_spec
    if not {"inputs", "labels"} <= spec.keys():
        raise UserError(
            f"packed rows need 'inputs' and 'labels' to train on; these have {', '.join(spec)}. "
            "Pack sequences with labels, or tokens"
        )
    for name in ("inputs", "labels"):
        axes = ("steps",) if spec[name].dtype.kind in "iu" else ("steps", "features")
        if len(spec[name].shape) != len(axes):
            raise UserError(
                f"the {name} of packed rows of {spec[name].dtype} must have the shape "
                f"({', '.join(axes)}); these have {spec[name].shape}. Give them an axis when you "
                "pack them"
            )
    options.refuse(
        f"{path} has packed rows, which have no columns and are not forecast",
        *("label", "inputs", "group", "time", "form", "horizon", "split", "missing"),
    )
    steps = spec["inputs"].shape[0]
    if seq_len not in (None, steps):
        raise UserError(f"the rows in {path} have {steps} steps; got {seq_len=}")
    _, validation, test = options.fractions
    indices = stratified_split(np.zeros(len(rows), np.int64), validation, test)
    if not all(map(len, indices)):
        raise UserError(
            f"{len(rows)} packed rows can't be split by {options.fractions}: each split needs a "
            "row; pack into rows of fewer steps, or give other fractions"
        )
    splits: dict[str, Source] = {
        split: _Rows(rows, of_split) for split, of_split in zip(SPLITS, indices, strict=True)
    }
    tokens = spec["inputs"].dtype.kind in "iu"
    is_classes = spec["labels"].dtype.kind in "iu"
    kinds = ("classification",) if is_classes else ("regression",)
    kinds = ("next_token", *kinds) if tokens and is_classes else kinds
    kind = options.kind or kinds[0]
    if kind not in kinds:
        raise UserError(f"the kind of these packed rows must be {' or '.join(kinds)}; got {kind}")
    sizes = {name: rows.largest[name] + 1 for name in ("inputs", "labels") if name in rows.largest}
    if kind == "next_token":
        sizes = dict.fromkeys(sizes, max(sizes.values()))
    # Text may have been packed with an end that is no byte.
    is_text = rows.notes.get("kind") in ("text", "bytes")
    of_bytes = kind == "next_token" and is_text and max(sizes.values()) <= 256
    if of_bytes:
        sizes = dict.fromkeys(sizes, 256)
    scales = _scales(splits["train"], [n for n in ("inputs", "labels") if n not in sizes])
    if scales:
        splits = {split: _Scaled(each, scales) for split, each in splits.items()}
    return {
        **splits,
        "inputs": "tokens" if tokens else "features",
        "idim": sizes["inputs"] if tokens else spec["inputs"].shape[1],
        "classes": sizes["labels"] if is_classes else None,
        "odim": None if is_classes else spec["labels"].shape[1],
        "labels": "step",
        "seq_len": steps,
        "metric": "bits_per_byte" if of_bytes else "accuracy" if is_classes else "nrmse",
        "notes": {"data": str(path), **rows.notes},
    }


class _Rows:
    """Some of the rows of a source."""

    def __init__(self, rows: Source, indices: np.ndarray):
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} rows")
        return self.rows[int(self.indices[index])]


class _Scaled:
    """Rows whose arrays are standardised by a mean and a standard deviation."""

    def __init__(self, rows: Source, scales: dict[str, tuple[np.ndarray, np.ndarray]]):
        self.rows, self.scales = rows, scales

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        record = dict(self.rows[index])
        for name, (mean, std) in self.scales.items():
            record[name] = ((record[name] - mean) / std).astype(np.float32)
        return record


def _scales(rows: Source, names: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of arrays over all steps that are not padding.

    Steps at the end of a row whose inputs are all zero are padding. Of labels, those count that
    have a weight.
    """
    if not names:
        return {}
    sums = {name: [0.0, 0.0, 0.0] for name in names}
    # Differences from the first number are summed, since squares have no digits for a small
    # deviation from a large mean.
    first: dict[str, np.ndarray] = {}
    for index in range(len(rows)):
        record = rows[index]
        steps = np.flatnonzero(record["inputs"].reshape(len(record["inputs"]), -1).any(axis=1))
        used = {
            "inputs": np.arange(len(record["inputs"])) <= (steps[-1] if len(steps) else -1),
            "labels": record["weight"] > 0,
        }
        for name in names:
            values = record[name][used[name]].astype(np.float64)
            if len(values):
                values = values - first.setdefault(name, values[0])
            parts = (len(values), values.sum(axis=0), np.square(values).sum(axis=0))
            sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)]
    scales = {}
    for name, (count, total, square) in sums.items():
        mean = np.asarray(total) / max(count, 1)
        std = np.sqrt(np.maximum(np.asarray(square) / max(count, 1) - mean**2, 0))
        scales[name] = mean + first.get(name, 0.0), np.where(std > 0, std, 1)
    return scales
