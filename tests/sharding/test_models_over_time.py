"""Models with time split over devices: their losses, gradients and collectives."""

import itertools
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.attention import (
    MLSTM,
    GatedLinearAttention,
    LinearAttention,
    LocalAttention,
    UpProjectedMLSTM,
)
from rnnscale.cells import LongShortTermMemoryCell, MinGRUCell
from rnnscale.layers import (
    RNN,
    BidirectionalRNNEncoder,
    CausalConv,
    DeepRNN,
    GriffinRecurrence,
    ReservoirComputer,
    RNNEncoder,
)
from rnnscale.models import LanguageModel, SequenceClassifier
from rnnscale.runs import TrainConfig, set_up
from rnnscale.runs._build import make_model
from rnnscale.sharding import batch_sharding, make_mesh, shardings
from rnnscale.tasks import load_task
from rnnscale.training import cross_entropy, squared_error
from rnnscale_kernels.testing import compile_for

MESHES: dict[str, Any] = {
    "seq=8": {"seq": 8},
    "data=2,seq=4": {"data": 2, "seq": 4},
    "fsdp=2,tensor=2,seq=2": {"fsdp": 2, "tensor": 2, "seq": 2},
}
ROWS, TIME, DIM, LABELS, VOCAB = 8, 32, 8, 6, 11

LAYERS = {
    "conv": lambda key: CausalConv(DIM, 4, key=key),
    "attention": lambda key: LinearAttention(DIM, 2, key=key),
    "griffin": [
        lambda key: GriffinRecurrence(DIM, conv_width=2, key=key),
        lambda key: LocalAttention(DIM, 4, 5, kv_heads=2, key=key),
    ],
}
# A model is named after its layer and its pool, or `tokens`. tests/models has other layers on many
# meshes. Every mesh has one model here; `make test-all` has all pairs.
MODELS = ["conv last", "attention mean", "conv none", "conv tokens", "griffin tokens"]
QUICK = [
    ("seq=8", "griffin tokens"),
    ("seq=8", "conv last"),
    ("data=2,seq=4", "attention mean"),
    ("fsdp=2,tensor=2,seq=2", "conv tokens"),
]
SLOW = [pair for pair in itertools.product(MESHES, MODELS) if pair not in QUICK]
PAIRS = [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]


def build(model, key):
    layer, pool = model.split()
    options = {"make_layer": LAYERS[layer], "dim": DIM, "depth": 2, "dropout": 0.2, "key": key}
    if pool == "tokens":
        return LanguageModel(VOCAB, **options)
    return SequenceClassifier(3, LABELS, pool=pool, **options)


def batch_for(model, time=TIME):
    """A batch with rows that end inside and at the border of the devices' parts, and labels that
    are not scored."""
    _, pool = model.split()
    rng = np.random.default_rng(0)
    lengths = np.resize([time, 0, 1, time // 8, time // 4 + 1, time // 2, time - 1, 5], ROWS)
    per_step = (ROWS, time) if pool in ("none", "tokens") else (ROWS,)
    batch = {
        "inputs": rng.normal(size=(ROWS, time, 3)).astype(np.float32),
        "labels": rng.integers(0, LABELS, per_step).astype(np.int32),
        "lengths": lengths.astype(np.int32),
        "weight": rng.integers(0, 3, ROWS).astype(np.float32),
    }
    if pool == "tokens":
        batch["inputs"] = rng.integers(0, VOCAB, (ROWS, time)).astype(np.int32)
    if len(per_step) == 2:
        batch["scored"] = rng.random(per_step) < 0.5
    return batch


def layout(mesh, name, array):
    time_axis = 1 if array.shape[1:2] and name != "lengths" else None
    return batch_sharding(mesh, array.ndim, time_axis=time_axis)


def loss(model, batch, key):
    _, totals = cross_entropy(model, batch, key)
    return totals["loss"], totals


gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize(("axes", "model"), PAIRS)
def test_losses_and_gradients_are_those_of_one_device(axes, model, key):
    """Dropout included: its masks depend on row and step, not on the device."""
    model, batch = build(model, key), batch_for(model)
    expected = gradient(model, batch, key)
    mesh = make_mesh(**MESHES[axes])
    with jax.set_mesh(mesh):
        placed = jax.device_put(model, shardings(model, mesh))
        parts = {n: jax.device_put(x, layout(mesh, n, x)) for n, x in batch.items()}
        got = gradient(placed, parts, key)
    assert_close(got, expected)


def assert_close(got, expected):
    def close(x, y):
        assert np.isfinite(y).all()
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * max(1, np.max(np.abs(y))))

    jax.tree.map(close, got, expected)


def collectives(axes, model, time, key):
    """Kinds, axes, bytes and turns of all collectives of a gradient."""
    mesh = make_mesh(**axes)

    def abstract(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    shapes = jax.eval_shape(lambda key: build(model, key), key)
    batch = batch_for(model, time)
    arguments = (
        jax.tree.map(abstract, shapes, shardings(shapes, mesh)),
        {name: abstract(x, layout(mesh, name, x)) for name, x in batch.items()},
        jax.eval_shape(lambda: key),
    )
    program = compile_for(jax.grad(loss, has_aux=True), *arguments, target=mesh)
    return sorted((each.kind, each.axes, each.bytes, each.turns) for each in program.collectives)


@pytest.mark.parametrize(("axes", "model"), QUICK)
def test_no_collective_grows_with_the_length(axes, model, key):
    """Neither those of a layer nor those of dropout, pooling, embedding, loss or accuracy."""
    short, long = (collectives(MESHES[axes], model, time, key) for time in (512, 1024))
    assert short == long
    over_seq = [each for each in short if each[1] == ("seq",) and each[0] != "all-reduce"]
    rows = ROWS // MESHES[axes].get("data", 1) // MESHES[axes].get("fsdp", 1)
    if model.startswith("griffin"):
        # The convolution's last input; keys and values of two heads, and a flag, for four steps;
        # and what the recurrence gathers. All but the flags also go back.
        permutes = [each[2:] for each in over_seq if each[0] == "collective-permute"]
        sizes = rows * DIM * 4, rows * 4 * (2 * 2 * 2 + 1) * 4
        assert permutes == [(size, 1) for size in sizes for _ in range(2)]
        return
    if model.startswith("conv"):
        kind, sizes = "collective-permute", [rows * 3 * DIM * 4] * 2
    else:
        # Memory and normaliser of two heads from each of four devices. The forward pass also
        # gathers a reset flag per row.
        memory = rows * 4 * 2 * 4 * 5 * 4
        kind, sizes = "all-gather", [memory, memory + rows * 4 * 4]
    # One in the forward and one in the backward pass, in each of two blocks.
    assert over_seq == [(kind, ("seq",), size, 2) for size in sizes]


def test_squared_error_only_sums_over_devices():
    mesh = make_mesh(data=2, seq=4)

    def run(batch):
        return squared_error(lambda xs, **_: (None, xs), batch, None)[1]

    def placed(shape, dtype=jnp.float32, time_axis=None):
        sharding = batch_sharding(mesh, len(shape), time_axis=time_axis)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    steps = placed((ROWS, 512, 3), time_axis=1)
    rows = {"lengths": placed((ROWS,), jnp.int32), "weight": placed((ROWS,))}
    found = compile_for(run, {"inputs": steps, "labels": steps, **rows}, target=mesh).collectives
    assert {each.kind for each in found} == {"all-reduce"}
    assert max(each.bytes for each in found) <= (2 + 2 * 3) * 4


def attention_arguments(layer, key):
    """The part of a device is between two and three chunks long on the mesh with `seq=2`, and less
    than one chunk on the others."""
    time = 320
    xs = jax.random.normal(key, (ROWS, time, 5))
    starts = np.zeros((ROWS, time), bool)
    for row, steps in enumerate([[], [0], [1], [39, 40], [80, 161], [160], [319], [7, 79, 200]]):
        starts[row, steps] = True
    lengths = jnp.array([320, 320, 40, 41, 0, 1, 320, 159])
    started = lambda x: x + 0.5 if eqx.is_inexact_array(x) else x + 20  # noqa: E731
    state = jax.tree.map(started, layer.init_state((ROWS,)))
    return xs, state, jnp.asarray(starts), lengths


@jax.jit
def attention_gradient(layer, xs, state, options):
    @partial(eqx.filter_grad, has_aux=True)
    def total(arguments):
        layer, xs, state = arguments
        state, ys = layer(xs, state, **options)
        # The state is a sum over all steps and large, so that its sine would be noise.
        leaves = jax.tree.leaves(state)
        weighted = (jnp.sum(x * jnp.cos(jnp.arange(x.shape[-1]))) for x in leaves)
        return jnp.sum(jnp.sin(ys)) + sum(weighted), (ys, state)

    return total((layer, xs, state))


@pytest.mark.parametrize(
    ("axes", "segments"),
    [("seq=8", False), *((name, True) for name in MESHES)],
)
def test_linear_attention(axes, segments, key):
    """Outputs, states and gradients, with resets and row ends at and between the borders."""
    check_attention(LinearAttention(5, 2, 6, key_dim=3, value_dim=4, key=key), axes, segments, key)


@pytest.mark.parametrize(
    ("axes", "segments"),
    [("seq=8", False), ("data=2,seq=4", True), ("fsdp=2,tensor=2,seq=2", True)],
)
def test_local_attention(axes, segments, key):
    """With a window as long as the part of a device."""
    check_attention(LocalAttention(5, 2, 40, 6, key_dim=4, key=key), axes, segments, key)


GATED = {
    # With a small epsilon, the norm of its first outputs, which are tiny, enlarges rounding errors.
    "MLSTM": partial(MLSTM, key_dim=3, value_dim=4, epsilon=1.0),
    "UpProjectedMLSTM": partial(UpProjectedMLSTM, block_size=5),
    "GatedLinearAttention": partial(GatedLinearAttention, key_dim=3, value_dim=4),
}


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("MLSTM", "seq=8"),
        ("MLSTM", "fsdp=2,tensor=2,seq=2"),
        ("UpProjectedMLSTM", "data=2,seq=4"),
        ("GatedLinearAttention", "fsdp=2,tensor=2,seq=2"),
    ],
)
def test_gated_attention(name, axes, key):
    """Decays and stabilisers, whose sums and maxima pass the borders."""
    check_attention(GATED[name](5, 2, 6, key=key), axes, True, key)


def check_attention(layer, axes, segments, key):
    xs, state, reset, lengths = attention_arguments(layer, key)
    options = {}
    if segments:
        options = {"reset": reset, "lengths": lengths}
        # A NaN in the state must not pass a reset.
        spoiled = lambda x: x.at[1].set(jnp.nan if eqx.is_inexact_array(x) else 1)  # noqa: E731
        state = jax.tree.map(spoiled, state)
    expected = attention_gradient(layer, xs, state, options)
    with jax.set_mesh(make_mesh(**MESHES[axes])):
        got = attention_gradient(layer, xs, state, options)
    assert_close(got, expected)


@pytest.mark.parametrize("shape", [(16, 5), (3, 16, 5), (8, 19, 5)], ids=str)
def test_linear_attention_of_any_batch_and_length(shape, key):
    """A single row, a number of rows and a number of steps that the mesh does not divide."""
    layer = LinearAttention(5, 1, key=key)
    xs = jax.random.normal(key, shape)
    run = eqx.filter_jit(lambda xs: (layer(xs), eqx.filter_vmap(layer)(xs[None])))
    expected, _ = run(xs)
    with jax.set_mesh(make_mesh(data=2, seq=4)):
        got, by_vmap = run(xs)
    assert_close(got, expected)
    assert_close(jax.tree.map(lambda x: x[0], by_vmap), expected)


def test_a_dense_cell_cannot_split_time(key):
    cell = LongShortTermMemoryCell(3, 4, key=key)
    linear = MinGRUCell(3, 3, key=key)
    xs = jnp.zeros((8, 16, 3))
    refused = [
        RNNEncoder(cell),
        RNN(cell, 2, key=key),
        DeepRNN([linear, cell], 2, key=key),
        BidirectionalRNNEncoder(linear, cell),
        ReservoirComputer(cell, 2, key=key),
    ]
    message = "over seq=4, but LongShortTermMemoryCell takes its steps one after"
    with jax.set_mesh(make_mesh(data=2, seq=4)):
        for model in refused:
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(model, xs)
        # A single step works on any mesh.
        state, y = eqx.filter_jit(cell)(xs[:, 0], cell.init_state((8,)))
        assert y.shape == (8, 4)
        eqx.filter_eval_shape(RNNEncoder(linear), xs)


def test_outside_of_jit(key):
    """Layers accept arrays that are not on the mesh yet."""
    xs = jnp.ones((8, 16, 3))
    layers = [CausalConv(3, 2, key=key), RNNEncoder(LongShortTermMemoryCell(3, 3, key=key))]
    with jax.set_mesh(make_mesh(data=8)):
        for layer in layers:
            assert layer(xs)[1].shape == (8, 16, 3)


@pytest.mark.parametrize(
    ("model", "name", "seq_len"),
    [
        ("mingru", "selective-copy", 37),  # tokens, a label and a weight per step
        ("mingru", "copy", 21),  # features, a label per step, some not scored
        ("mingru", "adding", 13),  # features, a number per sequence
        ("s5", "pendulum", 13),  # images at uneven times, numbers per step
    ],
)
def test_time_that_the_mesh_does_not_divide_is_padded(model, name, seq_len, key):
    """The loss and its gradient on eight devices, for lengths that are not a multiple of eight."""
    task = load_task(name, seq_len=seq_len)
    config = TrainConfig(
        name, out="unused", model=model, batch_size=8, dim=8, depth=1, state_dim=8, dropout=0.2
    )
    model = make_model(config, task.spec, key)

    def run(mesh):
        parts = set_up(config, task, mesh)
        records = [parts.task.train[i] for i in range(8)]
        batch = {name: np.stack([r[name] for r in records]) for name in records[0]}

        def total(model, batch, key):
            _, totals = parts.loss(model, batch, key)
            return totals["loss"], totals

        with jax.set_mesh(mesh):
            placed = {n: jax.device_put(x, parts.layout(n, x.shape)) for n, x in batch.items()}
            return jax.jit(jax.value_and_grad(total, has_aux=True))(model, placed, key)

    expected = run(make_mesh(devices=jax.devices()[:1]))
    assert_close(run(make_mesh(seq=8)), expected)


def test_set_up_refuses_what_cannot_be_split():
    mesh = make_mesh(data=2, seq=4)
    options: Any = {"batch_size": 8, "dim": 8, "depth": 1}
    config = TrainConfig("adding", out="unused", model="lstm", **options)
    with pytest.raises(ValueError, match="LongShortTermMemoryCell takes its steps one after"):
        set_up(config, load_task("adding", seq_len=13), mesh)
    config = TrainConfig("adding", out="unused", **options)
    with pytest.raises(ValueError, match="seq_len=3 can't be split over the devices of seq=4"):
        set_up(config, load_task("adding", seq_len=3), mesh)
