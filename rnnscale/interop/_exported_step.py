"""`load_step`: a step read back from its file, which checks its arguments."""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.interop._export import FORMAT, check_flatbuffers

type _State = tuple[Array, ...]


class ExportedStep:
    """A step that was exported by `export_step`.

    ```
    state = step.init_state((8,))
    state, y = step(x, state)
    ```

    It is compiled at the first call for each batch shape, and can be called inside `jax.jit` and
    `jax.lax.scan`.

    - `about`: the description in the file: model, input, output, state, platforms, versions.
    """

    about: Mapping[str, Any]

    def __init__(self, about: Mapping[str, Any], step: Any, init_state: Any):
        self.about = about

        # The checks run when it is compiled, not at every step.
        def run(x: Array, state: _State) -> tuple[_State, Array]:
            _check_array("x", x, about["input"])
            if not isinstance(state, tuple) or len(state) != len(about["state"]):
                got = f"tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
                raise UserError(
                    f"the state must be a tuple of {len(about['state'])} arrays, as init_state "
                    f"gives it; got {got}"
                )
            for i, (each, described) in enumerate(zip(state, about["state"], strict=True)):
                _check_array(f"state[{i}]", each, described)
            return step.call(x, state)

        self._step, self._init_state = jax.jit(run), jax.jit(init_state.call)

    def __call__(self, x: Array, state: _State) -> tuple[_State, Array]:
        """One step of time.

        **Arguments:**

        - `x`: the input, with the shape and dtype in `about`.
        - `state`: a state returned by `init_state` or by a step.

        **Returns:** `(state, y)`.

        **Raises:** `ValueError` if a shape or a dtype differs, or if the step was not exported for
        the platform of the device.
        """
        return self._step(x, state)

    def init_state(self, batch_shape: tuple[int, ...] = ()) -> _State:
        """The state before the first step.

        **Arguments:**

        - `batch_shape`: the leading axes. Where the file has a name, any size will do.

        **Raises:** `ValueError` if the file has other axes.
        """
        axes = self.about["input"]["shape"]
        features = () if jnp.issubdtype(self.about["input"]["dtype"], jnp.integer) else axes[-1:]
        x = jnp.zeros((*batch_shape, *features), self.about["input"]["dtype"])
        _check_array(f"batch_shape={batch_shape} makes an input that", x, self.about["input"])
        return self._init_state(x)


@check_arguments
def load_step(file: bytes) -> ExportedStep:
    """Read a step from the contents of a file that `export_step` or `rnnscale export` wrote.

    ```
    step = load_step(Path("model.step").read_bytes())
    ```

    **Raises:** `ValueError` if it is not such a file, or has another format version;
    `ImportError` without flatbuffers.
    """
    check_flatbuffers()
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            about = json.loads(archive.read("about.json"))
            programs = [bytearray(archive.read(name)) for name in ("step", "init_state")]
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"load_step takes a file that export_step or rnnscale export wrote; {error}"
        ) from error
    if not isinstance(about, dict) or not {"format", "rnnscale"} <= set(about):
        raise UserError(
            "load_step takes a file that export_step or rnnscale export wrote; its about.json has "
            "no format"
        )
    if about["format"] != FORMAT:
        raise UserError(
            f"load_step reads format {FORMAT}, and this file, of rnnscale {about['rnnscale']}, has "
            f"format {about['format']}; read it with that version"
        )
    return ExportedStep(about, *map(export.deserialize, programs))


def _check_array(name: str, x: Any, described: Mapping[str, Any]) -> None:
    shape, axes = jnp.shape(x), described["shape"]
    fits = len(shape) == len(axes) and all(
        isinstance(axis, str) or axis == length for axis, length in zip(axes, shape, strict=True)
    )
    if not fits or jnp.result_type(x) != jnp.dtype(described["dtype"]):
        raise UserError(
            f"{name} must be {described['dtype']} of shape ({', '.join(map(str, axes))}); got "
            f"{jnp.result_type(x)} of shape {shape}"
        )
