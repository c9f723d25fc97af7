"""Parts for anybody's training loop: state, step, losses, optimiser, checkpoints and `fit`."""

from rnnscale.training._carry import Carry as Carry
from rnnscale.training._checkpoint import (
    Checkpointer as Checkpointer,
    restore_part as restore_part,
    saved_steps as saved_steps,
)
from rnnscale.training._chunks import in_chunks as in_chunks
from rnnscale.training._constraint import indrnn_constraint as indrnn_constraint
from rnnscale.training._fit import Clock as Clock, evaluate as evaluate, fit as fit
from rnnscale.training._loss import (
    Metric as Metric,
    Totals as Totals,
    cross_entropy as cross_entropy,
    squared_error as squared_error,
)
from rnnscale.training._optimiser import make_optimiser as make_optimiser
from rnnscale.training._state import TrainState as TrainState
from rnnscale.training._step import (
    make_eval_step as make_eval_step,
    make_train_step as make_train_step,
)
