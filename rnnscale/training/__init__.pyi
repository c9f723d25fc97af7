from ._best import Best as Best, Ties as Ties
from ._callback import Callback as Callback, FinishedStep as FinishedStep
from ._carry import Carry as Carry
from ._certificates import Certificates as Certificates
from ._checkpointer import (
    Checkpointer as Checkpointer,
    restore_part as restore_part,
)
from ._checkpoints import Checkpoints as Checkpoints
from ._chunks import in_chunks as in_chunks
from ._constraint import indrnn_constraint as indrnn_constraint
from ._cpu_budget import CpuBudget as CpuBudget
from ._early_stopping import EarlyStopping as EarlyStopping
from ._evaluation import Evaluation as Evaluation, evaluate as evaluate
from ._fit import fit as fit
from ._heartbeat import Heartbeat as Heartbeat
from ._log import Clock as Clock, Log as Log
from ._loss import (
    Totals as Totals,
    call_model as call_model,
    cross_entropy as cross_entropy,
    squared_error as squared_error,
)
from ._manifest import saved_steps as saved_steps, where_to_resume as where_to_resume
from ._metrics_file import MetricsFile as MetricsFile
from ._moving_average import MovingAverage as MovingAverage
from ._names import Optimiser as Optimiser, Schedule as Schedule
from ._optimiser import make_optimiser as make_optimiser
from ._progress_bar import ProgressBar as ProgressBar
from ._schedule import make_schedule as make_schedule
from ._skipped_steps import SkippedSteps as SkippedSteps
from ._state import TrainState as TrainState
from ._step import (
    make_eval_step as make_eval_step,
    make_train_step as make_train_step,
)
from ._stop_on_signal import StopOnSignal as StopOnSignal
from ._tensorboard import TensorBoard as TensorBoard
from ._text_sample import TextSample as TextSample
from ._wandb import WandB as WandB
