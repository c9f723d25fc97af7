"""The layers of other libraries, each set up to do the same job as one of ours.

`contenders(ours)` returns, for a layer or cell of ours, the same layer by every installed library,
with the same weights and one signature: `run(module, xs) -> ys` over a batch. Two forms in plain
JAX are compared as well:

- `textbook`, for LRU and S5: B as one complex product, the decay repeated along time,
    `jax.lax.associative_scan` over complex64, C as another product. The public S5 and LRU code in
    JAX is written like this.
- `plain`: the complete step inside a `jax.lax.scan`. What a cell computes from its parameters once
    a call, such as a matrix exponential, is computed once a call here too.

Outputs are compared before anything is timed, unless the library has another equation
(`OtherEquation`). Any other difference is work that the library cannot be asked to leave out.

Each library, rnnscale included, is imported only when it is used.
"""
# pyright: reportMissingImports=false

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._benchmark import OURS, Row

DISTRIBUTIONS = (
    *("equinox", "flax", "discretax", "rnn-jax", "memax", "torch", "mambapy", "transformers"),
)


def installed() -> dict[str, str]:
    """The versions of the libraries that are here."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def versions_of_libraries(options: argparse.Namespace) -> Row:
    """The versions of the libraries, to stand with the rows."""
    return {"libraries": installed()}


def log_missing() -> None:
    """Logs which libraries are left out, in one line."""
    here = installed()
    reasons = {name: "not installed" for name in DISTRIBUTIONS if name not in here}
    if "discretax" in reasons and sys.version_info[:2] != (3, 12):
        reasons["discretax"] = "its releases are for Python 3.12"
    if reasons:
        listed = ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
        print(f"left out: {listed}; the extra peers has them", file=sys.stderr)


class OtherEquation(str):
    """In what a job differs, for a layer that computes something else than ours. Its outputs are
    not compared with ours."""


class Library(Protocol):
    """A library's layers for some of our classes, by the names of these.

    `differs` says for each how the job differs from ours; it is empty if the job is the same.
    `hdim` is the number of units of a cell or of complex states of an LRU or S5.
    """

    @property
    def differs(self) -> Mapping[str, str]: ...

    def make(self, kind: str, idim: int, hdim: int, key: jax.Array) -> Any:
        """The layer as the library initialises it."""
        ...

    def with_weights(self, module: Any, ours: Any) -> Any:
        """The layer with the weights of ours."""
        ...

    def run(self, module: Any, xs: jax.Array) -> jax.Array:
        """The outputs over a batch."""
        ...


@dataclass(frozen=True)
class Contender:
    """A layer that does the job: `run(module, xs) -> ys`. `differs`: how the job differs."""

    run: Callable[[Any, jax.Array], jax.Array]
    module: Any
    differs: str = ""

    @property
    def facts(self) -> Row:
        return {"note": self.differs} if self.differs else {}

    @property
    def same_equation(self) -> bool:
        return not isinstance(self.differs, OtherEquation)


def contenders(ours: Any) -> dict[str, Contender]:
    """Ours, the forms in plain JAX and all other libraries."""
    kind = type(ours).__name__
    found = {OURS: Contender(LIBRARIES[OURS].run, ours), "plain": Contender(plain, ours)}
    if kind in ("LRU", "S5"):
        found["textbook"] = Contender(textbook, ours)
    for name in libraries_for(kind):
        if name != OURS:
            library = LIBRARIES[name]
            module = library.make(kind, *sizes(ours), jax.random.key(0))
            module = library.with_weights(module, ours)
            found[name] = Contender(library.run, module, library.differs[kind])
    return found


def libraries_for(kind: str) -> list[str]:
    """Ours and the installed libraries that have such a layer or cell."""
    here = (OURS, *installed())
    return [name for name, each in LIBRARIES.items() if name in here and kind in each.differs]


def sizes(ours: Any) -> tuple[int, int]:
    """Features of the input, and units or complex states."""
    match type(ours).__name__:
        case "S5":
            return ours.idim, ours.state_dim // 2
        case "LRU":
            return ours.idim, ours.state_dim
    return ours.idim, ours.hdim


def check_equal(found: Mapping[str, Contender], xs: jax.Array) -> None:
    """**Raises:** `ValueError` if the outputs of a contender are not ours."""
    expected = found[OURS].run(found[OURS].module, xs)
    for name, contender in found.items():
        if contender.same_equation:
            check_close(name, contender.run(contender.module, xs), expected)


def check_close(name: str, got: Any, expected: Any, tolerance: float = 1e-3) -> None:
    """**Raises:** `ValueError` if an output is not ours."""
    got, expected = np.asarray(got), np.asarray(expected)
    error = np.max(np.abs(got - expected)) / np.max(np.abs(expected))
    if not error < tolerance:
        raise ValueError(f"{name} differs from ours by {error:.1e} of the largest output")


def textbook(ssm: Any, xs: jax.Array) -> jax.Array:
    decay, b, c = (jax.lax.complex(x.re, x.im) for x in ssm.discretise())

    def combine(left, right):
        return right[0] * left[0], right[0] * left[1] + right[1]

    def one_sequence(u):
        drive = u.astype(jnp.complex64) @ b.T
        decays = jnp.repeat(decay[None], u.shape[0], axis=0)
        _, h = jax.lax.associative_scan(combine, (decays, drive))
        return (h @ c.T).real

    return jax.vmap(one_sequence)(xs) + ssm.d * xs


def plain(ours: Any, xs: jax.Array) -> jax.Array:
    from rnnscale import cells

    if isinstance(ours, cells.Cell):
        weights = cells.compute_weights(ours, xs.dtype)

        def step(state, x):
            state = ours.advance(weights, ours.drive(weights, x), state, cells.affine)
            return state, ours.output(state)

        return over_time(step, ours.init_state(xs.shape[:1], xs.dtype), xs)

    decay, b, c = (jax.lax.complex(x.re, x.im) for x in ours.discretise())

    def ssm_step(h, u):
        h = decay * h + u.astype(jnp.complex64) @ b.T
        return h, (h @ c.T).real + ours.d * u

    return over_time(ssm_step, jnp.zeros((xs.shape[0], decay.size), jnp.complex64), xs)


def over_time(step: Callable, state: Any, xs: Any) -> jax.Array:
    """A `jax.lax.scan` over the second axis."""
    by_time = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), xs)
    return jnp.swapaxes(jax.lax.scan(step, state, by_time)[1], 0, 1)


class Rnnscale:
    differs = {"LRU": "", "S5": "", "LongShortTermMemoryCell": "", "GatedRecurrentUnitCell": ""}

    def make(self, kind, idim, hdim, key):
        import rnnscale

        match kind:
            case "LRU":
                return rnnscale.LRU(idim, hdim, r_min=0.9, r_max=0.999, key=key)
            case "S5":
                return rnnscale.S5(idim, 2 * hdim, key=key)
        return getattr(rnnscale, kind)(idim, hdim, key=key)

    def with_weights(self, module, ours):
        return ours

    def run(self, module, xs):
        from rnnscale.cells import Cell
        from rnnscale.layers import RNNEncoder

        layer = RNNEncoder(module) if isinstance(module, Cell) else module
        return layer(xs)[1]


class Equinox:
    """The cells in a `jax.lax.scan`, a row at a time under `vmap`, as they are made to be used."""

    differs = {"LongShortTermMemoryCell": "", "GatedRecurrentUnitCell": ""}

    def make(self, kind, idim, hdim, key):
        lstm = kind == "LongShortTermMemoryCell"
        return (eqx.nn.LSTMCell if lstm else eqx.nn.GRUCell)(idim, hdim, key=key)

    def with_weights(self, module, ours):
        new = {
            "weight_ih": ours.input.reshape(-1, ours.idim),
            "weight_hh": ours.recurrent.reshape(-1, ours.hdim),
            "bias": ours.bias.reshape(-1),
        }
        if isinstance(module, eqx.nn.GRUCell):
            new["bias_n"] = ours.candidate_bias
        return replaced(module, **new)

    def run(self, module, xs):
        lstm = isinstance(module, eqx.nn.LSTMCell)

        def row(xs):
            def step(state, x):
                state = module(x, state)
                return state, state[0] if lstm else state

            zeros = jnp.zeros(module.hidden_size)
            return jax.lax.scan(step, (zeros, zeros) if lstm else zeros, xs)[1]

        return jax.vmap(row)(xs)


class Flax:
    """`nnx.RNN`; of its two LSTM cells the one that it calls optimised."""

    differs = {
        "ElmanRNNCell": "",
        "LongShortTermMemoryCell": "",
        "GatedRecurrentUnitCell": "no recurrent bias in the candidate",
    }

    def make(self, kind, idim, hdim, key):
        from flax import nnx

        cell = {
            "ElmanRNNCell": nnx.SimpleCell,
            "LongShortTermMemoryCell": nnx.OptimizedLSTMCell,
            "GatedRecurrentUnitCell": nnx.GRUCell,
        }[kind]
        return nnx.RNN(cell(idim, hdim, rngs=nnx.Rngs(key)))

    def with_weights(self, module, ours):
        cell = module.cell
        cell.dense_i.kernel[...] = ours.input.reshape(-1, ours.idim).T
        cell.dense_h.kernel[...] = ours.recurrent.reshape(-1, ours.hdim).T
        biased = cell.dense_i if cell.dense_i.bias is not None else cell.dense_h
        biased.bias[...] = ours.bias.reshape(-1)
        return module

    def run(self, module, xs):
        return module(xs)


class Discretax:
    differs = {"LRU": "", "S5": ""}

    def make(self, kind, idim, hdim, key):
        from discretax.sequence_mixers import LRUSequenceMixer, S5SequenceMixer

        if kind == "LRU":
            return LRUSequenceMixer(idim, key, state_dim=hdim, r_min=0.9, r_max=0.999)
        # Like ours, it keeps one state of each conjugate pair.
        return S5SequenceMixer(idim, key, state_dim=2 * hdim, dt_max=0.1)

    def with_weights(self, module, ours):
        if type(ours).__name__ == "LRU":
            return replaced(module, **_minimal_lru(ours))
        return replaced(
            module,
            Lambda_re=ours.lambda_re,
            Lambda_im=ours.lambda_im,
            log_step=ours.log_step[:, None],
            B=jnp.stack([ours.b_re, ours.b_im], axis=-1),
            C=jnp.stack([ours.c_re, ours.c_im], axis=-1),
            D=ours.d,
        )

    def run(self, module, xs):
        unused = jax.random.key(0)
        return jax.vmap(lambda x: module(x, unused))(xs)


class RnnJax:
    _ssm = "its skip connection is a full matrix: one more product per step"
    differs = {
        "LRU": _ssm,
        "S5": _ssm,
        "ElmanRNNCell": "",
        "LeakyElmanCell": "its leak is a compile-time constant",
        "IndRNNCell": "",
        "LongShortTermMemoryCell": "eight matrix-vector products per step",
        "GatedRecurrentUnitCell": "runs Equinox's cell",
    }

    def make(self, kind, idim, hdim, key):
        # Importing `rnn_jax.layers` turns on `jax_debug_nans`, which makes JAX check every result
        # of every contender.
        debug_nans = jax.config.jax_debug_nans
        from rnn_jax import ssm
        from rnn_jax.cells import gated, vanilla
        from rnn_jax.layers import RNNEncoder

        jax.config.update("jax_debug_nans", debug_nans)
        same = lambda x: x  # noqa: E731
        match kind:
            case "LRU":
                layer = ssm.LinearRecurrentUnit(
                    idim, hdim, idim, rho_min=0.9, rho_max=0.999, nonlinearity=same, key=key
                )
                # Its decays are NumPy arrays, which would be constants without a gradient.
                numpy_leaf = eqx.is_inexact_array_like
                return jax.tree.map(lambda x: jnp.asarray(x) if numpy_leaf(x) else x, layer)
            case "S5":
                # It keeps both states of a conjugate pair: half the order at the same work.
                return ssm.SimplifiedStateSpaceLayer(idim, hdim, idim, nonlinearity=same, key=key)
        make_cell = {
            "GatedRecurrentUnitCell": gated.GatedRecurrentUnit,
            "LongShortTermMemoryCell": gated.LongShortTermMemoryCell,
            "ElmanRNNCell": partial(vanilla.ElmanRNNCell, nonlinearity=jnp.tanh),
            "LeakyElmanCell": partial(vanilla.LeakyElmanCell, nonlinearity=jnp.tanh, leak_rate=0.5),
            "IndRNNCell": vanilla.IndRNNCell,
        }[kind]
        return RNNEncoder(make_cell(idim, hdim, key=key))

    def with_weights(self, module, ours):
        match type(ours).__name__:
            case "LRU":
                return replaced(
                    module,
                    nu_log=ours.nu_log,
                    theta_log=ours.theta_log,
                    gamma_log=ours.gamma_log,
                    W_in=jax.lax.complex(ours.b_re, ours.b_im),
                    W_out=jax.lax.complex(ours.c_re, ours.c_im),
                    W_skip=jnp.diag(ours.d),
                )
            case "S5":
                # Its own initialisation has one step for all states, its annotation one for each.
                return replaced(
                    module,
                    Lambda=jax.lax.complex(ours.lambda_re, ours.lambda_im),
                    Delta=jnp.exp(ours.log_step),
                    W_in=jax.lax.complex(ours.b_re, ours.b_im),
                    W_out=2 * jax.lax.complex(ours.c_re, ours.c_im),
                    W_skip=jnp.diag(ours.d),
                )
            case "GatedRecurrentUnitCell":
                gru = Equinox().with_weights(module.cell.gru, ours)
                return eqx.tree_at(lambda m: m.cell.gru, module, gru)
            case "LongShortTermMemoryCell":
                new = {}
                for gate, recurrent, inputs, bias in zip(
                    "ifco", ours.recurrent, ours.input, ours.bias, strict=True
                ):
                    new |= {f"w_{gate}h": recurrent, f"w_{gate}i": inputs, f"b_{gate}": bias}
                return eqx.tree_at(lambda m: m.cell, module, replaced(module.cell, **new))
        cell = replaced(module.cell, w_hh=ours.recurrent, w_ih=ours.input, b=ours.bias)
        return eqx.tree_at(lambda m: m.cell, module, cell)

    def run(self, module, xs):
        return jax.vmap(module)(xs)


class Memax:
    """Its recurrences alone. They take a reset flag with each input, which is off here."""

    _cell = "takes reset flags; its input is padded with zeros to the number of units"
    differs = {
        "LRU": "takes reset flags, and computes the products of all decays too",
        "ElmanRNNCell": "takes reset flags",
        "LongShortTermMemoryCell": OtherEquation(
            f"another equation: no tanh of the cell state; {_cell}"
        ),
        "ChoGatedRecurrentUnitCell": _cell,
    }

    def make(self, kind, idim, hdim, key):
        from memax.equinox.semigroups.lru import LRU
        from memax.equinox.set_actions import elman, gru, lstm

        with unchecked():
            match kind:
                case "LRU":
                    return LRU(recurrent_size=hdim, hidden_size=idim, key=key)
                case "ElmanRNNCell":
                    return elman.Elman(recurrent_size=hdim, hidden_size=idim, key=key)
                case "LongShortTermMemoryCell":
                    return lstm.LSTM(recurrent_size=hdim, key=key)
            return gru.GRU(recurrent_size=hdim, key=key)

    def with_weights(self, module, ours):
        match type(ours).__name__:
            case "LRU":
                return replaced(module, **_minimal_lru(ours))
            case "ElmanRNNCell":
                new = module.algebra.algebra.U_h, module.W_h
                new = (
                    replaced(new[0], weight=ours.recurrent, bias=ours.bias),
                    replaced(new[1], weight=ours.input),
                )
                return eqx.tree_at(lambda m: (m.algebra.algebra.U_h, m.W_h), module, new)
            case "LongShortTermMemoryCell":
                gates, signs = "ifco", (1, 1, 1, 1)
            case _:
                # Its update gate says how much is new, ours how much is kept.
                gates, signs = "rzh", (1, -1, 1)
        step = module.algebra.algebra
        inputs = jnp.pad(ours.input, ((0, 0), (0, 0), (0, ours.hdim - ours.idim)))
        for i, (gate, sign) in enumerate(zip(gates, signs, strict=True)):
            w, u = getattr(step, f"W_{gate}"), getattr(step, f"U_{gate}")
            w = replaced(w, weight=sign * inputs[i], bias=sign * ours.bias[i])
            u = replaced(u, weight=sign * ours.recurrent[i])
            step = replaced(step, **{f"W_{gate}": w, f"U_{gate}": u})
        return eqx.tree_at(lambda m: m.algebra.algebra, module, step)

    def run(self, module, xs):
        name = type(module).__name__
        if name in ("LSTM", "GRU"):
            width = module.algebra.initialize_carry()[0]
            width = jax.tree.leaves(width)[0].shape[-1]
            xs = jnp.pad(xs, ((0, 0), (0, 0), (0, width - xs.shape[-1])))
        flags = jnp.zeros(xs.shape[1], bool)

        def row(x):
            (states, _), ys = module(module.initialize_carry(), (x, flags))
            # The readout of its Elman layer is not used, so the compiler removes it.
            return states if name == "Elman" else ys

        with unchecked():
            return jax.vmap(row)(xs)


LIBRARIES: dict[str, Library] = {
    OURS: Rnnscale(),
    "equinox": Equinox(),
    "flax": Flax(),
    "discretax": Discretax(),
    "rnn-jax": RnnJax(),
    "memax": Memax(),
}


@contextmanager
def unchecked() -> Iterator[None]:
    """Turns off jaxtyping's checks: the annotations of memax's LRU are right only if there are as
    many features as states."""
    from jaxtyping import config

    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


def replaced(module: Any, **new: Any) -> Any:
    """The module with new values in some fields. Arrays must keep their shapes."""
    for name, value in new.items():
        old = getattr(module, name)
        if eqx.is_array(old) and old.ndim and old.shape != value.shape:
            raise ValueError(f"{type(module).__name__}.{name} is {old.shape}, not {value.shape}")
    return eqx.tree_at(lambda m: [getattr(m, name) for name in new], module, list(new.values()))


def _minimal_lru(ours: Any) -> dict[str, jax.Array]:
    """The weights by the names that the LRUs of discretax and memax share."""
    return {
        "nu_log": ours.nu_log,
        "theta_log": ours.theta_log,
        "gamma_log": ours.gamma_log,
        "B_re": ours.b_re,
        "B_im": ours.b_im,
        "C_re": ours.c_re,
        "C_im": ours.c_im,
        "D": ours.d,
    }
