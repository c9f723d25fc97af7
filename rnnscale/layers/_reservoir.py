"""Reservoir computing: a fixed cell and a linear readout that is fitted by ridge regression."""

from contextlib import AbstractContextManager
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._base import (
    CausalLayer,
    SequenceModel,
    State,
    at_least_float32,
    check_call,
    check_features,
    check_step,
    zero_padding,
)
from rnnscale._checks import BatchShape, Count, FloatDType, NonNegative, Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells import Cell, check_cell, time_loop
from rnnscale.layers._feedback import feed_back
from rnnscale.layers._linear import Linear
from rnnscale.layers._ridge import RidgeSums, ridge_sums
from rnnscale.layers._tokens import in_int32

type _Pooling = Literal["last", "mean"]


class Reservoir(SequenceModel):
    """A cell that is not trained, and a readout that is fitted in closed form.

    The cell's field says that it is not trained, which the optimisers of this package read; for
    other optimisers, `jax.lax.stop_gradient` makes its gradient zero. The gradients of the input
    and of the readout are the usual ones. Products of float32 have full precision on every device.

    It takes its steps one after another: `parallel` of `RNNEncoder` needs the matrix of derivatives
    of all units at every step, and a reservoir has hundreds of units or more. The outputs of a
    small one can come from `RNNEncoder`, with the readout fitted by `ridge_sums`.
    """

    cell: eqx.AbstractVar[Cell]
    readout: eqx.AbstractVar[Linear]

    @property
    def causal(self) -> bool:
        return True

    @property
    def idim(self) -> int:
        """Features of the input."""
        return self.cell.idim

    @property
    def odim(self) -> int:
        """Features of the readout."""
        return self.readout.odim

    @property
    def frozen(self) -> Cell:
        """The cell, without gradients."""
        return jax.lax.stop_gradient(self.cell)

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> State:
        return self.frozen.init_state(batch_shape, dtype)

    def states(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch time hdim"]]:
        """The last state of the cell and its outputs, zero beyond `lengths`."""
        with _full_precision():
            return time_loop(self.frozen, xs, state, reset=reset, lengths=lengths)

    def read(self, features: Float[Array, "*axes hdim"]) -> Float[Array, "*axes odim"]:
        """The readout of the cell's outputs."""
        with _full_precision():
            return self.readout(features)

    @check_arguments
    def solve[R: "Reservoir"](self: R, sums: RidgeSums, *, ridge: NonNegative) -> R:
        """A reservoir with the readout that fits the samples of `sums`.

        **Arguments:**

        - `sums`: the result of `accumulate`, possibly summed over batches.
        - `ridge`: the factor of the squared weights, at least 0; see `RidgeSums.solve`.

        **Returns:** a new reservoir. The readout is computed in float64 and then rounded to the
        dtype of the present one.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if `sums` has other
        sizes, and what `RidgeSums.solve` raises.
        """
        weight, bias = sums.solve(ridge)
        if weight.shape != self.readout.weight.shape:
            raise ValueError(
                f"the readout maps {self.readout.idim} features to {self.odim}; got sums of "
                f"{weight.shape[1]} features and {weight.shape[0]} targets."
            )
        dtype = self.readout.weight.dtype
        return eqx.tree_at(
            lambda reservoir: (reservoir.readout.weight, reservoir.readout.bias),
            self,
            (jnp.asarray(weight, dtype), jnp.asarray(bias, dtype)),
        )


class ReservoirComputer(Reservoir, CausalLayer):
    r"""A fixed cell and a linear readout of its output at every step, fitted by ridge regression:

    $$y_t = W h_t + b, \qquad
    (W, b) = \arg\min \sum_t |W h_t + b - \hat y_t|^2 + \mathrm{ridge} \, |W|^2$$

    ```python
    from rnnscale.cells import LeakyElmanCell
    from rnnscale.layers import ReservoirComputer, as_reservoir

    cell = as_reservoir(LeakyElmanCell(1, 100, key=key), spectral_radius=0.9, key=key)
    reservoir = ReservoirComputer(cell, odim=1, key=key)
    series = jnp.sin(0.3 * jnp.arange(200.0))[:, None]
    reservoir = reservoir.fit(series[:-1], series[1:], ridge=1e-6, washout=50)
    state, predictions = reservoir(series)
    state, following = reservoir.forecast(series, steps=20)
    ```

    Data that do not fit into memory are fitted batch by batch: sum the results of `accumulate`, and
    `solve`. Before it is fitted, the readout is random, as in an `RNN`; gradients train it too.

    Jaeger, *The "Echo State" Approach to Analysing and Training Recurrent Neural Networks*, GMD
    Report 148, 2001; Lukoševičius, *A Practical Guide to Applying Echo State Networks*, 2012.

    **Differs from the papers:** the readout does not see the input, and is fed back in `forecast`
    only. Its bias is not penalised.
    """

    cell: Cell = parameter(trainable=False)
    readout: Linear

    @check_arguments
    def __init__(self, cell: Cell, odim: Size, *, key: PRNGKeyArray):
        """**Arguments:**

        - `cell`: any cell. `as_reservoir` gives one the weights of an echo state network.
        - `odim`: features of the readout.
        - `key`: for the readout before it is fitted.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if `odim` is below 1.
        """
        check_cell(cell)
        self.cell, self.readout = cell, Linear(cell.odim, odim, key=key)

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch time odim"]]:
        state, lengths = check_call(self, xs, state, reset, lengths, key)
        state, hs = self.states(xs, state, reset=reset, lengths=lengths)
        return state, zero_padding(self.read(hs), lengths)

    def step(
        self,
        x: Float[Array, "*batch idim"],
        state: State,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch odim"]]:
        state = check_step(self, x, state, key)
        with _full_precision():
            state, h = self.frozen(x, state)
        return state, self.read(h)

    @check_arguments
    def fit(
        self,
        xs: Float[Array, "*batch time idim"],
        targets: Float[Array, "*batch time odim"] | Integer[Array, "*batch time"] | NDArray,
        *,
        ridge: NonNegative,
        washout: Count = 0,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> "ReservoirComputer":
        """A reservoir with the readout that fits these sequences: `accumulate`, then `solve`."""
        _, sums = self.accumulate(xs, targets, washout=washout, reset=reset, lengths=lengths)
        return self.solve(sums, ridge=ridge)

    @check_arguments
    def accumulate(
        self,
        xs: Float[Array, "*batch time idim"],
        targets: Float[Array, "*batch time odim"] | Integer[Array, "*batch time"] | NDArray,
        state: State | None = None,
        *,
        washout: Count = 0,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> tuple[State, RidgeSums]:
        """The sums from which a readout of these sequences is computed. Not for use inside
        `jax.jit`: see `ridge_sums`.

        **Arguments:**

        - `xs`, `reset`, `lengths`: as in a call.
        - `targets`: a target for every step, or an integer below `odim`, which is fitted one-hot.
            NumPy arrays of float64 keep their precision.
        - `state`: the state before the first step. The next piece of a sequence continues from the
            state that this one returned, without a washout.
        - `washout`: the number of steps of each sequence, and after each reset, that do not count:
            at least 0 and below the number of steps.

        **Returns:** `(state, sums)`: the state after the last step, and sums to add to others.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if shapes do not
        match, or if `washout` or a label that counts is out of range.
        """
        state, lengths = check_call(self, xs, state, reset, lengths)
        xs, steps = jnp.asarray(xs), xs.shape[:-1]
        if not 0 <= washout < max(steps[-1], 1):
            raise ValueError(
                f"washout must be at least 0 and below the {steps[-1]} steps; got {washout}."
            )
        _check_targets(self, targets, steps)
        state, hs = _states(self, xs, state, reset, lengths)
        counted = _counted(steps, reset, lengths, washout)
        return state, _sums(self, hs, targets, counted)

    @check_arguments
    def forecast(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        steps: Size,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch steps idim"]]:
        """The values that follow `xs`, each predicted from the ones before it, by a reservoir that
        is fitted to predict the next value.

        **Arguments and returns:** those of `AutoregressiveRNN.forecast`.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if `odim` is not
        `idim`, `steps` is below 1 or `xs` has no step, and what a call raises.
        """
        if self.odim != self.idim:
            raise ValueError(
                "ReservoirComputer.forecast feeds predictions back as inputs, which needs odim "
                f"equal to idim; got odim={self.odim} and idim={self.idim}."
            )
        check_features(self, xs, self.idim, rank=2)
        if xs.shape[-2] == 0:
            raise ValueError(
                "ReservoirComputer: there is no step to continue from; give at least one."
            )
        state, _ = self.states(xs, state, lengths=lengths)
        y = self.read(self.frozen.output(state).astype(xs.dtype))
        return feed_back(self.step, state, y, steps)


class ReservoirClassifier(Reservoir):
    """A fixed cell and one linear readout for each sequence, fitted by ridge regression.

    ```python
    from rnnscale.cells import LeakyElmanCell
    from rnnscale.layers import ReservoirClassifier, as_reservoir

    cell = as_reservoir(LeakyElmanCell(1, 100, key=key), spectral_radius=0.9, key=key)
    model = ReservoirClassifier(cell, odim=2, pool="mean", key=key)
    rows = jax.random.normal(key, (20, 50, 1)) + jnp.arange(20)[:, None, None] % 2
    model = model.fit(rows, jnp.arange(20) % 2, ridge=1e-2)
    state, scores = model(rows)         # scores: (20, 2)
    ```

    Labels are fitted one-hot, and the largest score is the predicted label. Real targets are
    fitted as they are.
    """

    cell: Cell = parameter(trainable=False)
    readout: Linear
    pool: _Pooling = eqx.field(static=True)

    @check_arguments
    def __init__(self, cell: Cell, odim: Size, *, pool: _Pooling = "last", key: PRNGKeyArray):
        """**Arguments:**

        - `cell`: any cell. `as_reservoir` gives one the weights of an echo state network.
        - `odim`: the number of labels, or of features of a real target.
        - `pool`: the readout sees the output of the cell at the `"last"` valid step, or its
            `"mean"` over the valid steps.
        - `key`: for the readout before it is fitted.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if `odim` is below 1
        or `pool` is invalid.
        """
        check_cell(cell)
        self.cell, self.readout, self.pool = cell, Linear(cell.odim, odim, key=key), pool

    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch odim"]]:
        """As a call of a sequence layer, with one output for each sequence, also if it has resets.

        The output for a row of length zero is the readout of the state it started from, or of a
        mean of zero.
        """
        state, lengths = check_call(self, xs, state, reset, lengths, key)
        state, features = self.pooled(xs, state, reset=reset, lengths=lengths)
        return state, self.read(features)

    def pooled(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch hdim"]]:
        """The last state of the cell, and the features that the readout sees."""
        state, hs = self.states(xs, state, reset=reset, lengths=lengths)
        if self.pool == "last":
            return state, self.frozen.output(state).astype(xs.dtype)
        # Padded steps are zero. A sum over time in bfloat16 would lose the later ones.
        total = jnp.sum(at_least_float32(hs), axis=-2)
        steps = jnp.asarray(xs.shape[-2] if lengths is None else lengths, total.dtype)
        return state, (total / jnp.maximum(steps, 1)[..., None]).astype(xs.dtype)

    @check_arguments
    def fit(
        self,
        xs: Float[Array, "*batch time idim"],
        targets: Float[Array, "*batch odim"] | Integer[Array, "*batch"] | NDArray,
        *,
        ridge: NonNegative,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> "ReservoirClassifier":
        """A reservoir with the readout that fits these sequences: `accumulate`, then `solve`."""
        return self.solve(self.accumulate(xs, targets, lengths=lengths), ridge=ridge)

    @check_arguments
    def accumulate(
        self,
        xs: Float[Array, "*batch time idim"],
        targets: Float[Array, "*batch odim"] | Integer[Array, "*batch"] | NDArray,
        *,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> RidgeSums:
        """The sums from which a readout of these sequences is computed. Not for use inside
        `jax.jit`: see `ridge_sums`.

        **Arguments:**

        - `xs`, `lengths`: as in a call. Sequences without a step do not count.
        - `targets`: a target for each sequence, or an integer below `odim`, which is fitted
            one-hot.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if shapes do not match
        or a label is out of range.
        """
        _, lengths = check_call(self, xs, None, None, lengths)
        xs, rows = jnp.asarray(xs), xs.shape[:-2]
        _check_targets(self, targets, rows)
        features = _pooled(self, xs, lengths)
        steps = jnp.asarray(xs.shape[-2] if lengths is None else lengths)
        counted = jnp.broadcast_to(steps, rows) > 0
        return _sums(self, features, targets, counted)


def _full_precision() -> AbstractContextManager:
    """Fitted weights are large and cancel, so they need more digits than GPUs and TPUs use by
    default in products."""
    return jax.default_matmul_precision("highest")


@eqx.filter_jit
def _states(
    reservoir: Reservoir, xs: Array, state: State | None, reset: Array | None, lengths: Array | None
) -> tuple[State, Array]:
    return reservoir.states(xs, state, reset=reset, lengths=lengths)


@eqx.filter_jit
def _pooled(reservoir: ReservoirClassifier, xs: Array, lengths: Array | None) -> Array:
    return reservoir.pooled(xs, lengths=lengths)[1]


def _counted(
    steps: tuple[int, ...], reset: Array | None, lengths: Array | None, washout: Count
) -> Bool[Array, "*batch time"]:
    """Whether a step is valid and after the washout of its segment."""
    time = jnp.arange(steps[-1])
    start = jnp.zeros_like(time)
    if reset is not None:
        starts = jnp.where(reset, time, 0)
        start = jax.lax.cummax(starts, axis=starts.ndim - 1)
    counted = time - start >= washout
    if lengths is not None:
        counted = counted & (time < jnp.asarray(lengths)[..., None])
    return jnp.broadcast_to(counted, steps)


def _check_targets(reservoir: Reservoir, targets: Array | NDArray, axes: tuple[int, ...]) -> None:
    name, odim = type(reservoir).__name__, reservoir.odim
    labels = jnp.issubdtype(targets.dtype, jnp.integer)
    expected = axes if labels else (*axes, odim)
    if targets.shape != expected:
        kind = "integer labels" if labels else f"targets of {odim} features"
        raise ValueError(f"{name} takes {kind} of shape {expected}; got shape {targets.shape}.")


def _sums(
    reservoir: Reservoir, features: Array, targets: Array | NDArray, counted: Array
) -> RidgeSums:
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        return ridge_sums(features, targets, counted)
    one_hot = jax.nn.one_hot(in_int32(targets), reservoir.odim, dtype=jnp.float32)
    sums = ridge_sums(features, one_hot, counted)
    # A label out of range has a row of zeros, so it is missing in the sum.
    if np.sum(sums.moments[0, 1 + sums.features :]) != sums.count:
        raise ValueError(
            f"{type(reservoir).__name__} takes labels from 0 to {reservoir.odim - 1}; got integers "
            "outside that range."
        )
    return sums
