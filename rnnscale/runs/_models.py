"""The models that a run knows by name, and what goes with each: its loss, its constraint."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PRNGKeyArray

from rnnscale import cells
from rnnscale._base import SequenceLayer, State
from rnnscale._errors import UserError
from rnnscale.cells import Cell
from rnnscale.layers import DeepRNN, Embedding, RNNEncoder
from rnnscale.models import LanguageModel, SequenceClassifier
from rnnscale.runs._config import TrainConfig
from rnnscale.ssm import LRU, S5, BidirectionalS5, LinearAttention
from rnnscale.tasks import Task
from rnnscale.training import Totals, cross_entropy, in_chunks, indrnn_constraint, squared_error


def _rglru(dim: int, *, blocks: int = 1, key: PRNGKeyArray) -> SequenceLayer:
    return RNNEncoder(cells.RGLRUCell(dim, blocks=blocks, key=key))


def _linear_attention(
    dim: int, state_dim: int, *, heads: int = 4, key: PRNGKeyArray
) -> SequenceLayer:
    if dim % heads or state_dim % heads:
        raise UserError(
            f"linear-attention: heads={heads} must divide dim={dim} and state_dim={state_dim}"
        )
    return LinearAttention(dim, heads, key_dim=state_dim // heads, key=key)


# Of a width and a number of states; RG-LRU has as many states as it is wide.
_LAYERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "s5": S5,
        "s5-bidirectional": BidirectionalS5,
        "lru": LRU,
        "rglru": _rglru,
        "linear-attention": _linear_attention,
    }
)

_CELLS: Mapping[str, Callable[..., Cell]] = MappingProxyType(
    {
        "elman": cells.ElmanRNNCell,
        "leaky-elman": cells.LeakyElmanCell,
        "wilson-cowan": cells.WilsonCowanCell,
        "indrnn": cells.IndRNNCell,
        "lstm": cells.LongShortTermMemoryCell,
        "gru": cells.GatedRecurrentUnitCell,
        "gru-cho": cells.ChoGatedRecurrentUnitCell,
        "antisymmetric": cells.AntiSymmetricRNNCell,
        "antisymmetric-gated": cells.GatedAntiSymmetricRNNCell,
        "clockwork": cells.ClockWorkRNNCell,
        "lipschitz": cells.LipschitzRNNCell,
        "lipschitz-gated": cells.GatedLipschitzRNNCell,
        "urnn": cells.UnitaryEvolutionRNNCell,
        "cornn": cells.CoupledOscillatoryRNNCell,
        "exprnn": cells.ExpRNNCell,
        "nnrnn": cells.NonNormalRNNCell,
        "mingru": cells.MinGRUCell,
        "minlstm": cells.MinLSTMCell,
        "ron": cells.RandomOscillatorsCell,
    }
)

# Over a whole sequence no state of an IndRNN grows by more, as its authors have it.
_INDRNN_GAIN = 2.0


def make_model(config: TrainConfig, task: Task, key: PRNGKeyArray) -> eqx.Module:
    """The model of a run.

    Layers such as S5 are those of a `SequenceClassifier` or, for tokens with a label at each step,
    of a `LanguageModel`; so are cells for tokens. For features, cells make a `DeepRNN`.
    """
    if config.model in _CELLS and task.inputs == "features":
        keys = jax.random.split(key, config.depth + 1)
        stack: list[Cell] = []
        for level in range(config.depth):
            idim = stack[-1].odim if stack else task.idim
            stack.append(_make_cell(config, task, idim, level, keys[level]))
        return DeepRNN(
            stack,
            _outputs(task),
            remat=config.remat,
            chunk=_of_the_model(config, task),
            key=keys[-1],
        )

    def make_layer(key: PRNGKeyArray) -> SequenceLayer:
        if config.model in _CELLS:
            return RNNEncoder(_make_cell(config, task, config.dim, 0, key))
        sizes = (config.dim,) if config.model == "rglru" else (config.dim, config.state_dim)
        make = _configured(config.model, _LAYERS[config.model], config.cell or {})
        return make(*sizes, key=key)

    shared = {
        "make_layer": make_layer,
        "dim": config.dim,
        "depth": config.depth,
        "dropout": config.dropout,
        "remat": config.remat,
        "key": key,
    }
    if task.inputs == "tokens" and task.labels == "step" and task.idim == _outputs(task):
        return LanguageModel(task.idim, dtype=config.dtype, **shared)
    if task.inputs == "tokens":
        shared |= {"make_encoder": Embedding, "dtype": config.dtype}
    pool = "mean" if task.labels == "sequence" else "none"
    chunk = _of_the_model(config, task)
    return SequenceClassifier(task.idim, _outputs(task), pool=pool, chunk=chunk, **shared)


def make_loss(config: TrainConfig, task: Task) -> Callable[..., tuple[State, Totals]]:
    """Cross-entropy for classes, squared error for real labels.

    A model computes in the dtype of its inputs; one of tokens was told when it was made.
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
    config: TrainConfig, task: Task, optimiser: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The optimiser, and behind it what keeps the parameters of the model where they may be."""
    if config.model != "indrnn":
        return optimiser
    return optax.chain(optimiser, indrnn_constraint(_INDRNN_GAIN ** (1 / task.seq_len)))


def _of_the_model(config: TrainConfig, task: Task) -> int | None:
    """The chunk that the model is given: for labels of steps, the loss has it."""
    return config.chunk if task.labels == "sequence" else None


def _outputs(task: Task) -> int:
    return task.classes or task.odim or 0  # one of them is given


def _make_cell(config: TrainConfig, task: Task, idim: int, level: int, key: PRNGKeyArray) -> Cell:
    options: dict[str, Any] = dict(config.cell or {})
    if config.model == "indrnn":
        # The last layer starts with units that remember all of the sequence.
        limit = _INDRNN_GAIN ** (1 / task.seq_len)
        last = level == config.depth - 1
        options.setdefault("recurrent_range", (1 / limit if last else 0.0, limit))
    make = _configured(config.model, _CELLS[config.model], options)
    return make(idim, config.dim, key=key)


def _configured(
    model: str, make: Callable[..., Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """The class of a cell or layer, with options of its own."""
    parameters = inspect.signature(make).parameters.values()
    taken = [each.name for each in parameters if each.kind == each.KEYWORD_ONLY]
    taken.remove("key")
    if unknown := options.keys() - set(taken):
        raise UserError(
            f"{model} has no option {', '.join(sorted(unknown))}; its options are "
            f"{', '.join(taken) or 'none'}"
        )
    return partial(make, **options)
