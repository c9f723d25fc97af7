"""The time mixing of RWKV-7, a delta rule that removes and writes along different keys."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import (
    CausalLayer,
    at_least_float32,
    check_call,
    check_step,
    state_dtype,
    zero_padding,
)
from rnnscale._checks import BatchShape, FloatDType, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.attention._delta_rule import first_substep, unit
from rnnscale.attention._heads import features_of_head, from_heads, to_heads
from rnnscale.layers import layer_norm
from rnnscale_kernels import linear_attention

# The decay of a step is at least e to this power.
_FASTEST = -math.exp(-0.5)


class RWKV7State(NamedTuple):
    """The last input, and the matrix of every head."""

    last: Float[Array, "*batch idim"]
    memory: Float[Array, "*batch heads key value"]


class LowRank(eqx.Module):
    r"""$U f(D x) + b$ for each head: $D$ starts at zero, $U$ orthogonal times 0.1."""

    down: Float[Array, "rank idim"] = parameter()
    up: Float[Array, "heads key rank"] = parameter()
    bias: Float[Array, "heads key"] | None = parameter(group="bias")

    def __init__(
        self,
        idim: int,
        rank: int,
        shape: tuple[int, int],
        bias: Float[Array, "heads key"] | None,
        *,
        key: PRNGKeyArray,
    ):
        self.down = jnp.zeros((rank, idim), jnp.float32)
        gain = 0.1 * math.sqrt(max(rank / math.prod(shape), 1))
        self.up = _orthogonal(key, (*shape, rank), gain)
        self.bias = bias

    def __call__(
        self, x: Float[Array, "*axes idim"], inner: Callable[[Array], Array] = lambda x: x
    ) -> Float[Array, "*axes heads key"]:
        """The value, in at least float32."""
        hidden = inner(x @ self.down.astype(x.dtype).T)
        y = to_heads(self.up, hidden, at_least_float32(x).dtype)
        return y if self.bias is None else y + self.bias


class RWKV7(CausalLayer):
    r"""The time mixing of RWKV-7: it removes along one key and writes along another.

    Inputs are mixed with those of the step before, $x^i_t = x_t + \mu_i \odot (x_{t-1} - x_t)$ for
    $i \in \{r, w, k, v, a, g\}$. In each head, with $r, k, v$ linear in $x^r, x^k, x^v$, and
    $L_i(x)$ linear maps of low rank with a bias,

    $$\log w_t = -e^{-1/2} \, \mathrm{sigmoid}(L_w(x^w_t)), \qquad
      a_t = \mathrm{sigmoid}(L_a(x^a_t))$$
    $$\hat\kappa_t = \frac{k_t \odot \xi}{\|k_t \odot \xi\|}, \qquad
      \tilde k_t = k_t \odot (1 + (a_t - 1) \odot \alpha)$$
    $$H_t = (\mathrm{diag}(w_t) - (a_t \odot \hat\kappa_t) \hat\kappa_t^T) H_{t-1}
      + \tilde k_t v_t^T, \qquad
      y_t = \mathrm{LayerNorm}(H_t^T r_t) + (r_t \cdot (\rho \odot \tilde k_t)) \, v_t$$

    and the output is linear in $y_t \odot g_t$ of all heads, with the gate $g_t$ of low rank from
    $x^g_t$. The maps of low rank have a $\tanh$ inside for $w$, a sigmoid inside for $g$ and no
    bias there.

    The state is `(last, memory)`: the last input, and $H$ in at least float32. The step before the
    first of a segment is zero. A step takes twice the time of one of `DeltaNet`: the decay and the
    removal are one step of the recurrence, the writing is another.

    All parameters start as those of the first layer of the authors' code: $r$ and $v$ orthogonal,
    $k$ orthogonal times 0.1, and the output zero, so that a residual block starts as the identity.

    Peng et al., *RWKV-7 "Goose" with Expressive Dynamic State Evolution*, 2025.

    **Differs from the paper:** there, layers after the first mix their values with those of the
    first layer, while a layer here sees only its own input. The length of a key has a $10^{-12}$
    under its root. The epsilon of the norm is $10^{-5}$ times the features of a head, which is that
    of the authors' code for their 64 features.
    """

    mix: Float[Array, "6 idim"] = parameter(group="bias")
    query: Float[Array, "heads key idim"] = parameter()
    key: Float[Array, "heads key idim"] = parameter()
    value: Float[Array, "heads key idim"] = parameter()
    decay: LowRank
    rate: LowRank
    gate: LowRank
    removal: Float[Array, "heads key"] = parameter(group="bias")
    replacement: Float[Array, "heads key"] = parameter(group="bias")
    bonus: Float[Array, "heads key"] = parameter(group="bias")
    scale: Float[Array, "heads key"] = parameter(group="bias")
    shift: Float[Array, "heads key"] = parameter(group="bias")
    output: Float[Array, "odim heads key"] = parameter()
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    key_dim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        heads: Size,
        odim: Size | None = None,
        *,
        key_dim: Size | None = None,
        decay_rank: Size | None = None,
        rate_rank: Size | None = None,
        gate_rank: Size | None = None,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `heads`: the number of heads; one for every 64 features in the authors' models.
        - `odim`: features of the output. Default `idim`.
        - `key_dim`: features of a head. Default `idim / heads`.
        - `decay_rank`, `rate_rank`, `gate_rank`: ranks of the maps to $w$, $a$ and $g$. Default the
            authors': 2.5, 2.5 and 5 times the root of `idim`, rounded to multiples of 32, at least
            32.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size is below 1, or if `heads` does not divide `idim` and
        there is no `key_dim`; `TypeError` if an argument is another kind of thing.
        """
        key_dim = features_of_head("RWKV7", "key_dim", key_dim, idim, heads)
        odim = idim if odim is None else odim
        keys = jax.random.split(key, 6)
        shape = heads, key_dim

        # How fast a unit forgets depends on its place, among all units and within its head.
        place = jnp.linspace(0, 1, heads * key_dim, dtype=jnp.float32).reshape(shape)
        within = jnp.linspace(-1, 1, key_dim, dtype=jnp.float32)
        within = within * jnp.abs(within)
        features = jnp.arange(idim, dtype=jnp.float32) / idim
        powers = jnp.array([0.2, 0.9, 0.7, 0.7, 0.9, 0.2], jnp.float32)
        self.mix = 1 - features ** powers[:, None]
        self.query = _orthogonal(keys[0], (*shape, idim))
        self.key = _orthogonal(keys[1], (*shape, idim), 0.1)
        self.value = _orthogonal(keys[2], (*shape, idim))

        def rank(given: int | None, slope: float) -> int:
            return max(32, 32 * round(slope * math.sqrt(idim) / 32)) if given is None else given

        decay, rate = 6 * place - 5.5 + 2.5 * within, 0.4 * place - 0.39 + 0.3 * within
        self.decay = LowRank(idim, rank(decay_rank, 2.5), shape, decay, key=keys[3])
        self.rate = LowRank(idim, rank(rate_rank, 2.5), shape, rate, key=keys[4])
        self.gate = LowRank(idim, rank(gate_rank, 5.0), shape, None, key=keys[5])
        self.removal = 0.76 - 0.1 * place
        self.replacement = jnp.full(shape, 1.02, jnp.float32)
        self.bonus = jnp.full(shape, -0.04, jnp.float32)
        self.scale = jnp.ones(shape, jnp.float32)
        self.shift = jnp.zeros(shape, jnp.float32)
        self.output = jnp.zeros((odim, *shape), jnp.float32)
        self.idim, self.odim, self.heads, self.key_dim = idim, odim, heads, key_dim

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: RWKV7State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[RWKV7State, Float[Array, "*batch time odim"]]:
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        time = xs.shape[-2]
        if time == 0:
            return carried, jnp.zeros((*xs.shape[:-1], self.odim), xs.dtype)
        xs = zero_padding(xs, lengths)
        first = carried.last[..., None, :].astype(xs.dtype)
        before = sharding.shift(xs, 1, time_axis=-2, edge=first)
        if reset is not None:
            before = jnp.where(reset[..., None], 0, before)
        memory, ys = self._run(
            sharding.linear_attention, xs, before, carried.memory, reset, lengths
        )
        if lengths is None:
            last = sharding.take_step(xs, time - 1)
        else:
            last = sharding.take_step(xs, jnp.maximum(lengths - 1, 0))
            last = jnp.where(lengths[..., None] > 0, last, carried.last)
        state = RWKV7State(last.astype(carried.last.dtype), memory)
        return state, zero_padding(ys, lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: RWKV7State,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[RWKV7State, Float[Array, "*batch odim"]]:
        state = check_step(self, x, state, key)
        before = state.last.astype(x.dtype)[..., None, :]
        # A single step is not split over devices.
        memory, ys = self._run(linear_attention, x[..., None, :], before, state.memory, None, None)
        return RWKV7State(x.astype(state.last.dtype), memory), ys[..., 0, :]

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> RWKV7State:
        dtype = state_dtype(dtype)
        shape = (*batch_shape, self.heads, self.key_dim, self.key_dim)
        return RWKV7State(jnp.zeros((*batch_shape, self.idim), dtype), jnp.zeros(shape, dtype))

    def _run(
        self,
        attend: Callable[..., tuple[Array, Array]],
        xs: Float[Array, "*batch time idim"],
        before: Float[Array, "*batch time idim"],
        memory: Float[Array, "*batch heads key value"],
        reset: Bool[Array, "*batch time"] | None,
        lengths: Int[Array, "*batch"] | None,
    ) -> tuple[Array, Float[Array, "*batch time odim"]]:
        mixed = [xs + mu * (before - xs) for mu in self.mix.astype(xs.dtype)]
        for_query, for_decay, for_key, for_value, for_rate, for_gate = mixed
        wide = at_least_float32(xs).dtype
        query = to_heads(self.query, for_query)
        key = to_heads(self.key, for_key, wide)
        value = to_heads(self.value, for_value)
        log_decay = _FASTEST * jax.nn.sigmoid(self.decay(for_decay, jnp.tanh))
        rate = jax.nn.sigmoid(self.rate(for_rate))
        removed = unit(key * self.removal, 1e-12)
        written = key * (1 + (rate - 1) * self.replacement)

        # Two steps of the recurrence: decay and remove, then write and read. The first one reads
        # the decayed memory, so what it reads along is divided by the decay.
        def substeps(first: Array, second: Array) -> Array:
            both = jnp.stack([first, second], axis=-3)
            return both.reshape(*xs.shape[:-2], 2 * xs.shape[-2], *both.shape[-2:])

        zero = jnp.zeros_like(key)
        ys, memory = attend(
            substeps(query, query),
            substeps(rate * removed, written),
            substeps(jnp.zeros_like(value), value),
            substeps(log_decay, zero),
            erase=substeps(removed * jnp.exp(-log_decay), zero),
            h0=memory,
            reset=None if reset is None else first_substep(reset, 2, axis=-1),
            lengths=None if lengths is None else 2 * lengths,
        )
        ys = ys.reshape(*xs.shape[:-1], 2, self.heads, self.key_dim)[..., 1, :, :]

        ys = layer_norm(ys, self.scale, self.shift, epsilon=1e-5 * self.key_dim)
        weight = jnp.sum(at_least_float32(query) * self.bonus * written, axis=-1, keepdims=True)
        ys = at_least_float32(ys) + weight * value
        ys = ys * self.gate(for_gate, jax.nn.sigmoid)
        return memory, from_heads(self.output, ys, xs.dtype)


def _orthogonal(key: PRNGKeyArray, shape: tuple[int, ...], gain: float = 1.0) -> Array:
    """Orthogonal as a matrix from the last axis to all others, times `gain`."""
    matrix = (math.prod(shape[:-1]), shape[-1])
    return jax.nn.initializers.orthogonal(gain)(key, matrix, jnp.float32).reshape(shape)
