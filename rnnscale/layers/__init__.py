"""Recurrent networks over time, and position-wise layers: annotated, so that they shard, and the
same for any leading axes."""

from rnnscale._over_time import over_time as over_time
from rnnscale.layers._autoregressive import AutoregressiveRNN as AutoregressiveRNN
from rnnscale.layers._bidirectional import BidirectionalRNNEncoder as BidirectionalRNNEncoder
from rnnscale.layers._causal_conv import CausalConv as CausalConv
from rnnscale.layers._deep import DeepRNNEncoder as DeepRNNEncoder
from rnnscale.layers._dropout import Dropout as Dropout
from rnnscale.layers._embedding import Embedding as Embedding
from rnnscale.layers._encoder import Encoder as Encoder, RNNEncoder as RNNEncoder
from rnnscale.layers._feedback import draw_tokens as draw_tokens
from rnnscale.layers._linear import Linear as Linear
from rnnscale.layers._messages import (
    DenseMessages as DenseMessages,
    SparseMessages as SparseMessages,
)
from rnnscale.layers._modular import (
    ModularRNN as ModularRNN,
    SharedModules as SharedModules,
    StackedModules as StackedModules,
)
from rnnscale.layers._norm import LayerNorm as LayerNorm, RMSNorm as RMSNorm
from rnnscale.layers._reservoir import (
    Reservoir as Reservoir,
    ReservoirClassifier as ReservoirClassifier,
    ReservoirComputer as ReservoirComputer,
)
from rnnscale.layers._ridge import RidgeSums as RidgeSums, ridge_sums as ridge_sums
from rnnscale.layers._rnn import (
    RNN as RNN,
    BidirectionalRNN as BidirectionalRNN,
    DeepBidirectionalRNN as DeepBidirectionalRNN,
    DeepRNN as DeepRNN,
    RecurrentNetwork as RecurrentNetwork,
)
from rnnscale.layers._row_keys import fold_keys as fold_keys, row_keys as row_keys
from rnnscale.layers._spectral import (
    as_reservoir as as_reservoir,
    spectral_radius as spectral_radius,
)
