"""The layers and models that the laws are checked on. A new class needs an entry here."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from rnnscale._base import CausalLayer, SequenceLayer
from rnnscale.layers import RMSNorm
from rnnscale.models import (
    FFN,
    GLU,
    Block,
    BlockStack,
    LanguageModel,
    SequenceClassifier,
)
from rnnscale.ssm import LRU, S5, BidirectionalS5

type Builder = Callable[[PRNGKeyArray], eqx.Module]

# Odd sizes, and no two equal, so that an axis taken for another one shows.
_DIM, _STATES = 5, 12


def _lru(key: PRNGKeyArray) -> CausalLayer:
    return LRU(_DIM, 7, r_min=0.3, r_max=0.99, key=key)


def _s5(key: PRNGKeyArray) -> CausalLayer:
    return S5(_DIM, _STATES, key=key)


def _bidirectional_s5(key: PRNGKeyArray) -> SequenceLayer:
    return BidirectionalS5(_DIM, _STATES, blocks=2, key=key)


CAUSAL_LAYERS: list[tuple[str, Builder]] = [
    ("LRU", _lru),
    ("S5", _s5),
    (
        "S5 bilinear",
        lambda key: S5(
            3, _STATES, 4, blocks=3, discretisation="bilinear", c_init="complex_normal", key=key
        ),
    ),
    (
        "Block",
        lambda key: Block(_s5(key), make_mixer=partial(FFN, hidden=9), dropout=0.25, key=key),
    ),
    (
        "BlockStack",
        lambda key: BlockStack(_lru, 3, make_mixer=GLU, make_norm=RMSNorm, remat=True, key=key),
    ),
]

LAYERS: list[tuple[str, Builder]] = [
    *CAUSAL_LAYERS,
    ("BidirectionalS5", _bidirectional_s5),
    ("BlockStack bidirectional", lambda key: BlockStack(_bidirectional_s5, 2, key=key)),
]

MODELS: list[tuple[str, Builder]] = [
    (
        "SequenceClassifier mean",
        lambda key: SequenceClassifier(3, 4, make_layer=_s5, dim=_DIM, depth=2, key=key),
    ),
    (
        "SequenceClassifier last",
        lambda key: SequenceClassifier(
            3, 4, make_layer=_lru, dim=_DIM, depth=2, pool="last", key=key
        ),
    ),
    (
        "SequenceClassifier none",
        lambda key: SequenceClassifier(
            3, 4, make_layer=_lru, dim=_DIM, depth=2, pool="none", key=key
        ),
    ),
    (
        "LanguageModel",
        lambda key: LanguageModel(11, make_layer=_lru, dim=_DIM, depth=2, dropout=0.25, key=key),
    ),
]


def sample_inputs(layer: Any, axes: tuple[int, ...], key: PRNGKeyArray) -> Array:
    """Random inputs of `layer` with the axes `*batch time`: tokens for a language model."""
    if isinstance(layer, LanguageModel):
        return jax.random.randint(key, axes, 0, layer.vocab)
    return jax.random.normal(key, (*axes, layer.idim), jnp.float32)
