from ._antisymmetric import (
    AntiSymmetricRNNCell as AntiSymmetricRNNCell,
    GatedAntiSymmetricRNNCell as GatedAntiSymmetricRNNCell,
)
from ._base import (
    Affine as Affine,
    AffineInputCell as AffineInputCell,
    Cell as Cell,
    LinearCell as LinearCell,
    affine as affine,
    compute_weights as compute_weights,
    identity as identity,
    linear as linear,
)
from ._clockwork import ClockWorkRNNCell as ClockWorkRNNCell
from ._contract import check_cell as check_cell
from ._cornn import (
    CoupledOscillatoryRNNCell as CoupledOscillatoryRNNCell,
    HeterogeneousOscillatoryRNNCell as HeterogeneousOscillatoryRNNCell,
)
from ._elman import ElmanRNNCell as ElmanRNNCell
from ._exprnn import ExpRNNCell as ExpRNNCell
from ._gru import (
    ChoGatedRecurrentUnitCell as ChoGatedRecurrentUnitCell,
    GatedRecurrentUnit as GatedRecurrentUnit,
    GatedRecurrentUnitCell as GatedRecurrentUnitCell,
)
from ._indrnn import IndRNNCell as IndRNNCell
from ._leaky_elman import LeakyElmanCell as LeakyElmanCell
from ._lipschitz import (
    GatedLipschitzRNNCell as GatedLipschitzRNNCell,
    LipschitzRNNCell as LipschitzRNNCell,
)
from ._lrcssm import LrcSSMCell as LrcSSMCell
from ._lstm import (
    LongShortTermMemory as LongShortTermMemory,
    LongShortTermMemoryCell as LongShortTermMemoryCell,
)
from ._mgu import MinimalGatedUnitCell as MinimalGatedUnitCell
from ._minimal import MinGRUCell as MinGRUCell, MinLSTMCell as MinLSTMCell
from ._newton import Certificate as Certificate, Newton as Newton
from ._nnrnn import NonNormalRNNCell as NonNormalRNNCell
from ._over_seq import over_seq as over_seq
from ._pararnn import ParaGRUCell as ParaGRUCell, ParaLSTMCell as ParaLSTMCell
from ._rglru import RGLRUCell as RGLRUCell
from ._ron import RandomOscillatorsCell as RandomOscillatorsCell
from ._slstm import SLSTMCell as SLSTMCell
from ._time_loop import (
    Parallel as Parallel,
    certified_time_loop as certified_time_loop,
    time_loop as time_loop,
    time_loop_by as time_loop_by,
)
from ._unicornn import UnICORNNCell as UnICORNNCell
from ._unitary import UnitaryEvolutionRNNCell as UnitaryEvolutionRNNCell
from ._wilson_cowan import WilsonCowanCell as WilsonCowanCell
