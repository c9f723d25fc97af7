"""Tasks (sources of records with a fixed split) and the pipelines that batch them."""

from ._bytes import Windows as Windows, bytes_task as bytes_task
from ._digits import digits as digits
from ._load import TASKS as TASKS, TaskInfo as TaskInfo, load_task as load_task
from ._mnist5k import mnist5k as mnist5k, mnist5k_permuted as mnist5k_permuted
from ._ngram import count_model_bits_per_byte as count_model_bits_per_byte
from ._pipeline import (
    Batches as Batches,
    batches as batches,
    evaluation_batches as evaluation_batches,
)
from ._task import ArraySource as ArraySource, Source as Source, Task as Task
