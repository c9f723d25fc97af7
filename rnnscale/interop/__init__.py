"""Weights from elsewhere, and steps for elsewhere.

Importers turn the arrays of other libraries into modules of this one; `export_step` writes one step
of a trained model to a file that runs without the model and without rnnscale.

The file is an uncompressed zip archive with three members:

- `about.json`: what the step takes and returns, and the versions that wrote it.
- `step`: `(x, state) -> (state, y)`, as `jax.export` writes it. The state is a tuple of arrays.
- `init_state`: `x -> state`, the state before the first step for an `x` of the same shape, whose
    values are not used.

So jax alone can read it, together with `flatbuffers`, which `jax.export` needs:

```
with zipfile.ZipFile("model.step") as file:
    step, init_state = (
        jax.jit(jax.export.deserialize(bytearray(file.read(name))).call)
        for name in ("step", "init_state")
    )
```

The file contains no pickle. Later versions of jax can read what `jax.export` wrote for at least six
months; see jax's documentation.
"""

from rnnscale.interop._export import export_step as export_step
from rnnscale.interop._exported_step import ExportedStep as ExportedStep, load_step as load_step
from rnnscale.interop._frozen_batch_norm import FrozenBatchNorm as FrozenBatchNorm
from rnnscale.interop._lindermanlab import (
    HalfGLU2 as HalfGLU2,
    S5Options as S5Options,
    s5_classifier_from_lindermanlab as s5_classifier_from_lindermanlab,
    s5_from_lindermanlab as s5_from_lindermanlab,
    s5_layers_from_lindermanlab as s5_layers_from_lindermanlab,
)
from rnnscale.interop._minimal_lru import (
    lru_classifier_from_minimal as lru_classifier_from_minimal,
    lru_from_minimal as lru_from_minimal,
    lru_layers_from_minimal as lru_layers_from_minimal,
)
from rnnscale.interop._torch import (
    elman_cell_from_torch as elman_cell_from_torch,
    elman_from_torch as elman_from_torch,
    gru_cell_from_torch as gru_cell_from_torch,
    gru_from_torch as gru_from_torch,
    lstm_cell_from_torch as lstm_cell_from_torch,
    lstm_from_torch as lstm_from_torch,
)
