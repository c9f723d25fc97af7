"""The model of a run and what belongs to it, its loss and its constraint, from the options."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PRNGKeyArray

from rnnscale._base import SequenceLayer, SequenceModel, State
from rnnscale.cells import Cell, Newton
from rnnscale.layers import DeepRNN, Embedding, LayerNorm, RMSNorm, RNNEncoder
from rnnscale.models import FFN, GatedFFN, HalfGLU, Identity, LanguageModel, SequenceClassifier
from rnnscale.runs._config import TrainConfig
from rnnscale.runs._models import MODELS, BlockOption, CellEntry, LayerEntry, construct
from rnnscale.tasks import TaskSpec
from rnnscale.training import Totals, cross_entropy, in_chunks, indrnn_constraint, squared_error


def _swiglu(dim: int, *, key: PRNGKeyArray) -> GatedFFN:
    # With three matrices, as many parameters as two of 4 * dim features have.
    return GatedFFN(dim, hidden=-(-8 * dim // 3), use_bias=False, key=key)


def _squared_relu(x: Array) -> Array:
    return jnp.square(jax.nn.relu(x))


_PLAIN: Mapping[str, Any] = {"make_mixer": Identity, "make_norm": RMSNorm}
# What surrounds a layer, as arguments of a `Block`.
_BLOCKS: Mapping[BlockOption, Mapping[str, Any]] = {
    "half-glu": {"make_mixer": HalfGLU, "make_norm": LayerNorm},
    "plain": _PLAIN,
    "swiglu": {**_PLAIN, "make_ffn": _swiglu},
    "geglu": {**_PLAIN, "make_ffn": partial(GatedFFN, activation=jax.nn.gelu)},
    "relu2": {
        "make_mixer": Identity,
        "make_norm": LayerNorm,
        "make_ffn": partial(FFN, activation=_squared_relu),
    },
}


def make_model(config: TrainConfig, task: TaskSpec, key: PRNGKeyArray) -> SequenceModel:
    """The model of a run.

    Layers become a `SequenceClassifier` or, for tokens with a label at each step, a
    `LanguageModel`; so do cells that read tokens, are stacked with other layers, or for which a
    block is given. Other cells become a `DeepRNN`.
    """
    entry = MODELS[config.model]
    in_blocks = task.inputs == "tokens" or config.every is not None or config.block is not None
    if isinstance(entry, CellEntry) and not in_blocks:
        return _make_deep_rnn(config, task, entry, key)

    def maker(model: str, options: Mapping[str, Any]) -> Callable[[PRNGKeyArray], SequenceLayer]:
        entry = MODELS[model]

        def make_layer(key: PRNGKeyArray) -> SequenceLayer:
            if isinstance(entry, CellEntry):
                cell = _make_cell(config, task, entry, options, config.dim, 0, key)
                return RNNEncoder(cell, parallel=_newton(config))
            return make_sequence_layer(config, entry, options, key)

        return make_layer

    *pattern, last = config.models
    main = maker(config.model, config.cell or {})
    every = [*(main for _ in pattern), maker(last, config.every_cell or {})]
    shared = {
        "make_layer": main if config.every is None else every,
        "dim": config.dim,
        "depth": config.depth,
        "dropout": config.dropout,
        "remat": config.remat,
        "key": key,
        **_BLOCKS[config.block or entry.block],
    }
    if task.inputs == "tokens" and task.labels == "step" and task.idim == task.outputs:
        return LanguageModel(task.idim, dtype=config.dtype, **shared)
    if task.inputs == "tokens":
        shared |= {"make_encoder": Embedding, "dtype": config.dtype}
    pool = "mean" if task.labels == "sequence" else "none"
    chunk = _model_chunk(config, task)
    return SequenceClassifier(task.idim, task.outputs, pool=pool, chunk=chunk, **shared)


def make_sequence_layer(
    config: TrainConfig, entry: LayerEntry, options: Mapping[str, Any], key: PRNGKeyArray
) -> SequenceLayer:
    """One layer of the model, with the options of that layer."""
    return construct(entry, config.dim, config.state_dim, options=options, key=key)


def make_loss(config: TrainConfig, task: TaskSpec) -> Callable[..., tuple[State, Totals]]:
    """Cross-entropy for classes, squared error for real labels.

    A model computes in the dtype of its inputs. Where these are tokens, the model got its dtype
    when it was made.
    """
    total = squared_error if task.classes is None else cross_entropy

    def loss(
        model: Any,
        batch: Mapping[str, jax.Array],
        key: Key[Array, "*#batch"] | None,
        state: State | None = None,
    ) -> tuple[State, Totals]:
        inputs = batch["inputs"]
        if jnp.issubdtype(inputs.dtype, jnp.floating):
            inputs = inputs.astype(config.dtype)
        return total(model, {**batch, "inputs": inputs}, key, state)

    if config.chunk is None or task.labels == "sequence":
        return loss
    return in_chunks(loss, config.chunk)


def constrain(
    config: TrainConfig, task: TaskSpec, optimiser: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The optimiser, followed by the constraint on the parameters if the model has one."""
    limits = [_recurrent_limit(MODELS[model], task) for model in config.models]
    limit = next((limit for limit in limits if limit is not None), None)
    return optimiser if limit is None else optax.chain(optimiser, indrnn_constraint(limit))


def _make_deep_rnn(
    config: TrainConfig, task: TaskSpec, entry: CellEntry, key: PRNGKeyArray
) -> DeepRNN:
    *keys, readout_key = jax.random.split(key, config.depth + 1)
    stack: list[Cell] = []
    for level, cell_key in enumerate(keys):
        idim = stack[-1].odim if stack else task.idim
        options = config.cell or {}
        stack.append(_make_cell(config, task, entry, options, idim, level, cell_key))
    return DeepRNN(
        stack,
        task.outputs,
        dropout=config.dropout,
        remat=config.remat,
        chunk=_model_chunk(config, task),
        parallel=_newton(config),
        key=readout_key,
    )


def _make_cell(
    config: TrainConfig,
    task: TaskSpec,
    entry: CellEntry,
    options: Mapping[str, Any],
    idim: int,
    level: int,
    key: PRNGKeyArray,
) -> Cell:
    options = dict(options)
    limit = _recurrent_limit(entry, task)
    if limit is not None:
        # As its authors have it, the last layer starts with units that remember all of a sequence.
        last = level == config.depth - 1
        options.setdefault("recurrent_range", (1 / limit if last else 0.0, limit))
    return construct(entry, idim, config.dim, options=options, key=key)


def _recurrent_limit(entry: CellEntry | LayerEntry, task: TaskSpec) -> float | None:
    """The bound on the recurrent weights of a cell, if the run constrains them."""
    if not isinstance(entry, CellEntry) or entry.gain is None:
        return None
    return entry.gain ** (1 / task.seq_len)


def _newton(config: TrainConfig) -> Newton | Literal["auto"] | None:
    """How the encoders of a cell compute their steps."""
    match config.parallel:
        case "none":
            return None
        case "auto":
            return "auto"
        case jacobian:
            return Newton(jacobian=jacobian)


def _model_chunk(config: TrainConfig, task: TaskSpec) -> int | None:
    """The chunk for the model itself. Where there is a label at each step, the loss is cut into
    chunks instead."""
    return config.chunk if task.labels == "sequence" else None
