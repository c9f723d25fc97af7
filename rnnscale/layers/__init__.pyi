from ._autoregressive import AutoregressiveRNN as AutoregressiveRNN
from ._bidirectional import BidirectionalRNNEncoder as BidirectionalRNNEncoder
from ._causal_conv import CausalConv as CausalConv
from ._deep import DeepRNNEncoder as DeepRNNEncoder
from ._dropout import Dropout as Dropout
from ._embedding import Embedding as Embedding
from ._encoder import Encoder as Encoder, RNNEncoder as RNNEncoder
from ._feedback import draw_tokens as draw_tokens
from ._griffin import GriffinRecurrence as GriffinRecurrence
from ._linear import Linear as Linear
from ._messages import (
    DenseMessages as DenseMessages,
    SparseMessages as SparseMessages,
)
from ._modular import (
    ModularRNN as ModularRNN,
    SharedModules as SharedModules,
    StackedModules as StackedModules,
)
from ._norm import (
    LayerNorm as LayerNorm,
    RMSNorm as RMSNorm,
    layer_norm as layer_norm,
    rms_norm as rms_norm,
)
from ._reservoir import (
    Reservoir as Reservoir,
    ReservoirClassifier as ReservoirClassifier,
    ReservoirComputer as ReservoirComputer,
)
from ._ridge import RidgeSums as RidgeSums, ridge_sums as ridge_sums
from ._rnn import (
    RNN as RNN,
    BidirectionalRNN as BidirectionalRNN,
    DeepBidirectionalRNN as DeepBidirectionalRNN,
    DeepRNN as DeepRNN,
    RecurrentNetwork as RecurrentNetwork,
)
from ._row_keys import fold_keys as fold_keys, row_keys as row_keys
from ._slstm import SLSTM as SLSTM
from ._spectral import (
    as_reservoir as as_reservoir,
    spectral_radius as spectral_radius,
)
