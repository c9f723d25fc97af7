"""One step of a trained model as a file, to be run where there is neither the model nor rnnscale.

```
file = export_step(model, platforms=("cpu", "cuda"))    # bytes, weights included
step = load_step(file)
state = step.init_state((8,))
state, y = step(x, state)                               # constant time and memory a step
```

**The file** is a zip archive, uncompressed, with three members:

- `about.json`: what the step takes and gives, and the versions that wrote it.
- `step`: `(x, state) -> (state, y)`, as `jax.export` writes it. The state is a tuple of arrays.
- `init_state`: `x -> state`, the state before the first step, for an `x` of the same shape; its
    numbers are not used.

So jax alone reads it, with `flatbuffers`, which `jax.export` needs:

```
with zipfile.ZipFile("model.step") as file:
    step, init_state = (
        jax.jit(jax.export.deserialize(bytearray(file.read(name))).call)
        for name in ("step", "init_state")
    )
```

There is no pickle in it. Programs that `jax.export` wrote can be read by later versions of jax for
at least six months, see jax's documentation.
"""

from rnnscale.export._export import export_step as export_step
from rnnscale.export._load import ExportedStep as ExportedStep, load_step as load_step
