"""Data sets with a fixed split, and what a model has to know about them."""

from rnnscale.tasks._adding import adding as adding
from rnnscale.tasks._archive import (
    ARCHIVE as ARCHIVE,
    ArchiveInfo as ArchiveInfo,
    archive_task as archive_task,
)
from rnnscale.tasks._bytes import bytes_task as bytes_task
from rnnscale.tasks._copy import copy_memory as copy_memory
from rnnscale.tasks._generated import GeneratedSource as GeneratedSource
from rnnscale.tasks._images import (
    digits as digits,
    digits_permuted as digits_permuted,
    mnist5k as mnist5k,
    mnist5k_permuted as mnist5k_permuted,
)
from rnnscale.tasks._listops import LISTOPS_TOKENS as LISTOPS_TOKENS, listops as listops
from rnnscale.tasks._lra_images import (
    lra_image as lra_image,
    lra_pathfinder as lra_pathfinder,
    lra_pathx as lra_pathx,
)
from rnnscale.tasks._lra_text import (
    lra_listops as lra_listops,
    lra_retrieval as lra_retrieval,
    lra_text as lra_text,
)
from rnnscale.tasks._ngram import count_model_bits_per_byte as count_model_bits_per_byte
from rnnscale.tasks._pad_time import pad_time as pad_time
from rnnscale.tasks._pendulum import pendulum as pendulum
from rnnscale.tasks._recall import recall as recall
from rnnscale.tasks._selective_copy import selective_copy as selective_copy
from rnnscale.tasks._series import (
    SERIES as SERIES,
    Series as Series,
    SeriesInfo as SeriesInfo,
    load_series as load_series,
)
from rnnscale.tasks._series_task import series_task as series_task
from rnnscale.tasks._speech_commands import (
    SPEECH_COMMANDS as SPEECH_COMMANDS,
    speech_commands as speech_commands,
)
from rnnscale.tasks._table import TASKS as TASKS, TaskInfo as TaskInfo, load_task as load_task
from rnnscale.tasks._task import Task as Task
from rnnscale.tasks._watch import WATCH_PEOPLE as WATCH_PEOPLE, watch as watch
from rnnscale.tasks._windows import Windows as Windows
