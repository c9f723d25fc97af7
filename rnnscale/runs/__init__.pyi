from ._config import (
    Dtype as Dtype,
    Ended as Ended,
    ParallelOption as ParallelOption,
    Rows as Rows,
    TrainConfig as TrainConfig,
    config_and_task as config_and_task,
)
from ._defaults import default_model as default_model
from ._folder import RunFolder as RunFolder, read_options as read_options
from ._load import SavedRun as SavedRun, load_run as load_run
from ._models import MODELS as MODELS, BlockOption as BlockOption
from ._predictions import Predictions as Predictions, check_suffix as check_suffix
from ._programs import kept_programs as kept_programs
from ._run import run as run
from ._setup import (
    Setup as Setup,
    check_fits as check_fits,
    load_task_of as load_task_of,
    set_up as set_up,
)
