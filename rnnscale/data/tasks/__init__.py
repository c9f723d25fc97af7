"""Data sets with a fixed split, and what a model has to know of them."""

from ._adding import adding as adding
from ._bytes import Windows as Windows, bytes_task as bytes_task
from ._copy import copy_memory as copy_memory
from ._digits import digits as digits
from ._generated import GeneratedSource as GeneratedSource
from ._load import TASKS as TASKS, TaskInfo as TaskInfo, load_task as load_task
from ._mnist5k import mnist5k as mnist5k, mnist5k_permuted as mnist5k_permuted
from ._ngram import count_model_bits_per_byte as count_model_bits_per_byte
from ._pad_time import pad_time as pad_time
from ._series import (
    SERIES as SERIES,
    Series as Series,
    SeriesInfo as SeriesInfo,
    load_series as load_series,
)
from ._series_task import SeriesWindows as SeriesWindows, series_task as series_task
from ._task import Task as Task
