"""Weights of other libraries, as modules of this one.

Every function takes arrays by name, whatever wrote them, and needs none of these libraries:

```
encoder = lstm_from_torch(torch.load("lstm.pt", weights_only=True), prefix="encoder.lstm.")
variables = flax.serialization.msgpack_restore(Path("checkpoint").read_bytes())
layer = s5_from_lindermanlab(variables["params"]["encoder"]["layers_0"]["seq"])
```

Arrays are whatever NumPy takes for one, and tensors of torch: on any device, with a gradient or
not, in bfloat16 too. What is imported is an ordinary module with float32 parameters, to be trained
on, sharded or exported. A weight that is missing, is not known or has another shape is a
`ValueError` that names it.
"""

from rnnscale.importers._frozen_batch_norm import FrozenBatchNorm as FrozenBatchNorm
from rnnscale.importers._lindermanlab import (
    HalfGLU2 as HalfGLU2,
    s5_classifier_from_lindermanlab as s5_classifier_from_lindermanlab,
    s5_from_lindermanlab as s5_from_lindermanlab,
    s5_layers_from_lindermanlab as s5_layers_from_lindermanlab,
)
from rnnscale.importers._minimal_lru import (
    lru_classifier_from_minimal as lru_classifier_from_minimal,
    lru_from_minimal as lru_from_minimal,
    lru_layers_from_minimal as lru_layers_from_minimal,
)
from rnnscale.importers._torch import (
    elman_cell_from_torch as elman_cell_from_torch,
    elman_from_torch as elman_from_torch,
    gru_cell_from_torch as gru_cell_from_torch,
    gru_from_torch as gru_from_torch,
    lstm_cell_from_torch as lstm_cell_from_torch,
    lstm_from_torch as lstm_from_torch,
)
