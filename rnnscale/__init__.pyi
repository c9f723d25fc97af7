from . import (
    analysis as analysis,
    cells as cells,
    cli as cli,
    data as data,
    distributed as distributed,
    experiments as experiments,
    interop as interop,
    layers as layers,
    models as models,
    plan as plan,
    runs as runs,
    sharding as sharding,
    ssm as ssm,
    tasks as tasks,
    training as training,
    verify as verify,
)
from ._base import (
    CausalLayer as CausalLayer,
    SequenceLayer as SequenceLayer,
    SequenceModel as SequenceModel,
    Stepwise as Stepwise,
    TakesIntervals as TakesIntervals,
    has_step as has_step,
    zero_padding as zero_padding,
)
from ._fields import parameter as parameter, trainable as trainable
from ._over_time import over_time as over_time
from .cells import (
    AntiSymmetricRNNCell as AntiSymmetricRNNCell,
    ChoGatedRecurrentUnitCell as ChoGatedRecurrentUnitCell,
    ClockWorkRNNCell as ClockWorkRNNCell,
    CoupledOscillatoryRNNCell as CoupledOscillatoryRNNCell,
    ElmanRNNCell as ElmanRNNCell,
    ExpRNNCell as ExpRNNCell,
    GatedAntiSymmetricRNNCell as GatedAntiSymmetricRNNCell,
    GatedLipschitzRNNCell as GatedLipschitzRNNCell,
    GatedRecurrentUnit as GatedRecurrentUnit,
    GatedRecurrentUnitCell as GatedRecurrentUnitCell,
    IndRNNCell as IndRNNCell,
    LeakyElmanCell as LeakyElmanCell,
    LipschitzRNNCell as LipschitzRNNCell,
    LongShortTermMemory as LongShortTermMemory,
    LongShortTermMemoryCell as LongShortTermMemoryCell,
    MinGRUCell as MinGRUCell,
    MinLSTMCell as MinLSTMCell,
    NonNormalRNNCell as NonNormalRNNCell,
    RandomOscillatorsCell as RandomOscillatorsCell,
    RGLRUCell as RGLRUCell,
    UnitaryEvolutionRNNCell as UnitaryEvolutionRNNCell,
    WilsonCowanCell as WilsonCowanCell,
)
from .layers import (
    RNN as RNN,
    AutoregressiveRNN as AutoregressiveRNN,
    BidirectionalRNN as BidirectionalRNN,
    BidirectionalRNNEncoder as BidirectionalRNNEncoder,
    CausalConv as CausalConv,
    DeepBidirectionalRNN as DeepBidirectionalRNN,
    DeepRNN as DeepRNN,
    DeepRNNEncoder as DeepRNNEncoder,
    ModularRNN as ModularRNN,
    ReservoirComputer as ReservoirComputer,
    RNNEncoder as RNNEncoder,
)
from .ssm import (
    LRU as LRU,
    S5 as S5,
    BidirectionalS5 as BidirectionalS5,
    LinearAttention as LinearAttention,
)

__version__: str
