"""`BidirectionalS5`, S5 in both directions of time."""

from typing import cast

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import SequenceLayer, at_least_float32, check_call, in_precision, zero_padding
from rnnscale._checks import BatchShape, FloatDType, Positive, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.ssm._discretise import Discretisation, scale
from rnnscale.ssm._hippo import OutputInit, half_of_hippo, output_map
from rnnscale.ssm._s5 import S5
from rnnscale_kernels import Planar


class BidirectionalS5(SequenceLayer):
    r"""S5 with a second output matrix, for a scan that runs backwards in time.

    $$y = 2\,\mathrm{Re}(\tilde C_1 \overrightarrow{x} + \tilde C_2 \overleftarrow{x}) + d \odot u$$

    Both scans share $\Lambda$, $\tilde B$ and the steps, so the layer has one more output matrix
    than `S5`. It is not causal and has no `step`. The state is `(forward, backward)`, two states of
    `S5`: the forward one after the last step of the sequence, the backward one after the first.
    Arguments, paper and differences from it are those of `S5`.
    """

    forward: S5
    c_backward_re: Float[Array, "odim state"] = parameter()
    c_backward_im: Float[Array, "odim state"] = parameter()
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        state_dim: Size,
        odim: Size | None = None,
        *,
        blocks: Size = 1,
        dt_min: Positive = 1e-3,
        dt_max: Positive = 1e-1,
        discretisation: Discretisation = "zoh",
        step_rescale: Positive = 1.0,
        clip_eigenvalues: bool = True,
        c_init: OutputInit = "lecun",
        key: PRNGKeyArray,
    ):
        forward_key, backward_key = jax.random.split(key)
        self.forward = S5(
            idim,
            state_dim,
            odim,
            blocks=blocks,
            dt_min=dt_min,
            dt_max=dt_max,
            discretisation=discretisation,
            step_rescale=step_rescale,
            clip_eigenvalues=clip_eigenvalues,
            c_init=c_init,
            key=forward_key,
        )
        self.idim, self.odim = self.forward.idim, self.forward.odim
        _, vectors = half_of_hippo(state_dim // blocks)
        self.c_backward_re, self.c_backward_im = output_map(
            backward_key, self.odim, state_dim, vectors, c_init
        )

    @property
    def causal(self) -> bool:
        return False

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: tuple[Planar, Planar] | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[tuple[Planar, Planar], Float[Array, "*batch time odim"]]:
        (before, after), lengths = check_call(self, xs, state, reset, lengths, key)
        xs = zero_padding(xs, lengths)
        before, ys = self.forward(xs, before, reset=reset, lengths=lengths)
        if xs.shape[-2] == 0:
            return (before, after), ys
        wide = in_precision(self, xs.dtype)
        decay, b, _ = wide.forward.discretise()
        c = Planar(at_least_float32(wide.c_backward_re), at_least_float32(wide.c_backward_im))
        ys_backward, after = sharding.diagonal_ssm(
            xs, decay, b, scale(c, 2.0), after, reverse=True, reset=reset, lengths=lengths
        )
        return (before, cast(Planar, after)), ys + ys_backward

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> tuple[Planar, Planar]:
        return self.forward.init_state(batch_shape, dtype), self.forward.init_state(
            batch_shape, dtype
        )
