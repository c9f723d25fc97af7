from ._export import export_step as export_step
from ._exported_step import ExportedStep as ExportedStep, load_step as load_step
from ._farsang import lrcssm_cell_from_farsang as lrcssm_cell_from_farsang
from ._frozen_batch_norm import FrozenBatchNorm as FrozenBatchNorm
from ._lindermanlab import (
    HalfGLU2 as HalfGLU2,
    S5Options as S5Options,
    s5_classifier_from_lindermanlab as s5_classifier_from_lindermanlab,
    s5_from_lindermanlab as s5_from_lindermanlab,
    s5_layers_from_lindermanlab as s5_layers_from_lindermanlab,
)
from ._linoss import (
    damped_linoss_from_boyer as damped_linoss_from_boyer,
    linoss_from_rusch as linoss_from_rusch,
)
from ._minimal_lru import (
    lru_classifier_from_minimal as lru_classifier_from_minimal,
    lru_from_minimal as lru_from_minimal,
    lru_layers_from_minimal as lru_layers_from_minimal,
)
from ._rusch import unicornn_from_rusch as unicornn_from_rusch
from ._state_spaces import (
    ErfGLU as ErfGLU,
    s4d_from_state_spaces as s4d_from_state_spaces,
    s4d_mixer_from_state_spaces as s4d_mixer_from_state_spaces,
)
from ._torch import (
    elman_cell_from_torch as elman_cell_from_torch,
    elman_from_torch as elman_from_torch,
    gru_cell_from_torch as gru_cell_from_torch,
    gru_from_torch as gru_from_torch,
    lstm_cell_from_torch as lstm_cell_from_torch,
    lstm_from_torch as lstm_from_torch,
)
from ._transformers import load_transformers as load_transformers
from ._transformers_folder import TransformersFolder as TransformersFolder
