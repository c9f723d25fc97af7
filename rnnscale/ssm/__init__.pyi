from ._base import DiagonalSSM as DiagonalSSM
from ._bidirectional_s5 import BidirectionalS5 as BidirectionalS5
from ._damped_linoss import DampedLinOSS as DampedLinOSS
from ._hippo import hippo_legs as hippo_legs, hippo_normal as hippo_normal
from ._linoss import LinOSS as LinOSS
from ._lru import LRU as LRU
from ._mamba import Mamba as Mamba, MambaState as MambaState
from ._mamba2 import Mamba2 as Mamba2, Mamba2State as Mamba2State
from ._oscillators import OscillatorState as OscillatorState, OscillatorySSM as OscillatorySSM
from ._s4d import S4D as S4D
from ._s5 import S5 as S5
