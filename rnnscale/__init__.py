"""Recurrent networks and state-space models at scale, in JAX and Equinox."""

from typing import TYPE_CHECKING

from rnnscale._base import (
    CausalLayer as CausalLayer,
    SequenceLayer as SequenceLayer,
    SequenceModel as SequenceModel,
    Stepwise as Stepwise,
    TakesIntervals as TakesIntervals,
    has_step as has_step,
)
from rnnscale._fields import parameter as parameter, trainable as trainable
from rnnscale.cells import (
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
    LongShortTermMemoryCell as LongShortTermMemoryCell,
    MinGRUCell as MinGRUCell,
    MinLSTMCell as MinLSTMCell,
    NonNormalRNNCell as NonNormalRNNCell,
    RandomOscillatorsCell as RandomOscillatorsCell,
    RGLRUCell as RGLRUCell,
    UnitaryEvolutionRNNCell as UnitaryEvolutionRNNCell,
    WilsonCowanCell as WilsonCowanCell,
)
from rnnscale.layers import (
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
from rnnscale.ssm import (
    LRU as LRU,
    S5 as S5,
    BidirectionalS5 as BidirectionalS5,
    LinearAttention as LinearAttention,
)

__version__: str

if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        # Looked up when it is asked for: finding the metadata would be a part of every import.
        if name == "__version__":
            from importlib.metadata import version

            return version("rnnscale")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
