"""`Linear`, an affine map for any leading axes, which `eqx.nn.Linear` is not."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._base import check_features
from rnnscale._checks import Size, check_arguments
from rnnscale._fields import parameter


class Linear(eqx.Module):
    r"""$y = W x + b$ over the last axis, whatever axes precede it.

    The weight starts Lecun-normal, of variance `1 / idim`, and the bias at zero. Both are cast to
    the dtype of the input.
    """

    weight: Float[Array, "odim idim"] = parameter()
    bias: Float[Array, "odim"] | None = parameter(group="bias")
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, idim: Size, odim: Size, *, use_bias: bool = True, key: PRNGKeyArray):
        """**Arguments:**

        - `idim`, `odim`: features in and out.
        - `use_bias`: whether there is a bias.
        - `key`: for the initial weight.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if it is out of range.
        """
        lecun = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        self.weight = lecun(key, (odim, idim), jnp.float32)
        self.bias = jnp.zeros((odim,), jnp.float32) if use_bias else None
        self.idim, self.odim = idim, odim

    def __call__(self, x: Float[Array, "*axes idim"]) -> Float[Array, "*axes odim"]:
        check_features(self, x, self.idim)
        y = x @ self.weight.astype(x.dtype).T
        return y if self.bias is None else y + self.bias.astype(x.dtype)
