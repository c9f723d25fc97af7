"""Importers for the S4D code of its authors, state-spaces/s4."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import check_arguments
from rnnscale.interop._arrays import check_mapping, make_with, read_arrays, with_parts
from rnnscale.layers import Linear
from rnnscale.ssm import S4D

type _StateDict = Mapping[str, Any]

_MIXER = "output_linear."


class ErfGLU(eqx.Module):
    r"""$y = (W_1 g + b_1) \odot \sigma(W_2 g + b_2)$ with $g = x\,\Phi(x)$: `GLU` with the exact
    GELU of PyTorch, by the error function."""

    value: Linear
    gate: Linear

    def __init__(self, dim: int, *, key: PRNGKeyArray):
        value_key, gate_key = jax.random.split(key)
        self.value = Linear(dim, dim, key=value_key)
        self.gate = Linear(dim, dim, key=gate_key)

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
        x = jax.nn.gelu(x, approximate=False)
        return self.value(x) * jax.nn.sigmoid(self.gate(x))


@check_arguments
def s4d_from_state_spaces(state_dict: _StateDict, *, prefix: str = "") -> S4D:
    r"""The linear part of a module `S4D` of `models/s4/s4d.py`, without the maps after it.

    It computes the same, up to rounding and to what `S4D` says about $A$. What follows the linear
    part there is read by `s4d_mixer_from_state_spaces`:

    ```
    layer = s4d_from_state_spaces(module.state_dict())
    mixer = s4d_mixer_from_state_spaces(module.state_dict())
    state, ys = layer(xs)       # xs: (batch, time, features)
    ys = mixer(ys)              # as module(xs) with transposed=False, in inference
    ```

    **Arguments:**

    - `state_dict`: the weights of the module, or of a model that contains it: `D`, `kernel.C`,
        `kernel.log_dt`, `kernel.log_A_real` and `kernel.A_imag`.
    - `prefix`: the beginning of the names of the module's weights, such as `"s4_layers.0."`. Other
        names are ignored.

    **Raises:** `ValueError` if a weight is missing, is unknown or has another shape.
    """
    shapes = {
        "D": "features",
        "kernel.C": "features modes 2",
        "kernel.log_dt": "features",
        "kernel.log_A_real": "features modes",
        "kernel.A_imag": "features modes",
    }
    weights = {
        name: x for name, x in _under(state_dict, prefix).items() if not name.startswith(_MIXER)
    }
    sizes: dict[str, int] = {}
    arrays = read_arrays("S4D", weights, shapes, sizes)
    return make_with(
        lambda key: S4D(sizes["features"], 2 * sizes["modes"], key=key),
        log_a_re=arrays["kernel.log_A_real"],
        a_im=arrays["kernel.A_imag"],
        log_step=arrays["kernel.log_dt"],
        c_re=arrays["kernel.C"][..., 0],
        c_im=arrays["kernel.C"][..., 1],
        d=arrays["D"],
    )


@check_arguments
def s4d_mixer_from_state_spaces(state_dict: _StateDict, *, prefix: str = "") -> ErfGLU:
    """What follows the linear part in a module `S4D`: a GELU, a linear map and a gate.

    **Arguments:** as for `s4d_from_state_spaces`; it reads `output_linear.0.weight` and
        `output_linear.0.bias`.

    **Raises:** as for `s4d_from_state_spaces`.
    """
    shapes = {"0.weight": "2*features features 1", "0.bias": "2*features"}
    sizes: dict[str, int] = {}
    arrays = read_arrays("output_linear", _under(state_dict, f"{prefix}{_MIXER}"), shapes, sizes)
    features = sizes["features"]
    mixer = eqx.filter_eval_shape(lambda key: ErfGLU(features, key=key), jax.random.key(0))
    weight, bias = arrays["0.weight"][..., 0], arrays["0.bias"]
    parts = {
        name: make_with(
            lambda key: Linear(features, features, key=key), weight=weight[rows], bias=bias[rows]
        )
        for name, rows in (("value", slice(features)), ("gate", slice(features, None)))
    }
    return with_parts(mixer, parts)


def _under(state_dict: Any, prefix: str) -> dict[str, Any]:
    """The weights whose names begin with `prefix`, without it."""
    found = check_mapping("state_dict", state_dict).items()
    return {str(k).removeprefix(prefix): x for k, x in found if str(k).startswith(prefix)}
