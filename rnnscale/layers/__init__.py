"""Position-wise layers: annotated, so that they shard, and the same for any leading axes."""

from rnnscale.layers._dropout import Dropout as Dropout
from rnnscale.layers._embedding import Embedding as Embedding
from rnnscale.layers._linear import Linear as Linear
from rnnscale.layers._norm import LayerNorm as LayerNorm, RMSNorm as RMSNorm
from rnnscale.layers._row_keys import fold_keys as fold_keys, row_keys as row_keys
