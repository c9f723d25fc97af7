"""The matrix memory of the xLSTM, in the form of its 7B model."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
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
from rnnscale._checks import BatchShape, FloatDType, Positive, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.attention._heads import (
    attention_step,
    features_of_head,
    from_heads,
    to_heads,
    with_ones,
)
from rnnscale.layers import layer_norm

# Added to the denominator, as in the authors' code.
_EPSILON = 1e-6


class MLSTMState(NamedTuple):
    """$C$ and $n$ of every head, both divided by $e^m$, and the stabiliser $m$."""

    memory: Float[Array, "*batch heads key value"]
    normaliser: Float[Array, "*batch heads key"]
    stabiliser: Float[Array, "*batch heads"]


class MLSTMInputs(NamedTuple):
    """What the recurrence reads, at least float32. Gates are before their activation."""

    query: Float[Array, "*axes heads key"]
    key: Float[Array, "*axes heads key"]
    value: Float[Array, "*axes heads value"]
    input_gate: Float[Array, "*axes heads"]
    forget_gate: Float[Array, "*axes heads"]


def mlstm(
    inputs: MLSTMInputs,
    state: MLSTMState,
    *,
    reset: Bool[Array, "*batch time"] | None,
    lengths: Int[Array, "*batch"] | None,
) -> tuple[MLSTMState, Float[Array, "*batch time heads value"]]:
    """The recurrence of an mLSTM over time, and the state at each row's last step.

    The stabiliser is found first, by a scan of its own. With it the rest is linear attention with
    decay, whose normaliser is the memory of a further value that is always one.
    """
    log_forget = jax.nn.log_sigmoid(inputs.forget_gate)
    before, last = sharding.max_plus_scan(
        log_forget, inputs.input_gate, state.stabiliser, reset=reset, lengths=lengths
    )
    log_decay, write, m = _stabilise(log_forget, inputs.input_gate, before)
    ys, memory = sharding.linear_attention(
        inputs.query,
        _scaled(inputs.key, write),
        with_ones(inputs.value),
        log_decay,
        h0=_joined(state),
        reset=reset,
        lengths=lengths,
    )
    return _state(memory, last), _normalise(ys, m)


def mlstm_step(
    inputs: MLSTMInputs, state: MLSTMState
) -> tuple[MLSTMState, Float[Array, "*batch heads value"]]:
    """One step of `mlstm`."""
    log_forget = jax.nn.log_sigmoid(inputs.forget_gate)
    log_decay, write, m = _stabilise(log_forget, inputs.input_gate, state.stabiliser)
    memory, y = attention_step(
        _joined(state),
        inputs.query,
        _scaled(inputs.key, write),
        with_ones(inputs.value),
        log_decay[..., None],
    )
    return _state(memory, m), _normalise(y, m)


def mlstm_state(
    batch_shape: tuple[int, ...], heads: int, key_dim: int, value_dim: int, dtype: jnp.dtype
) -> MLSTMState:
    """The state before the first step, which is zero, as in the authors' code.

    The output does not depend on $m$, so that zero serves as well as $-\\infty$ and is finite.
    """
    shape = (*batch_shape, heads)
    return MLSTMState(
        jnp.zeros((*shape, key_dim, value_dim), dtype),
        jnp.zeros((*shape, key_dim), dtype),
        jnp.zeros(shape, dtype),
    )


class MLSTM(CausalLayer):
    r"""The mLSTM: linear attention with a forget gate and an exponential input gate in each head.

    With $q, k, v$ and all gates linear in the input, and $\kappa(x) = 15 \tanh(x / 15)$,

    $$\log f_t = \log \mathrm{sigmoid}(\kappa(\tilde f_t)), \qquad
      m_t = \max(\log f_t + m_{t-1}, \kappa(\tilde \imath_t)), \qquad
      f'_t = e^{\log f_t + m_{t-1} - m_t}, \qquad i'_t = e^{\kappa(\tilde \imath_t) - m_t}$$
    $$C_t = f'_t C_{t-1} + i'_t k_t v_t^T, \qquad n_t = f'_t n_{t-1} + i'_t k_t, \qquad
      h_t = \frac{C_t^T q_t}{\max(|n_t^T q_t|, e^{-m_t}) + 10^{-6}}$$

    with keys that are divided by the root of their size. The output is linear in
    $\mathrm{sigmoid}(o_t) \odot \mathrm{norm}(h_t)$ of all heads, where the norm is a layer norm
    for each head. Weights of gates have a leading axis, in the order `i, f`.

    The state is `(C, n, m)`, zero at first and at least float32. $m$ only keeps the exponentials
    within range: $h$ is the same for any $m$, so no gradient goes through it.

    This is the layer of the authors' 7B model and of their code for large models. For that of the
    first paper, between an up- and a down-projection, see `UpProjectedMLSTM`.

    Queries, keys and values start normal with variance `2 / (5 idim)`, the weights of all gates at
    zero, the bias of input gates at -10, those of forget gates evenly from 3 to 6 over the heads,
    and the output with standard deviation `2 / (depth sqrt(idim))`.

    Beck, Pöppel, Spanring, Auer, Prudnikova, Kopp, Klambauer, Brandstetter, Hochreiter, *xLSTM:
    Extended Long Short-Term Memory*, NeurIPS 2024; Beck, Pöppel, Lippe, Kurle, Blies, Klambauer,
    Böck, Hochreiter, *xLSTM 7B: A Recurrent LLM for Fast and Efficient Inference*, 2025.

    **Differs from the paper:** the $10^{-6}$ is that of the authors' code.
    """

    query: Float[Array, "heads key idim"] = parameter()
    key: Float[Array, "heads key idim"] = parameter()
    value: Float[Array, "heads value idim"] = parameter()
    output_gate: Float[Array, "heads value idim"] = parameter()
    gates: Float[Array, "2 heads idim"] = parameter()
    gate_bias: Float[Array, "2 heads"] = parameter(group="bias")
    scale: Float[Array, "heads value"] = parameter(group="bias")
    output: Float[Array, "odim heads value"] = parameter()
    gate_cap: Float[Array, ""] = parameter(trainable=False)
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    key_dim: int = eqx.field(static=True)
    value_dim: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        idim: Size,
        heads: Size = 4,
        odim: Size | None = None,
        *,
        key_dim: Size | None = None,
        value_dim: Size | None = None,
        gate_cap: Positive = 15.0,
        epsilon: Positive = 1e-6,
        depth: Size = 1,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `idim`: features of the input.
        - `heads`: the number of heads.
        - `odim`: features of the output. Default `idim`.
        - `key_dim`: features of queries and keys in a head. Default `idim / (2 heads)`.
        - `value_dim`: features of values in a head. Default `idim / heads`.
        - `gate_cap`: the pre-activations of input and forget gates stay within plus and minus this
            value. It is not trained.
        - `epsilon`: epsilon of the norm, positive.
        - `depth`: the number of blocks of the model, for the initial output weights.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if an argument is out of range, or if `heads` does not divide
        `idim`, or its half, and the size that follows from it is not given; `TypeError` if an
        argument is another kind of thing.
        """
        key_dim = features_of_head("MLSTM", "key_dim", key_dim, idim, heads, part=2)
        value_dim = features_of_head("MLSTM", "value_dim", value_dim, idim, heads)
        odim = idim if odim is None else odim
        keys = jax.random.split(key, 4)
        std = math.sqrt(2 / (5 * idim))
        self.query = std * jax.random.normal(keys[0], (heads, key_dim, idim), jnp.float32)
        self.key = std * jax.random.normal(keys[1], (heads, key_dim, idim), jnp.float32)
        self.value = std * jax.random.normal(keys[2], (heads, value_dim, idim), jnp.float32)
        self.output_gate = jnp.zeros((heads, value_dim, idim), jnp.float32)
        self.gates = jnp.zeros((2, heads, idim), jnp.float32)
        self.gate_bias = jnp.stack([jnp.full((heads,), -10.0), initial_forget_bias(heads)])
        self.scale = jnp.ones((heads, value_dim), jnp.float32)
        std = 2 / (depth * math.sqrt(idim))
        self.output = std * jax.random.normal(keys[3], (odim, heads, value_dim), jnp.float32)
        self.gate_cap = jnp.asarray(gate_cap, jnp.float32)
        self.idim, self.odim, self.heads = idim, odim, heads
        self.key_dim, self.value_dim, self.epsilon = key_dim, value_dim, epsilon

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: MLSTMState | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[MLSTMState, Float[Array, "*batch time odim"]]:
        carried, lengths = check_call(self, xs, state, reset, lengths, key)
        xs = zero_padding(xs, lengths)
        state, hs = mlstm(self._inputs(xs), carried, reset=reset, lengths=lengths)
        return state, zero_padding(self._read(hs, xs), lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: MLSTMState,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[MLSTMState, Float[Array, "*batch odim"]]:
        state = check_step(self, x, state, key)
        state, h = mlstm_step(self._inputs(x), state)
        return state, self._read(h, x)

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> MLSTMState:
        return mlstm_state(
            batch_shape, self.heads, self.key_dim, self.value_dim, state_dtype(dtype)
        )

    def _inputs(self, x: Float[Array, "*axes idim"]) -> MLSTMInputs:
        weights = self.query, self.key, self.value
        query, key, value = (to_heads(weight, x, state_dtype(x.dtype)) for weight in weights)
        gates = to_heads(self.gates, at_least_float32(x)) + self.gate_bias
        gates = self.gate_cap * jnp.tanh(gates / self.gate_cap)
        return MLSTMInputs(
            query, key / math.sqrt(self.key_dim), value, gates[..., 0, :], gates[..., 1, :]
        )

    def _read(
        self, h: Float[Array, "*axes heads value"], x: Float[Array, "*axes idim"]
    ) -> Float[Array, "*axes odim"]:
        normed = layer_norm(h, self.scale, epsilon=self.epsilon)
        return from_heads(
            self.output, jax.nn.sigmoid(to_heads(self.output_gate, x)) * normed, x.dtype
        )


def initial_forget_bias(heads: int) -> Float[Array, "heads"]:
    """From 3 to 6, so that heads start with memories of 20 to 400 steps."""
    return jnp.linspace(3.0, 6.0, heads, dtype=jnp.float32)


def _stabilise(log_forget: Array, input_gate: Array, before: Array) -> tuple[Array, Array, Array]:
    """The logarithm of the decay, the factor of the keys, and the stabiliser of each step.

    The first is at most 0 and the second at most 1, in floating point too.
    """
    m = lax.stop_gradient(jnp.maximum(log_forget + before, input_gate))
    return log_forget + before - m, jnp.exp(input_gate - m), m


def _normalise(
    ys: Float[Array, "*axes heads extended"], m: Float[Array, "*axes heads"]
) -> Float[Array, "*axes heads value"]:
    total = jnp.maximum(jnp.abs(ys[..., -1]), jnp.exp(-m)) + _EPSILON
    return ys[..., :-1] / total[..., None]


def _scaled(key: Array, factor: Array) -> Array:
    return factor[..., None] * key


def _joined(state: MLSTMState) -> Float[Array, "*batch heads key extended"]:
    return jnp.concatenate([state.memory, state.normaliser[..., None]], axis=-1)


def _state(memory: Float[Array, "*batch heads key extended"], m: Array) -> MLSTMState:
    return MLSTMState(memory[..., :-1], memory[..., -1], m)
