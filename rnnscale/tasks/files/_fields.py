"""From a table of series to what a task has, apart from its name and its notes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rnnscale._errors import UserError
from rnnscale.tasks._data_options import DataOptions, are_fractions, check_steps
from rnnscale.tasks.files._arrays import table_of_arrays
from rnnscale.tasks.files._forecast import forecast_fields
from rnnscale.tasks.files._labelled import kind_of, labelled_fields
from rnnscale.tasks.files._series_table import SeriesTable


def fields_of_arrays(
    arrays: Mapping[str, Any], split: Any, options: DataOptions, seq_len: int | None, name: str
) -> dict[str, Any]:
    """The fields of a `Task` of arrays in memory; see `Task.from_arrays`."""
    if are_fractions(split):
        table = table_of_arrays(name, **arrays)
        return fields_of_table(table, replace(options, split=split), seq_len)
    if split is None or isinstance(split, str | int | float):
        raise UserError(f"split must be three fractions, or a name for each series; got {split!r}")
    return fields_of_table(table_of_arrays(name, split=split, **arrays), options, seq_len)


def fields_of_table(
    table: SeriesTable, options: DataOptions, seq_len: int | None
) -> dict[str, Any]:
    """The fields of a `Task` of a table of series."""
    check_steps("seq_len", seq_len)
    options = replace(options, kind=kind_of(table, options))
    if options.kind == "next_token":
        raise UserError("next-token prediction needs text or packed tokens; these data are series")
    if options.kind == "forecast":
        return forecast_fields(table, options, seq_len)
    fields = labelled_fields(table, options)
    if seq_len not in (None, fields["seq_len"]):
        raise UserError(
            f"the longest of these series has {fields['seq_len']} steps, got {seq_len=}: leave it "
            "out, or give the data that a run was trained on"
        )
    return fields
