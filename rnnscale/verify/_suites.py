"""All checks of each class: what `rnnscale verify` and the test suite run."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.layers import AutoregressiveRNN, RecurrentNetwork, RNNEncoder
from rnnscale.ssm import LRU, S5, BidirectionalS5
from rnnscale.verify import _laws, _linear_cells, _modular, _networks, _reservoir, _ssm
from rnnscale.verify._causal_conv import causal_conv_matches_oracle
from rnnscale.verify._cells import (
    CellSubject,
    cell_gradient_matches_oracle,
    cell_matches_oracle,
)
from rnnscale.verify._check import Check
from rnnscale.verify._subjects import (
    CELLS,
    LAYERS,
    MODELS,
    NETWORKS,
    Builder,
    sample_inputs,
)

type Checks = Callable[[PRNGKeyArray], Iterable[Check]]

_BATCH, _TIME, _CUT = 4, 10, 5
_LENGTHS = [10, 5, 0, 5]


@dataclass(frozen=True)
class Suite:
    """The checks of one class.

    **Attributes:**

    - `name`: that of the class, with its variant.
    - `paper`: authors and year; empty where it comes from no paper.
    - `run`: the checks one after another, from a key.
    """

    name: str
    paper: str
    run: Checks


def laws(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    """The laws of sequence layers, as far as they apply: to layers and models of any kind."""
    xs = sample_inputs(layer, (_BATCH, _TIME), key)
    _, ys = eqx.filter_eval_shape(layer, xs)
    tokens = jnp.issubdtype(xs.dtype, jnp.integer)
    per_step = ys.ndim == (3 if not tokens else xs.ndim + 1)
    causal = _laws.is_causal(layer)
    if causal and hasattr(layer, "step"):
        yield _laws.step_equals_call(layer, xs)
    if causal and per_step:
        yield _laws.cut_equals_whole(layer, xs, _CUT)
    if per_step:
        yield _laws.reset_equals_fresh(layer, xs, _CUT)
    yield _laws.padding_is_inert(layer, xs, _LENGTHS)
    yield _laws.padding_spares_gradient(layer, xs, _LENGTHS)
    yield _laws.gradient_reaches_parameters(layer, xs)
    yield _laws.state_is_stable(layer, xs)
    yield _laws.batching_agrees(layer, xs)
    if not tokens:
        yield _laws.bfloat16_keeps_dtypes(layer, xs)


def _cell(subject: CellSubject, key: PRNGKeyArray) -> Iterator[Check]:
    yield from cell_matches_oracle(subject, key)
    yield cell_gradient_matches_oracle(subject, key)
    yield from subject.invariants(key)
    yield from laws(RNNEncoder(_built(subject.build, key)), key)


def _layer(build: Builder, invariants: Checks, key: PRNGKeyArray) -> Iterator[Check]:
    yield from invariants(key)
    yield from laws(_built(build, key), key)


def _network(
    build: Callable[[PRNGKeyArray], RecurrentNetwork], key: PRNGKeyArray
) -> Iterator[Check]:
    yield _networks.reads_last_states(_built(build, key), key)


def _built(build: Callable[[PRNGKeyArray], Any], key: PRNGKeyArray) -> Any:
    # Drawing parameters is the largest program of all, and its speed is no matter.
    return jax.jit(build, compiler_options={"xla_backend_optimization_level": 0})(key)


def _oracle(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    """An SSM against its oracle: with resets, and in double precision with its gradient."""
    xs = jax.random.normal(key, (151, layer.idim), jnp.float32)
    reset = np.zeros(151, bool)
    reset[[5, 6, 70]] = True
    yield _ssm.matches_oracle(layer, xs, reset)
    with jax.enable_x64(True):
        layer = jax.tree.map(lambda x: np.asarray(x, np.float64), layer)
        xs = jax.random.normal(key, (37, layer.idim), jnp.float64)
        yield _ssm.matches_oracle(layer, xs, bound=1e-10)
        yield _ssm.gradient_matches_oracle(layer, xs, key)


def _lru(key: PRNGKeyArray) -> Iterator[Check]:
    yield from _oracle(LRU(3, 7, key=key), key)
    yield _ssm.decay_below_one(LRU(1, 2, key=key))
    yield from _ssm.ring_is_uniform(key)
    yield _ssm.white_noise_power(key)


def _s5(key: PRNGKeyArray) -> Iterator[Check]:
    yield from _oracle(S5(3, 12, key=key), key)
    yield _ssm.decay_below_one(S5(1, 2, key=key))
    yield from _ssm.hippo_diagonalised()
    yield _ssm.hippo_decay_rate(key)
    yield _ssm.s5_kernel_is_hippo(key)
    yield _ssm.step_rescale_follows_rate(key)


def _bilinear_s5(key: PRNGKeyArray) -> Iterator[Check]:
    yield from _oracle(S5(3, 12, discretisation="bilinear", step_rescale=0.5, key=key), key)
    yield _ssm.decay_below_one(S5(1, 2, discretisation="bilinear", key=key))
    yield _ssm.bilinear_approaches_zoh(key)


def _bidirectional_s5(key: PRNGKeyArray) -> Iterator[Check]:
    layer = BidirectionalS5(3, 12, blocks=2, key=key)
    yield from _oracle(layer, key)
    mirrored = eqx.tree_at(
        lambda m: (m.forward.c_re, m.forward.c_im, m.c_backward_re, m.c_backward_im),
        layer,
        (layer.c_backward_re, layer.c_backward_im, layer.forward.c_re, layer.forward.c_im),
    )
    yield _laws.flip_law(layer, mirrored, jax.random.normal(key, (2, 9, 3), jnp.float32))


def _bidirectional_encoder(key: PRNGKeyArray) -> Iterator[Check]:
    build = dict(LAYERS)["BidirectionalRNNEncoder"]
    yield _networks.directions_change_places(_built(build, key), key)


def _autoregressive(key: PRNGKeyArray) -> Iterator[Check]:
    model: AutoregressiveRNN = _built(dict(MODELS)["AutoregressiveRNN"], key)
    yield from _networks.forecasts_its_own_output(model, key)
    yield from _networks.temperature_shapes_tokens(model, key)


def _linear_attention(key: PRNGKeyArray) -> Iterator[Check]:
    layer = _built(dict(LAYERS)["LinearAttention"], key)
    xs = jax.random.normal(key, (150, layer.idim), jnp.float32)
    reset = np.zeros(150, bool)
    reset[[10, 64, 65, 140]] = True
    yield _linear_cells.linear_attention_matches_oracle(layer, xs, reset)
    with jax.enable_x64(True):
        layer = jax.tree.map(lambda x: x.astype(jnp.float64), layer)
        xs = xs.astype(jnp.float64)
        yield _linear_cells.linear_attention_matches_oracle(layer, xs, reset, bound=1e-10)


def _causal_conv(key: PRNGKeyArray) -> Iterator[Check]:
    layer = _built(dict(LAYERS)["CausalConv"], key)
    layer = eqx.tree_at(lambda conv: conv.bias, layer, jnp.arange(1.0, 1.0 + layer.idim))
    xs = jax.random.normal(key, (30, layer.idim), jnp.float32)
    reset = np.zeros(30, bool)
    reset[[0, 4, 5, 29]] = True
    yield causal_conv_matches_oracle(layer, xs, reset)


def _modular_rnn(key: PRNGKeyArray) -> Iterator[Check]:
    network = _built(dict(LAYERS)["ModularRNN"], key).cell
    xs = jax.random.normal(key, (9, network.idim), jnp.float32)
    yield _modular.modular_matches_oracle(network, xs, network.init_state())
    with jax.enable_x64(True):
        network, xs, state = jax.tree.map(
            lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x,
            (network, xs, network.init_state()),
        )
        yield _modular.modular_matches_oracle(network, xs, state, bound=1e-10)


def _reservoir_computer(key: PRNGKeyArray) -> Iterator[Check]:
    yield from _reservoir.radius_is_as_asked(key)
    yield from _reservoir.radius_matches_eigenvalues(key)
    yield from _reservoir.batches_equal_whole(key)
    yield _reservoir.forgets_its_start(key)


_PAPERS: dict[str, str] = {
    "LRU": "Orvieto et al. 2023",
    "S5": "Smith et al. 2023",
    "S5 bilinear": "Smith et al. 2023",
    "BidirectionalS5": "Smith et al. 2023",
    "BidirectionalRNNEncoder": "Schuster, Paliwal 1997",
    "LinearAttention": "Katharopoulos et al. 2020",
    "ReservoirComputer": "Jaeger 2001",
}

_INVARIANTS: dict[str, Checks] = {
    "LRU": _lru,
    "S5": _s5,
    "S5 bilinear": _bilinear_s5,
    "BidirectionalS5": _bidirectional_s5,
    "BidirectionalRNNEncoder": _bidirectional_encoder,
    "AutoregressiveRNN": _autoregressive,
    "LinearAttention": _linear_attention,
    "CausalConv": _causal_conv,
    "ModularRNN": _modular_rnn,
    "ReservoirComputer": _reservoir_computer,
}

SUITES: list[Suite] = [
    *(Suite(subject.name, subject.paper, partial(_cell, subject)) for subject in CELLS),
    *(
        Suite(
            name,
            _PAPERS.get(name, ""),
            partial(_layer, build, _INVARIANTS.get(name, lambda key: ())),
        )
        for name, build in [*LAYERS, *MODELS]
    ),
    *(Suite(name, "", partial(_network, build)) for name, build in NETWORKS),
]
