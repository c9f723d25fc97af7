from ._deltanet import DeltaNet as DeltaNet
from ._deltaproduct import DeltaProduct as DeltaProduct
from ._gated_deltanet import GatedDeltaNet as GatedDeltaNet
from ._gla import GatedLinearAttention as GatedLinearAttention
from ._linear_attention import LinearAttention as LinearAttention
from ._local_attention import LocalAttention as LocalAttention
from ._mlstm import MLSTM as MLSTM
from ._rwkv7 import RWKV7 as RWKV7
