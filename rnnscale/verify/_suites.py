"""All checks of each class: what `rnnscale verify` and the test suite run."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from rnnscale._base import has_step
from rnnscale.layers import RecurrentNetwork, RNNEncoder
from rnnscale.ssm import LRU, S4D, S5, BidirectionalS5, DampedLinOSS, LinOSS
from rnnscale.verify import (
    _causal_conv,
    _delta_rule,
    _gla,
    _griffin,
    _laws,
    _linear_attention,
    _linoss,
    _local_attention,
    _lru,
    _mamba,
    _mamba2,
    _mlstm,
    _modular,
    _networks,
    _reservoir,
    _rwkv7,
    _s4d,
    _s5,
    _slstm,
    _ssm,
)
from rnnscale.verify._check import Check
from rnnscale.verify._probe import build
from rnnscale.verify._subject import TIME, CellSubject, cell_matches_oracle
from rnnscale.verify._subjects import CELLS, LAYERS, MODELS, NETWORKS, Builder, sample_inputs

type Invariants = Callable[[Any, PRNGKeyArray], Iterable[Check]]
"""What a class promises in addition to the laws: checks from an instance and a key."""

_BATCH, _CUT = 4, TIME // 2
_LENGTHS = [TIME, _CUT, 0, _CUT]


@dataclass(frozen=True)
class Suite:
    """The checks of one class.

    **Attributes:**

    - `name`: the name of the class, followed by its variant if it has several.
    - `paper`: authors and year; empty for a class that comes from no paper.
    - `run`: returns the checks one after another, from a key.
    """

    name: str
    paper: str
    run: Callable[[PRNGKeyArray], Iterable[Check]]


def laws(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    """The laws of sequence models that apply to a layer or a model of any kind."""
    xs = sample_inputs(layer, (_BATCH, TIME), key)
    _, ys = eqx.filter_eval_shape(layer, xs)
    tokens = jnp.issubdtype(xs.dtype, jnp.integer)
    per_step = ys.ndim == (3 if not tokens else xs.ndim + 1)
    if has_step(layer):
        yield _laws.step_equals_call(layer, xs)
    if layer.causal and per_step:
        yield _laws.chunks_equal_one_call(layer, xs, _CUT)
    if per_step:
        yield _laws.reset_equals_fresh(layer, xs, _CUT)
    yield _laws.padding_is_inert(layer, xs, _LENGTHS)
    yield _laws.padding_spares_gradient(layer, xs, _LENGTHS)
    yield _laws.gradient_reaches_parameters(layer, xs)
    yield _laws.state_is_stable(layer, xs)
    yield _laws.batching_agrees(layer, xs)
    if not tokens:
        yield _laws.bfloat16_keeps_dtypes(layer, xs)


def cell_laws(subject: CellSubject, key: PRNGKeyArray) -> Iterator[Check]:
    """The invariants of a cell, and the laws for the cell over time."""
    yield from subject.invariants(key)
    yield from laws(RNNEncoder(build(subject.build, key)), key)


def _cell(subject: CellSubject, key: PRNGKeyArray) -> Iterator[Check]:
    yield from cell_matches_oracle(subject, key)
    yield from cell_laws(subject, key)


def _layer(make: Builder, invariants: Invariants, key: PRNGKeyArray) -> Iterator[Check]:
    layer = build(make, key)
    yield from invariants(layer, key)
    yield from laws(layer, key)


def _network(
    make: Callable[[PRNGKeyArray], RecurrentNetwork], key: PRNGKeyArray
) -> Iterator[Check]:
    yield _networks.reads_last_states(build(make, key), key)


def _lru_invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    yield from _ssm.ssm_matches_oracle(build(lambda key: LRU(3, 7, key=key), key), key)
    yield _ssm.decay_below_one(layer)
    yield from _lru.invariants(key)


def _s4d_invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    yield from _ssm.ssm_matches_oracle(build(lambda key: S4D(3, 8, init="inv", key=key), key), key)
    yield _ssm.decay_below_one(layer)
    yield from _s4d.invariants(key)


def _s5_invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    yield from _ssm.ssm_matches_oracle(build(lambda key: S5(3, 12, key=key), key), key)
    yield _ssm.decay_below_one(layer)
    yield from _s5.zoh_invariants(key)


def _bilinear_s5_invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    small = build(lambda key: S5(3, 12, discretisation="bilinear", step_rescale=0.5, key=key), key)
    yield from _ssm.ssm_matches_oracle(small, key)
    yield _ssm.decay_below_one(layer)
    yield from _s5.bilinear_invariants(key)


def _bidirectional_s5_invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    small = build(lambda key: BidirectionalS5(3, 12, blocks=2, key=key), key)
    yield from _ssm.ssm_matches_oracle(small, key)
    yield from _s5.bidirectional_invariants(key)


def _linoss_invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    imex = build(lambda key: LinOSS(3, 7, discretisation="imex", key=key), key)
    yield from _ssm.ssm_matches_oracle(imex, key)
    yield from _linoss.invariants(imex, key)
    yield from _ssm.ssm_matches_oracle(build(lambda key: LinOSS(3, 7, key=key), key), key)
    yield from _linoss.invariants(layer, key)
    yield from _linoss.linoss_invariants(key)


def _damped_linoss_invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    yield from _ssm.ssm_matches_oracle(build(lambda key: DampedLinOSS(3, 7, key=key), key), key)
    yield from _linoss.invariants(layer, key)
    yield from _linoss.damped_invariants(key)


# By name: the paper, and what the class promises in addition to the laws.
_PROMISES: dict[str, tuple[str, Invariants]] = {
    "LRU": ("Orvieto et al. 2023", _lru_invariants),
    "S4D": ("Gu et al. 2022", _s4d_invariants),
    "S5": ("Smith et al. 2023", _s5_invariants),
    "S5 bilinear": ("Smith et al. 2023", _bilinear_s5_invariants),
    "LinOSS": ("Rusch, Rus 2025", _linoss_invariants),
    "DampedLinOSS": ("Boyer, Rusch, Rus 2025", _damped_linoss_invariants),
    "Mamba": ("Gu, Dao 2023", _mamba.invariants),
    "Mamba2": ("Dao, Gu 2024", _mamba2.invariants),
    "BidirectionalS5": ("Smith et al. 2023", _bidirectional_s5_invariants),
    "BidirectionalRNNEncoder": ("Schuster, Paliwal 1997", _networks.directions_change_places),
    "AutoregressiveRNN": ("", _networks.autoregressive_invariants),
    "LinearAttention": ("Katharopoulos et al. 2020", _linear_attention.invariants),
    "DeltaNet": ("Yang et al. 2024", _delta_rule.deltanet_invariants),
    "GatedDeltaNet": ("Yang et al. 2025", _delta_rule.gated_deltanet_invariants),
    "DeltaProduct": ("Siems et al. 2025", _delta_rule.deltaproduct_invariants),
    "GatedLinearAttention": ("Yang et al. 2024", _gla.invariants),
    "MLSTM": ("Beck et al. 2024, 2025", _mlstm.invariants),
    "RWKV7": ("Peng et al. 2025", _rwkv7.invariants),
    "LocalAttention": ("Beltagy et al. 2020", _local_attention.invariants),
    "UpProjectedMLSTM": ("Beck et al. 2024", _mlstm.up_projected_invariants),
    "SLSTM": ("Beck et al. 2024", _slstm.layer_invariants),
    "CausalConv": ("", _causal_conv.invariants),
    "GriffinRecurrence": ("De et al. 2024", _griffin.invariants),
    "ModularRNN": ("", _modular.invariants),
    "ReservoirComputer": ("Jaeger 2001", _reservoir.invariants),
}


def _layer_suite(name: str, make: Builder) -> Suite:
    paper, invariants = _PROMISES.get(name, ("", lambda layer, key: ()))
    return Suite(name, paper, partial(_layer, make, invariants))


SUITES: list[Suite] = [
    *(Suite(subject.name, subject.paper, partial(_cell, subject)) for subject in CELLS),
    *(_layer_suite(name, make) for name, make in [*LAYERS, *MODELS]),
    *(Suite(name, "", partial(_network, make)) for name, make in NETWORKS),
]
