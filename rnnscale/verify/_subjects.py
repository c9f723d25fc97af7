"""All classes that are checked: small instances of every cell, layer, model and network.

A new class needs an entry here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from rnnscale._base import CausalLayer, SequenceLayer
from rnnscale.attention import (
    DeltaNet,
    DeltaProduct,
    GatedDeltaNet,
    LinearAttention,
    LocalAttention,
)
from rnnscale.cells import (
    ElmanRNNCell,
    GatedRecurrentUnitCell,
    LeakyElmanCell,
    LongShortTermMemoryCell,
    MinGRUCell,
    UnitaryEvolutionRNNCell,
)
from rnnscale.layers import (
    RNN,
    AutoregressiveRNN,
    BidirectionalRNN,
    BidirectionalRNNEncoder,
    CausalConv,
    DeepBidirectionalRNN,
    DeepRNN,
    DeepRNNEncoder,
    DenseMessages,
    Embedding,
    GriffinRecurrence,
    ModularRNN,
    RecurrentNetwork,
    ReservoirComputer,
    RMSNorm,
    RNNEncoder,
    StackedModules,
)
from rnnscale.models import (
    FFN,
    GLU,
    Block,
    BlockStack,
    GatedFFN,
    LanguageModel,
    SequenceClassifier,
)
from rnnscale.ssm import LRU, S4D, S5, BidirectionalS5, DampedLinOSS, LinOSS, Mamba, Mamba2
from rnnscale.verify import (
    _antisymmetric,
    _clockwork,
    _cornn,
    _elman,
    _exprnn,
    _gla,
    _gru,
    _indrnn,
    _leaky_elman,
    _lipschitz,
    _lrcssm,
    _lstm,
    _mgu,
    _minimal,
    _mlstm,
    _nnrnn,
    _pararnn,
    _rglru,
    _ron,
    _rwkv7,
    _slstm,
    _unicornn,
    _unitary,
    _wilson_cowan,
)
from rnnscale.verify._subject import CellSubject

type Builder = Callable[[PRNGKeyArray], eqx.Module]

# Sizes that differ from one another, so that a wrong axis shows.
_DIM, _STATES = 5, 12


def _lru(key: PRNGKeyArray) -> CausalLayer:
    return LRU(_DIM, 7, r_min=0.3, r_max=0.99, key=key)


def _s4d(key: PRNGKeyArray) -> CausalLayer:
    return S4D(_DIM, 6, key=key)


def _s5(key: PRNGKeyArray) -> CausalLayer:
    return S5(_DIM, _STATES, key=key)


def _bidirectional_s5(key: PRNGKeyArray) -> SequenceLayer:
    return BidirectionalS5(_DIM, _STATES, blocks=2, key=key)


def _gated(key: PRNGKeyArray) -> CausalLayer:
    return RNNEncoder(GatedRecurrentUnitCell(_DIM, _DIM, key=key))


def _local_attention(key: PRNGKeyArray) -> CausalLayer:
    return LocalAttention(_DIM, 4, 7, kv_heads=2, key_dim=8, rotary=0.5, key=key)


def _mixed(key: PRNGKeyArray) -> DeepRNNEncoder:
    """Three kinds of cells: one with a planar state, one with a pair, and one that is linear."""
    return DeepRNNEncoder(
        [
            RNNEncoder(UnitaryEvolutionRNNCell(3, 4, key=key)),
            RNNEncoder(LongShortTermMemoryCell(8, _DIM, key=key), remat=True),
            RNNEncoder(MinGRUCell(_DIM, 7, key=key)),
        ]
    )


def _both_ways(key: PRNGKeyArray) -> BidirectionalRNNEncoder:
    return BidirectionalRNNEncoder(
        LongShortTermMemoryCell(3, 4, key=key), MinGRUCell(3, _DIM, key=key)
    )


def _modular(key: PRNGKeyArray) -> RNNEncoder:
    """Two kinds of modules: two that send to one another, and a third that receives from both."""
    message = 4
    network = ModularRNN(
        [
            StackedModules([ElmanRNNCell(2 + message, _DIM, key=key) for _ in range(2)]),
            StackedModules([LongShortTermMemoryCell(message, 6, key=key)]),
        ],
        DenseMessages(
            [[0, 1, 0], [1, 0, 0], [1, 1, 0]], 6, message, aggregation="attention", key=key
        ),
    )
    return RNNEncoder(network)


CELLS: list[CellSubject] = [
    subject
    for paper in (
        _elman,
        _leaky_elman,
        _wilson_cowan,
        _indrnn,
        _lstm,
        _gru,
        _mgu,
        _antisymmetric,
        _clockwork,
        _lipschitz,
        _unitary,
        _exprnn,
        _nnrnn,
        _cornn,
        _ron,
        _unicornn,
        _pararnn,
        _lrcssm,
        _minimal,
        _rglru,
        _slstm,
    )
    for subject in paper.SUBJECTS
]

CAUSAL_LAYERS: list[tuple[str, Builder]] = [
    ("LRU", _lru),
    ("S4D", _s4d),
    ("S5", _s5),
    (
        "S5 bilinear",
        lambda key: S5(
            3, _STATES, 4, blocks=3, discretisation="bilinear", c_init="complex_normal", key=key
        ),
    ),
    ("LinOSS", lambda key: LinOSS(_DIM, 7, key=key)),
    (
        "DampedLinOSS",
        lambda key: DampedLinOSS(
            _DIM, 7, 4, r_min=0.5, r_max=0.99, theta_min=0.3, theta_max=2.8, key=key
        ),
    ),
    ("Mamba", lambda key: Mamba(_DIM, 3, 7, dt_rank=2, use_bias=True, key=key)),
    (
        "Mamba2",
        lambda key: Mamba2(6, 5, 7, head_dim=3, groups=2, conv_width=3, key=key),
    ),
    (
        "RNNEncoder remat",
        lambda key: RNNEncoder(GatedRecurrentUnitCell(3, _DIM, key=key), remat=True),
    ),
    (
        "RNNEncoder parallel",
        lambda key: RNNEncoder(GatedRecurrentUnitCell(3, _DIM, key=key), parallel="auto"),
    ),
    ("DeepRNNEncoder", _mixed),
    ("ModularRNN", _modular),
    (
        "ReservoirComputer",
        lambda key: ReservoirComputer(LeakyElmanCell(3, 9, key=key), odim=2, key=key),
    ),
    (
        "LinearAttention",
        lambda key: LinearAttention(_DIM, 2, 6, key_dim=3, value_dim=4, key=key),
    ),
    (
        "DeltaNet",
        lambda key: DeltaNet(_DIM, 2, 6, key_dim=3, value_dim=4, key=key),
    ),
    (
        "GatedDeltaNet",
        lambda key: GatedDeltaNet(_DIM, 2, 6, key_dim=3, value_dim=4, key=key),
    ),
    (
        "DeltaProduct",
        lambda key: DeltaProduct(
            _DIM, 2, 6, key_dim=3, value_dim=4, conv_width=None, gate=True, decay=True, key=key
        ),
    ),
    ("GatedLinearAttention", _gla.build),
    ("MLSTM", _mlstm.build),
    ("UpProjectedMLSTM", _mlstm.build_up_projected),
    ("SLSTM", _slstm.build_layer),
    ("RWKV7", _rwkv7.awake),
    ("LocalAttention", _local_attention),
    ("CausalConv", lambda key: CausalConv(_DIM, 3, key=key)),
    ("GriffinRecurrence", lambda key: GriffinRecurrence(_DIM, 6, 4, blocks=2, key=key)),
    (
        "Block",
        lambda key: Block(_s5(key), make_mixer=partial(FFN, hidden=9), dropout=0.25, key=key),
    ),
    (
        "BlockStack",
        lambda key: BlockStack(
            _lru,
            3,
            make_mixer=GLU,
            make_ffn=partial(GatedFFN, hidden=9),
            make_norm=RMSNorm,
            remat=True,
            key=key,
        ),
    ),
    (
        "BlockStack pattern",
        lambda key: BlockStack([_gated, _local_attention], 3, dropout=0.25, key=key),
    ),
]

LAYERS: list[tuple[str, Builder]] = [
    *CAUSAL_LAYERS,
    ("BidirectionalS5", _bidirectional_s5),
    ("BidirectionalRNNEncoder", _both_ways),
    (
        "DeepRNNEncoder bidirectional",
        lambda key: DeepRNNEncoder([_both_ways(key), RNNEncoder(ElmanRNNCell(9, 2, key=key))]),
    ),
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
        "SequenceClassifier tokens",
        lambda key: SequenceClassifier(
            11, 4, make_layer=_lru, make_encoder=Embedding, dim=_DIM, depth=1, key=key
        ),
    ),
    (
        "LanguageModel",
        lambda key: LanguageModel(11, make_layer=_lru, dim=_DIM, depth=2, dropout=0.25, key=key),
    ),
    (
        "LanguageModel tied",
        lambda key: LanguageModel(
            11,
            make_layer=_lru,
            make_head=None,
            embedding_scale=2.0,
            logit_cap=3.0,
            dim=_DIM,
            depth=1,
            key=key,
        ),
    ),
    ("AutoregressiveRNN", lambda key: AutoregressiveRNN(_mixed(key), key=key)),
]

NETWORKS: list[tuple[str, Callable[[PRNGKeyArray], RecurrentNetwork]]] = [
    ("RNN", lambda key: RNN(LongShortTermMemoryCell(3, _DIM, key=key), 2, key=key)),
    (
        "BidirectionalRNN",
        lambda key: BidirectionalRNN(
            ElmanRNNCell(3, 4, key=key), LongShortTermMemoryCell(3, _DIM, key=key), 2, key=key
        ),
    ),
    (
        "DeepRNN",
        lambda key: DeepRNN(
            [LongShortTermMemoryCell(3, _DIM, key=key), UnitaryEvolutionRNNCell(_DIM, 4, key=key)],
            2,
            key=key,
        ),
    ),
    (
        "DeepBidirectionalRNN",
        lambda key: DeepBidirectionalRNN(
            [
                (ElmanRNNCell(3, 4, key=key), MinGRUCell(3, _DIM, key=key)),
                (LongShortTermMemoryCell(9, _DIM, key=key), ElmanRNNCell(9, 4, key=key)),
            ],
            2,
            key=key,
        ),
    ),
]


def sample_inputs(layer: Any, axes: tuple[int, ...], key: PRNGKeyArray) -> Array:
    """Returns random inputs of `layer` with the axes `*batch time`: features, or tokens."""
    if isinstance(layer, LanguageModel):
        return jax.random.randint(key, axes, 0, layer.vocab)
    if isinstance(layer, SequenceClassifier) and isinstance(layer.encoder, Embedding):
        return jax.random.randint(key, axes, 0, layer.idim)
    return jax.random.normal(key, (*axes, layer.idim), jnp.float32)
