"""The train step, checkpoints, the loop around them, and whole runs from options to summary."""

from rnnscale.training._agree import agree as agree, decide as decide, on_first as on_first
from rnnscale.training._carry import Carry as Carry
from rnnscale.training._checkpoint import (
    Checkpointer as Checkpointer,
    restore_part as restore_part,
)
from rnnscale.training._chunks import in_chunks as in_chunks
from rnnscale.training._config import (
    MODELS as MODELS,
    TrainConfig as TrainConfig,
    default_model as default_model,
)
from rnnscale.training._constraint import indrnn_constraint as indrnn_constraint
from rnnscale.training._devices import use_cpu_devices as use_cpu_devices
from rnnscale.training._loop import Clock as Clock, evaluate as evaluate, fit as fit
from rnnscale.training._loss import (
    Totals as Totals,
    cross_entropy as cross_entropy,
    squared_error as squared_error,
)
from rnnscale.training._optimiser import make_optimiser as make_optimiser
from rnnscale.training._processes import (
    connect as connect,
    process_count as process_count,
    process_index as process_index,
)
from rnnscale.training._run import RunFolder as RunFolder
from rnnscale.training._saved import SavedRun as SavedRun, load_run as load_run
from rnnscale.training._setup import Setup as Setup, check_fits as check_fits, set_up as set_up
from rnnscale.training._state import TrainState as TrainState
from rnnscale.training._step import (
    make_eval_step as make_eval_step,
    make_train_step as make_train_step,
)
from rnnscale.training._stop import StopSignals as StopSignals
from rnnscale.training._train import run as run
from rnnscale.training._watchdog import Watchdog as Watchdog
