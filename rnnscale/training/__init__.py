"""Parts of a training loop: state, step, losses, optimiser, checkpoints, and `fit` with
its callbacks. No part knows a task or a model by name."""

from rnnscale.training._callback import Callback as Callback, FinishedStep as FinishedStep
from rnnscale.training._carry import Carry as Carry
from rnnscale.training._checkpointer import (
    Checkpointer as Checkpointer,
    restore_part as restore_part,
)
from rnnscale.training._checkpoints import Checkpoints as Checkpoints
from rnnscale.training._chunks import in_chunks as in_chunks
from rnnscale.training._constraint import indrnn_constraint as indrnn_constraint
from rnnscale.training._evaluation import Evaluation as Evaluation, evaluate as evaluate
from rnnscale.training._fit import fit as fit
from rnnscale.training._heartbeat import Heartbeat as Heartbeat
from rnnscale.training._log import Clock as Clock, Log as Log
from rnnscale.training._loss import (
    Metric as Metric,
    Totals as Totals,
    cross_entropy as cross_entropy,
    squared_error as squared_error,
)
from rnnscale.training._manifest import saved_steps as saved_steps
from rnnscale.training._metrics_file import MetricsFile as MetricsFile
from rnnscale.training._optimiser import make_optimiser as make_optimiser
from rnnscale.training._progress_bar import ProgressBar as ProgressBar
from rnnscale.training._skipped_steps import SkippedSteps as SkippedSteps
from rnnscale.training._state import TrainState as TrainState
from rnnscale.training._step import (
    make_eval_step as make_eval_step,
    make_train_step as make_train_step,
)
from rnnscale.training._stop_on_signal import StopOnSignal as StopOnSignal
