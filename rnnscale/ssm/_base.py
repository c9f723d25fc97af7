"""The base classes of diagonal state-space models: the state and the skip term; and the scan and
the step, for those whose states see all features.

Its own file because every layer of `rnnscale.ssm` with a diagonal decay derives from it.
"""

from abc import abstractmethod
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rnnscale import sharding
from rnnscale._base import (
    CausalLayer,
    check_call,
    check_step,
    in_precision,
    state_dtype,
    zero_padding,
)
from rnnscale._checks import BatchShape, FloatDType, check_arguments
from rnnscale_kernels import Planar


class DiagonalSSM(CausalLayer):
    r"""A linear recurrence with a diagonal complex decay, real inputs and real outputs:

    $$h_t = \bar\lambda \odot h_{t-1} + \bar B u_t, \qquad y_t = \mathrm{Re}(C h_t) + d \odot u_t$$

    A subclass defines the coefficients (`discretise` and `d`), `__call__` and `step`. The state is
    `Planar(re, im)` with the axes `*batch` and those of the decay, float32 under any compute dtype.
    """

    d: eqx.AbstractVar[Float[Array, "odim"] | None]

    @abstractmethod
    def discretise(self) -> tuple[Planar, Planar, Planar]:
        r"""The discrete system `(decay, b, c)`, in the precision of the parameters, at least
        float32. For inputs of higher precision, the parameters are cast to it before.

        If only one of each conjugate pair of states is kept, `c` includes the factor 2.
        """

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> Planar:
        decay = jax.eval_shape(self.discretise)[0]
        dtype = jnp.promote_types(state_dtype(dtype), decay.dtype)
        zeros = jnp.zeros((*batch_shape, *decay.shape), dtype)
        return Planar(zeros, jnp.zeros_like(zeros))

    def add_skip(
        self, xs: Float[Array, "*axes idim"], ys: Float[Array, "*axes odim"]
    ) -> Float[Array, "*axes odim"]:
        r"""$y + d \odot u$, or `ys` if there is no `d`."""
        return ys if self.d is None else ys + self.d.astype(xs.dtype) * xs


class DenseSSM(DiagonalSSM):
    r"""A diagonal recurrence whose states see all features, through dense maps B and C.

    `discretise` returns a decay with the axes `state`, `b` with `state idim` and `c` with
    `odim state`. `__call__` and `step` of a subclass use `scan_steps` and `one_step`.

    The recurrence is `rnnscale.sharding.diagonal_ssm`: it runs on the fastest kernel of the
    platform, and is distributed over time if the ambient mesh splits time.
    """

    def scan_steps(
        self,
        xs: Float[Array, "*batch time idim"],
        state: Planar | None,
        *,
        reset: Bool[Array, "*batch time"] | None,
        lengths: Int[Array, "*batch"] | None,
        key: Key[Array, "*#batch"] | None,
    ) -> tuple[Planar, Float[Array, "*batch time odim"]]:
        """All steps, as a call of a sequence layer."""
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        if xs.shape[-2] == 0:
            return carried, jnp.zeros((*xs.shape[:-1], self.odim), xs.dtype)
        xs = zero_padding(xs, lengths)
        decay, b, c = in_precision(self, xs.dtype).discretise()
        ys, last = sharding.diagonal_ssm(xs, decay, b, c, carried, reset=reset, lengths=lengths)
        return cast(Planar, last), self.add_skip(xs, ys)

    def one_step(
        self, x: Float[Array, "*batch idim"], state: Planar, key: Key[Array, "*#batch"] | None
    ) -> tuple[Planar, Float[Array, "*batch odim"]]:
        """One step, as `step` of a sequence layer."""
        state = check_step(self, x, state, key)
        decay, b, c = in_precision(self, x.dtype).discretise()
        u = x.astype(state.dtype)
        state = Planar(
            decay.re * state.re - decay.im * state.im + u @ b.re.T,
            decay.re * state.im + decay.im * state.re + u @ b.im.T,
        )
        y = state.re @ c.re.T - state.im @ c.im.T
        return state, self.add_skip(x, y.astype(x.dtype))
