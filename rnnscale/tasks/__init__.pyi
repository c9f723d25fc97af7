from ._adding import adding as adding
from ._archive import (
    ARCHIVE as ARCHIVE,
    LINOSS_SEEDS as LINOSS_SEEDS,
    ArchiveInfo as ArchiveInfo,
    Protocol as Protocol,
    archive_task as archive_task,
    uea as uea,
)
from ._bytes import bytes_task as bytes_task
from ._copy import copy_memory as copy_memory
from ._data_options import DataOptions as DataOptions
from ._describe import describe as describe
from ._generated import GeneratedSource as GeneratedSource
from ._images import (
    digits as digits,
    digits_permuted as digits_permuted,
    mnist5k as mnist5k,
    mnist5k_permuted as mnist5k_permuted,
)
from ._k_hop import k_hop as k_hop
from ._listops import LISTOPS_TOKENS as LISTOPS_TOKENS, listops as listops
from ._lra_images import (
    lra_image as lra_image,
    lra_pathfinder as lra_pathfinder,
    lra_pathx as lra_pathx,
)
from ._lra_text import (
    lra_listops as lra_listops,
    lra_retrieval as lra_retrieval,
    lra_text as lra_text,
)
from ._modular_arithmetic import (
    BRACKET_TOKENS as BRACKET_TOKENS,
    MODULAR_TOKENS as MODULAR_TOKENS,
    modular_arithmetic as modular_arithmetic,
    modular_arithmetic_brackets as modular_arithmetic_brackets,
)
from ._ngram import count_model_bits_per_byte as count_model_bits_per_byte
from ._pad_time import pad_time as pad_time
from ._parity import parity as parity
from ._pendulum import pendulum as pendulum
from ._recall import recall as recall, recall_small as recall_small
from ._selective_copy import selective_copy as selective_copy
from ._series import (
    SERIES as SERIES,
    Series as Series,
    SeriesInfo as SeriesInfo,
    load_series as load_series,
)
from ._series_task import series_task as series_task
from ._speech_commands import (
    SPEECH_COMMANDS as SPEECH_COMMANDS,
    speech_commands as speech_commands,
)
from ._table import TASKS as TASKS, TaskInfo as TaskInfo, load_task as load_task
from ._task import Task as Task, TaskSpec as TaskSpec, check_records as check_records
from ._task_from import task_from as task_from
from ._watch import WATCH_PEOPLE as WATCH_PEOPLE, watch as watch
from ._windows import Windows as Windows
from ._word_problem import word_problem as word_problem
from .files._preprocessing import Preprocessing as Preprocessing
