"""What users write is checked where it enters: a cell, a layer, a factory of one, an optimiser.

Each broken class here breaks one rule of its abstract class; the error names class and method, says
what was expected, and names the page.
"""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from jaxtyping import Array, Float

from rnnscale import (
    RNN,
    S5,
    BidirectionalRNN,
    CausalLayer,
    DeepRNN,
    ElmanRNNCell,
    MinGRUCell,
    ReservoirComputer,
    RNNEncoder,
    verify,
)
from rnnscale.cells import AffineInputCell, LinearCell, time_loop
from rnnscale.models import FFN, Block, BlockStack, LanguageModel, SequenceClassifier
from rnnscale.sharding import make_mesh, sharded_init
from rnnscale.training import TrainState, make_train_step

KEY = jax.random.key(0)


class Sound(AffineInputCell):
    recurrent: Float[Array, "hdim hdim"]
    input: Float[Array, "hdim idim"]
    bias: Float[Array, "hdim"]
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    def __init__(self):
        self.idim, self.hdim = 3, 4
        self.recurrent, self.input, self.bias = jnp.ones((4, 4)), jnp.ones((4, 3)), jnp.zeros(4)

    def advance(self, weights: Any, drive: Any, state: Any, affine: Any) -> Any:
        return jnp.tanh(affine(drive, weights.recurrent, state))


class IndexesMatrix(Sound):
    def advance(self, weights, drive, state, affine):
        return jnp.tanh(drive + weights.recurrent[0] * state)


class MultipliesMatrix(Sound):
    def advance(self, weights, drive, state, affine):
        return jnp.tanh(drive + state @ weights.recurrent)


class TransposesMatrix(Sound):
    def advance(self, weights, drive, state, affine):
        return jnp.tanh(drive + state @ weights.recurrent.T)


class ReturnsPair(Sound):
    def advance(self, weights, drive, state, affine):
        return state, state


class LosesUnits(Sound):
    def advance(self, weights, drive, state, affine):
        return state[..., :2]


class LosesPrecision(Sound):
    def advance(self, weights, drive, state, affine):
        return state.astype(jnp.bfloat16)


class StepOnly(Sound):
    def advance(self, x, state):  # pyright: ignore[reportIncompatibleMethodOverride]
        return state


class NoBatch(Sound):
    def init_state(self, batch_shape=(), dtype=None):
        return jnp.zeros(self.hdim)


class NoWeights(Sound):
    def weights(self):
        return {"recurrent": self.recurrent}


class TwoOutputs(Sound):
    def output(self, state) -> Any:
        return state, state


class FloatSize(Sound):
    def __init__(self):
        super().__init__()
        self.hdim = 4.0  # pyright: ignore[reportAttributeAccessIssue]


class OneCoefficient(LinearCell):
    idim: int = eqx.field(static=True, default=3)
    hdim: int = eqx.field(static=True, default=3)

    def drive(self, weights, x) -> Any:
        return x


CELLS = [
    (IndexesMatrix, TypeError, "`affine.plus, weight, h.` only.*IndexesMatrix.advance"),
    (MultipliesMatrix, TypeError, "`affine.plus, weight, h.` only.*MultipliesMatrix.advance"),
    (TransposesMatrix, TypeError, "`affine.plus, weight, h.` only.*TransposesMatrix.advance"),
    (
        ReturnsPair,
        ValueError,
        r"ReturnsPair.advance.*state like init_state, float32\[2,4\]; got \(",
    ),
    (LosesUnits, ValueError, r"LosesUnits.advance.*float32\[2,4\]; got float32\[2,2\]"),
    (LosesPrecision, ValueError, r"LosesPrecision.advance.*; got bfloat16\[2,4\]"),
    (StepOnly, TypeError, r"StepOnly.advance\(weights, drive, state, affine\), which rnnscale"),
    (NoBatch, ValueError, r"NoBatch.init_state.*leading axes are \(2,\); got float32\[4\]"),
    (NoWeights, AttributeError, r"NoWeights.drive\(weights, x\), which rnnscale called"),
    (TwoOutputs, ValueError, r"TwoOutputs.output.*of shape \(2, 4\); got \("),
    (FloatSize, TypeError, "FloatSize.hdim must be an int, .*; got float"),
    (OneCoefficient, TypeError, r"OneCoefficient.drive.*the pair \(a, b\).*; got float32"),
]


@pytest.mark.parametrize(("cell", "error", "message"), CELLS)
def test_a_cell_is_checked_where_it_enters(cell: type, error: type[Exception], message: str):
    with pytest.raises(error, match=rf"(?s){message}.*A cell of your own.*cells/README.md"):
        RNNEncoder(cell())


@pytest.mark.parametrize(
    "take",
    [
        lambda cell: RNN(cell, 2, key=KEY),
        lambda cell: DeepRNN([cell], 2, key=KEY),
        lambda cell: BidirectionalRNN(Sound(), cell, 2, key=KEY),
        lambda cell: ReservoirComputer(cell, 2, key=KEY),
        lambda cell: time_loop(cell, jnp.ones((5, 3))),
    ],
)
def test_everything_that_takes_a_cell_checks_it(take: Any):
    take(Sound())
    with pytest.raises(TypeError, match=r"(?s)in the loop over time.*IndexesMatrix.advance"):
        take(cast(Any, IndexesMatrix)())
    for other in (ElmanRNNCell, S5(3, 4, key=KEY), lambda x, h: h, None):
        with pytest.raises(
            TypeError,
            match=r"must be a rnnscale.cells.Cell; got .*\. See \"A cell of your own\" in",
        ):
            take(other)


class SoundLayer(CausalLayer):
    idim: int = eqx.field(static=True, default=4)
    odim: int = eqx.field(static=True, default=4)

    def init_state(self, batch_shape=(), dtype=None) -> Any:
        return jnp.zeros((*batch_shape, 4))

    def __call__(self, xs, state=None, *, reset=None, lengths=None, key=None) -> Any:
        return xs[..., -1, :], xs

    def step(self, x, state, *, key=None) -> Any:
        return x, x


class NoOptions(SoundLayer):
    def __call__(self, xs):  # pyright: ignore[reportIncompatibleMethodOverride]
        return xs


class OutputOnly(SoundLayer):
    def __call__(self, xs, state=None, *, reset=None, lengths=None, key=None):
        return xs


class OutputFirst(SoundLayer):
    def __call__(self, xs, state=None, *, reset=None, lengths=None, key=None):
        return xs, state


class LastOnly(SoundLayer):
    def __call__(self, xs, state=None, *, reset=None, lengths=None, key=None):
        return state, xs[..., -1, :]


class OtherStep(SoundLayer):
    def step(self, x, state, *, key=None):
        return (x, state), x


LAYERS = [
    (
        NoOptions,
        TypeError,
        r"NoOptions.__call__\(xs, state, reset=None, lengths=None, key=None\), ",
    ),
    (OutputOnly, TypeError, r"OutputOnly.__call__.*a pair \(state, y\).*; got float32\[2,8,4\]"),
    (OutputFirst, ValueError, "OutputFirst.__call__.*must return a state like init_state"),
    (LastOnly, ValueError, r"LastOnly.__call__.*of shape \(2, 8, 4\); got float32\[2,4\]"),
    (OtherStep, ValueError, r"OtherStep.step.*init_state, float32\[2,4\]; got \("),
]


@pytest.mark.parametrize(("layer", "error", "message"), LAYERS)
def test_a_layer_is_checked_where_it_enters(layer: type, error: type[Exception], message: str):
    with pytest.raises(error, match=rf"(?s){message}.*A layer of your own.*ssm/README.md"):
        BlockStack(lambda key: layer(), 2, key=KEY)


def classifier(**options: Any) -> SequenceClassifier:
    options = {"make_layer": lambda key: SoundLayer(), "dim": 4, "depth": 1, "key": KEY} | options
    return SequenceClassifier(3, 2, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"make_layer": SoundLayer()}, "make_layer must be a function .*; got .* SoundLayer"),
        ({"make_layer": lambda key: ElmanRNNCell(4, 4, key=key)}, "SequenceLayer; it made Elman"),
        ({"make_layer": S5}, "(?s)S5.*raised by make_layer"),
        ({"make_layer": lambda: S5(4, 4, key=KEY)}, r"(?s)raised by make_layer\(key\), which"),
        ({"make_mixer": FFN(4, key=KEY)}, r"(?s)'key'.*raised by make_mixer\(4, key=key\)"),
        ({"make_norm": lambda dim: None}, "make_norm must make a function .*; it made NoneType"),
        ({"make_encoder": FFN}, "(?s)raised by make_encoder"),
    ],
)
def test_factories_of_parts_are_checked(options: dict[str, Any], message: str):
    classifier()
    with pytest.raises(TypeError, match=message):
        classifier(**options)


def test_a_norm_that_sums_is_refused():
    with pytest.raises(ValueError, match=r"what make_norm made .*\(2, 3, 4\); got float32\[2,3\]"):
        classifier(make_norm=lambda dim: lambda x: x.sum(-1))


@pytest.mark.parametrize("axes", [{"seq": 8}, {"data": 2, "tensor": 4}])
def test_checks_do_not_depend_on_the_mesh(axes: dict[str, Any]):
    """They trace short sequences of few rows, which the mesh could not split."""

    def build(key: jax.Array) -> Any:
        parallel = RNNEncoder(MinGRUCell(8, 8, key=key))
        model = LanguageModel(
            16, make_layer=lambda key: S5(8, 16, key=key), dim=8, depth=1, key=key
        )
        return model, Block(parallel, key=key)

    mesh = make_mesh(**axes)
    with jax.set_mesh(mesh):
        _, block = sharded_init(build, KEY, mesh)
        RNNEncoder(block.layer.cell)
        Block(block.layer, key=KEY)


def test_an_optimiser_is_checked_where_it_enters():
    def loss(model, batch):
        return jnp.float32(0)

    made: Any = optax.adam
    with pytest.raises(
        TypeError, match=r"make_train_step: optimiser must be .*; got function.*optax.adam"
    ):
        make_train_step(loss, made)
    with pytest.raises(
        TypeError, match=r"TrainState.create: optimiser must be an optax\..*; got 0.001"
    ):
        TrainState.create(Sound(), 1e-3, KEY)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "build"),
    [*((each.name, each.build) for each in verify.CELLS), *verify.LAYERS],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_no_two_arrays_are_one(name, build):
    """Or a step that is given them to donate, one of training or of decoding, would fail."""
    model = build(KEY)
    arrays = jax.tree.leaves(eqx.filter((model, model.init_state((2,))), eqx.is_array))
    assert len({id(x) for x in arrays}) == len(arrays)
