"""Batch normalisation after training, for imported models; new models use layer norms."""

import equinox as eqx
import jax
from jaxtyping import Array, Float

from rnnscale._base import at_least_float32, check_features
from rnnscale._fields import parameter


class FrozenBatchNorm(eqx.Module):
    r"""$y = \frac{x - m}{\sqrt{v + \epsilon}} \odot s + b$ with a fixed mean and variance.

    This is batch normalisation in inference, with the statistics found in training. Scale and bias
    are trained further, the statistics are not, so the rows of a batch do not affect each other.

    Ioffe, Szegedy, *Batch Normalization*, ICML 2015.
    """

    mean: Float[Array, "dim"] = parameter(trainable=False)
    variance: Float[Array, "dim"] = parameter(trainable=False)
    scale: Float[Array, "dim"] = parameter(group="bias")
    bias: Float[Array, "dim"] = parameter(group="bias")
    epsilon: float = eqx.field(static=True, default=1e-5)

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
        check_features(self, x, self.mean.shape[-1])
        wide = (at_least_float32(x) - self.mean) * jax.lax.rsqrt(self.variance + self.epsilon)
        return (wide * self.scale + self.bias).astype(x.dtype)
