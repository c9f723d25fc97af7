"""Recurrent cells, and the loop that runs them over time."""

from rnnscale.cells._antisymmetric import (
    AntiSymmetricRNNCell as AntiSymmetricRNNCell,
    GatedAntiSymmetricRNNCell as GatedAntiSymmetricRNNCell,
)
from rnnscale.cells._base import (
    Affine as Affine,
    AffineInputCell as AffineInputCell,
    Cell as Cell,
    LinearCell as LinearCell,
    affine as affine,
    compute_weights as compute_weights,
    identity as identity,
    linear as linear,
)
from rnnscale.cells._clockwork import ClockWorkRNNCell as ClockWorkRNNCell
from rnnscale.cells._cornn import CoupledOscillatoryRNNCell as CoupledOscillatoryRNNCell
from rnnscale.cells._elman import ElmanRNNCell as ElmanRNNCell
from rnnscale.cells._exprnn import ExpRNNCell as ExpRNNCell
from rnnscale.cells._gru import (
    ChoGatedRecurrentUnitCell as ChoGatedRecurrentUnitCell,
    GatedRecurrentUnit as GatedRecurrentUnit,
    GatedRecurrentUnitCell as GatedRecurrentUnitCell,
)
from rnnscale.cells._indrnn import IndRNNCell as IndRNNCell
from rnnscale.cells._leaky_elman import LeakyElmanCell as LeakyElmanCell
from rnnscale.cells._lipschitz import (
    GatedLipschitzRNNCell as GatedLipschitzRNNCell,
    LipschitzRNNCell as LipschitzRNNCell,
)
from rnnscale.cells._lstm import LongShortTermMemoryCell as LongShortTermMemoryCell
from rnnscale.cells._minimal import MinGRUCell as MinGRUCell, MinLSTMCell as MinLSTMCell
from rnnscale.cells._nnrnn import NonNormalRNNCell as NonNormalRNNCell
from rnnscale.cells._rglru import RGLRUCell as RGLRUCell
from rnnscale.cells._ron import RandomOscillatorsCell as RandomOscillatorsCell
from rnnscale.cells._time_loop import time_loop as time_loop
from rnnscale.cells._unitary import UnitaryEvolutionRNNCell as UnitaryEvolutionRNNCell
from rnnscale.cells._wilson_cowan import WilsonCowanCell as WilsonCowanCell
