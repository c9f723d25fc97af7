"""Sources of records, pipelines that make batches of them, and tasks with a fixed split."""

from .pipelines import (
    Batches as Batches,
    PaddedSource as PaddedSource,
    batches as batches,
    evaluation_batches as evaluation_batches,
)
from .sources import (
    ArraySource as ArraySource,
    ArraySpec as ArraySpec,
    ElementSpec as ElementSpec,
    Record as Record,
    SequenceArrays as SequenceArrays,
    SequenceSource as SequenceSource,
    Source as Source,
    element_spec as element_spec,
    over_time as over_time,
    spec_of as spec_of,
)
from .tasks import (
    SERIES as SERIES,
    TASKS as TASKS,
    GeneratedSource as GeneratedSource,
    Series as Series,
    SeriesInfo as SeriesInfo,
    SeriesWindows as SeriesWindows,
    Task as Task,
    TaskInfo as TaskInfo,
    Windows as Windows,
    adding as adding,
    bytes_task as bytes_task,
    copy_memory as copy_memory,
    count_model_bits_per_byte as count_model_bits_per_byte,
    digits as digits,
    load_series as load_series,
    load_task as load_task,
    mnist5k as mnist5k,
    mnist5k_permuted as mnist5k_permuted,
    pad_time as pad_time,
    series_task as series_task,
)
