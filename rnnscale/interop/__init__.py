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

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
