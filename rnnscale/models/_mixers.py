"""Mixers, which mix the channels after a sequence layer at each step independently.

`make_mixer(dim, key=key)` makes a mixer, which maps "*axes dim" to "*axes dim". Any function with
that signature can be one, for example `functools.partial(FFN, hidden=512)`. So can the feed-forward
network of a block's second branch. Outside of a block, `GLU`, `FFN` and `GatedFFN` may give another
number of features than they take.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._base import check_features
from rnnscale._checks import Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.layers import Linear

# A norm or mixer, from "*axes dim" to "*axes dim".
type Pointwise = Callable[[Array], Array]


class GLU(eqx.Module):
    r"""$y = (W_1 g + b_1) \odot \sigma(W_2 g + b_2)$ with $g = \mathrm{gelu}(x)$.

    The mixer of the LRU paper. Dauphin et al., *Language Modeling with Gated Convolutional
    Networks*, ICML 2017.
    """

    value: Linear
    gate: Linear

    @check_arguments
    def __init__(self, dim: Size, *, odim: Size | None = None, key: PRNGKeyArray):
        """**Arguments:**

        - `dim`: features in.
        - `odim`: features out. Default `dim`, as a `Block` needs it.
        - `key`: for the initial weights; see `Linear`.
        """
        odim = dim if odim is None else odim
        value_key, gate_key = jax.random.split(key)
        self.value = Linear(dim, odim, key=value_key)
        self.gate = Linear(dim, odim, key=gate_key)

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes odim"]:
        check_features(self, x, self.value.idim)
        x = jax.nn.gelu(x)
        return self.value(x) * jax.nn.sigmoid(self.gate(x))


class HalfGLU(eqx.Module):
    r"""$y = g \odot \sigma(W g + b)$ with $g = \mathrm{gelu}(x)$: `half_glu1` of the S5 code."""

    gate: Linear

    @check_arguments
    def __init__(self, dim: Size, *, key: PRNGKeyArray):
        self.gate = Linear(dim, dim, key=key)

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
        check_features(self, x, self.gate.idim)
        x = jax.nn.gelu(x)
        return x * jax.nn.sigmoid(self.gate(x))


class FFN(eqx.Module):
    r"""$y = W_2\, \phi(W_1 x + b_1) + b_2$, with `hidden` features between."""

    w_in: Float[Array, "mlp idim"] = parameter()
    b_in: Float[Array, "mlp"] = parameter(group="bias")
    w_out: Float[Array, "odim mlp"] = parameter()
    b_out: Float[Array, "odim"] = parameter(group="bias")
    activation: Callable[[Array], Array] = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        dim: Size,
        *,
        hidden: Size | None = None,
        odim: Size | None = None,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`: features in.
        - `hidden`: features between the two maps. Default `4 * dim`.
        - `odim`: features out. Default `dim`, as a `Block` needs it.
        - `activation`: the elementwise function between them.
        - `key`: for the initial weights, Lecun-normal; the biases start at zero.
        """
        hidden = 4 * dim if hidden is None else hidden
        odim = dim if odim is None else odim
        in_key, out_key = jax.random.split(key)
        lecun = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        self.w_in = lecun(in_key, (hidden, dim), jnp.float32)
        self.b_in = jnp.zeros((hidden,), jnp.float32)
        self.w_out = lecun(out_key, (odim, hidden), jnp.float32)
        self.b_out = jnp.zeros((odim,), jnp.float32)
        self.activation = activation

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes odim"]:
        check_features(self, x, self.w_in.shape[-1])
        x = self.activation(x @ self.w_in.astype(x.dtype).T + self.b_in.astype(x.dtype))
        return x @ self.w_out.astype(x.dtype).T + self.b_out.astype(x.dtype)


class GatedFFN(eqx.Module):
    r"""$y = W_2 (\phi(W_g x + b_g) \odot (W_1 x + b_1)) + b_2$, with `hidden` features between.

    SwiGLU if $\phi$ is `jax.nn.silu`, as in Llama and xLSTM; GeGLU if it is `jax.nn.gelu`, as in
    Griffin. Gates have a leading axis, in the order of $W_g, W_1$. Shazeer, *GLU Variants Improve
    Transformer*, 2020.
    """

    w_in: Float[Array, "2 mlp idim"] = parameter()
    b_in: Float[Array, "2 mlp"] | None = parameter(group="bias")
    w_out: Float[Array, "odim mlp"] = parameter()
    b_out: Float[Array, "odim"] | None = parameter(group="bias")
    activation: Callable[[Array], Array] = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        dim: Size,
        *,
        hidden: Size | None = None,
        odim: Size | None = None,
        activation: Callable[[Array], Array] = jax.nn.silu,
        use_bias: bool = True,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`: features in.
        - `hidden`: features between the maps. Default `3 * dim`, as in Griffin.
        - `odim`: features out. Default `dim`, as a `Block` needs it.
        - `activation`: the elementwise function of the gate.
        - `use_bias`: whether the maps have biases.
        - `key`: for the initial weights, Lecun-normal; the biases start at zero.
        """
        hidden = 3 * dim if hidden is None else hidden
        odim = dim if odim is None else odim
        in_key, out_key = jax.random.split(key)
        lecun = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=0)
        self.w_in = lecun(in_key, (2, hidden, dim), jnp.float32)
        self.b_in = jnp.zeros((2, hidden), jnp.float32) if use_bias else None
        self.w_out = lecun(out_key, (1, odim, hidden), jnp.float32)[0]
        self.b_out = jnp.zeros((odim,), jnp.float32) if use_bias else None
        self.activation = activation

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes odim"]:
        check_features(self, x, self.w_in.shape[-1])
        gate, value = (x @ weight.astype(x.dtype).T for weight in self.w_in)
        if self.b_in is not None:
            gate, value = gate + self.b_in[0].astype(x.dtype), value + self.b_in[1].astype(x.dtype)
        y = (self.activation(gate) * value) @ self.w_out.astype(x.dtype).T
        return y if self.b_out is None else y + self.b_out.astype(x.dtype)


class Nonlinearity(eqx.Module):
    r"""$y = \phi(x)$, without parameters."""

    activation: Callable[[Array], Array] = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        dim: Size | None = None,
        *,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        key: PRNGKeyArray | None = None,
    ):
        """`dim` and `key` are not used. They are arguments of every mixer."""
        self.activation = activation

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
        check_features(self, x, None)
        return self.activation(x)


class Identity(eqx.Module):
    """$y = x$, without parameters. With a linear sequence layer the block is linear."""

    @check_arguments
    def __init__(self, dim: Size | None = None, *, key: PRNGKeyArray | None = None):
        """`dim` and `key` are not used. They are arguments of every mixer."""

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
        return x
