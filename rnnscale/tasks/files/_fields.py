"""From a table of series to what a task has, apart from its name and its notes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rnnscale._errors import UserError
from rnnscale.tasks._data_options import FRACTIONS, DataOptions
from rnnscale.tasks.files._arrays import table_of_arrays
from rnnscale.tasks.files._forecast import forecast_fields
from rnnscale.tasks.files._labelled import kind_of, labelled_fields
from rnnscale.tasks.files._series_table import SeriesTable


def fields_of_arrays(
    arrays: Mapping[str, Any],
    split: Any,
    seq_len: int | None,
    name: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of a `Task` of arrays in memory; see `Task.from_arrays`."""
    fractions = FRACTIONS
    if len(split) == 3 and all(isinstance(part, (int, float)) for part in split):
        fractions, split = split, None
    table = table_of_arrays(name, split=split, **arrays)
    return fields_of_table(table, DataOptions(split=fractions, **options), seq_len)


def fields_of_table(
    table: SeriesTable, options: DataOptions, seq_len: int | None
) -> dict[str, Any]:
    """The fields of a `Task` of a table of series."""
    options = replace(options, kind=kind_of(table, options))
    if options.kind == "next_token":
        raise UserError("next-token prediction needs text or packed tokens; these data are series")
    if options.kind == "forecast":
        return forecast_fields(table, options, seq_len)
    fields = labelled_fields(table, options)
    if seq_len not in (None, fields["seq_len"]):
        raise UserError(
            f"seq_len is for forecasts and text; these series have up to {fields['seq_len']} steps,"
            f" got {seq_len=}"
        )
    return fields
