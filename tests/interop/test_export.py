"""An exported step, folded over time, equals the model."""

import io
import json
import subprocess
import sys
import zipfile
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import LRU, S5, AutoregressiveRNN, BidirectionalS5, ElmanRNNCell, RNNEncoder
from rnnscale.layers import CausalConv, Linear
from rnnscale.models import BlockStack, Identity, SequenceClassifier
from rnnscale.sharding import make_mesh
from rnnscale.verify import CAUSAL_LAYERS, CELLS, MODELS, NETWORKS, sample_inputs

pytest.importorskip("flatbuffers", reason="flatbuffers, in which jax.export writes, is missing")

from rnnscale.interop import ExportedStep, export_step, load_step

BATCH, TIME = 3, 9


def fold(step: ExportedStep, xs: Any) -> Any:
    """`(state, ys)` of the step, folded over the second axis."""
    state, ys = step.init_state(xs.shape[:1]), []
    for t in range(xs.shape[1]):
        state, y = step(xs[:, t], state)
        ys.append(y)
    return state, jnp.stack(ys, axis=1)


def close(got: Any, expected: Any, bound: float = 1e-6) -> None:
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        scale = max(1.0, float(jnp.max(jnp.abs(other), initial=0)))
        np.testing.assert_allclose(one, other, atol=bound * scale, rtol=0)


def check_layer(layer: Any, key: jax.Array) -> None:
    xs = sample_inputs(layer, (BATCH, TIME), key)
    step = load_step(export_step(layer))
    dtype = None if jnp.issubdtype(xs.dtype, jnp.integer) else xs.dtype
    close(step.init_state((BATCH,)), layer.init_state((BATCH,), dtype), 0)
    state, ys = fold(step, xs)
    expected_state, expected = eqx.filter_jit(lambda layer, xs: layer(xs))(layer, xs)
    # From the first state, and from one that a step returned.
    close(ys[:, :2], expected[:, :2])
    close((state, ys), (expected_state, expected), 1e-5)


# Most of the time here goes into compiling. The others resemble one of these.
QUICK = ("LRU", "S5", "LinearAttention", "CausalConv", "BlockStack", "LanguageModel")
SUBJECTS = [
    *CAUSAL_LAYERS,
    *(each for each in MODELS if each[0] in ("LanguageModel", "AutoregressiveRNN")),
]


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, build in SUBJECTS
    ],
)
def test_layers(build, key):
    check_layer(build(key), key)


@pytest.mark.slow
@pytest.mark.parametrize("subject", CELLS, ids=lambda subject: subject.name)
def test_cells(subject, key):
    check_layer(RNNEncoder(subject.build(key)), key)


@pytest.mark.parametrize("pool", ["mean", "none", pytest.param("tokens", marks=pytest.mark.slow)])
def test_a_classifier_labels_at_each_step_the_sequence_up_to_there(pool, key):
    model: Any = dict(MODELS)[f"SequenceClassifier {pool}"](key)
    xs = sample_inputs(model, (BATCH, TIME), key)
    _, ys = fold(load_step(export_step(model)), xs)
    run = eqx.filter_jit(lambda model, xs, lengths: model(xs, lengths=lengths)[1])
    for steps in (1, 4, TIME):
        expected = run(model, xs, jnp.full(BATCH, steps))
        close(ys[:, steps - 1], expected[:, steps - 1] if pool == "none" else expected, 1e-5)


def test_a_network_reads_out_at_each_step_the_sequence_up_to_there(key):
    network: Any = dict(NETWORKS)["RNN"](key)
    xs = sample_inputs(network, (BATCH, TIME), key)
    _, ys = fold(load_step(export_step(network)), xs)
    run = eqx.filter_jit(lambda network, xs, lengths: network(xs, lengths=lengths)[0])
    for steps in (1, TIME):
        close(ys[:, steps - 1], run(network, xs, jnp.full(BATCH, steps)), 1e-5)


def test_any_batch(key):
    layer = RNNEncoder(ElmanRNNCell(3, 4, key=key))
    named = load_step(export_step(layer, batch_shape=("rows", "columns")))
    fixed = load_step(export_step(layer, batch_shape=(2, "columns")))
    one = load_step(export_step(layer, batch_shape=()))
    x = jax.random.normal(key, (2, 5, 3))
    (state, h) = layer.step(x, layer.init_state((2, 5)))
    close(named(x, named.init_state((2, 5))), ((state,), h))
    close(fixed(x, fixed.init_state((2, 5))), ((state,), h))
    close(one(x[0, 0], one.init_state())[1], h[0, 0])
    close(named(x[:1, :4], named.init_state((1, 4)))[1], h[:1, :4])
    with pytest.raises(ValueError, match=r"batch_shape=\(3, 5\) makes an input that must be"):
        fixed.init_state((3, 5))
    with pytest.raises(ValueError, match=r"x must be float32 of shape \(3\); got"):
        one(x, one.init_state())
    with pytest.raises(ValueError, match=r"state\[0\] must be float32 of shape .*rows, columns, 4"):
        named(x, (jnp.zeros((2, 5, 4), jnp.int32),))
    with pytest.raises(ValueError, match="the state must be a tuple of 1 arrays.*got tuple of 2"):
        named(x, (jnp.zeros((2, 5, 4)), jnp.zeros((2, 5, 4))))


def test_it_can_be_called_inside_a_jitted_loop(key):
    layer = LRU(3, 4, key=key)
    step = load_step(export_step(layer))
    xs = jax.random.normal(key, (2, TIME, 3))

    def body(state, x):
        return step(x, state)

    state, ys = jax.lax.scan(body, step.init_state((2,)), jnp.swapaxes(xs, 0, 1))
    close((state, jnp.swapaxes(ys, 0, 1)), layer(xs), 1e-5)


def test_the_same_model_gives_the_same_file(key):
    """From wherever it is called: a file contains no path, line or name of the caller."""
    layer = S5(3, 8, key=key)

    def from_elsewhere():
        return export_step(layer)

    before = jax.config.values["jax_traceback_in_locations_limit"]
    file = export_step(layer)
    assert from_elsewhere() == file
    assert b".py" not in file
    assert jax.config.values["jax_traceback_in_locations_limit"] == before


def test_a_mean_runs_for_any_number_of_steps(key):
    model: Any = dict(MODELS)["SequenceClassifier mean"](key)
    x = sample_inputs(model, (BATCH, 1), key)[:, 0]
    step = load_step(export_step(model))
    *inner, count = step(x, step.init_state((BATCH,)))[0]
    np.testing.assert_array_equal(count, np.ones(BATCH))
    full = jnp.full(BATCH, 2**24, count.dtype)
    after, y = step(x, (*inner, full))
    np.testing.assert_array_equal(after[-1], full)
    # One more step hardly changes such a mean.
    close(y, model.head(inner[-1]), 1e-5)


def test_dtypes(key):
    cell = ElmanRNNCell(3, 4, key=key)
    low = load_step(export_step(RNNEncoder(cell), dtype=jnp.bfloat16))
    x = jax.random.normal(key, (2, 3), jnp.bfloat16)
    (state,), h = low(x, low.init_state((2,)))
    assert h.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    close((state, h), cell(x, cell.init_state((2,), jnp.bfloat16)), 1e-2)
    with pytest.raises(ValueError, match="x must be bfloat16"):
        low(x.astype(jnp.float32), low.init_state((2,)))
    model = AutoregressiveRNN(RNNEncoder(cell), key=key)
    tokens = load_step(export_step(model, dtype=jnp.int32))
    token = jnp.array([2, 0])
    close(tokens(token, tokens.init_state((2,)))[1], model.step(token, model.init_state((2,)))[1])


def test_programs_for_devices_that_are_not_here(key):
    layer, x = S5(3, 8, key=key), jnp.ones((1, 3))
    step = load_step(export_step(layer, platforms=("cpu", "cuda", "rocm", "tpu")))
    state, y = layer.step(x, layer.init_state((1,)))
    close(step(x, step.init_state((1,))), (state, y))
    close(step(x, tuple(jax.tree.leaves(state))), layer.step(x, state))
    elsewhere = load_step(export_step(layer, platforms=("tpu",)))
    assert elsewhere.about["platforms"] == ["tpu"]
    with pytest.raises(ValueError, match="tpu"):
        elsewhere.init_state((1,))


def test_weights_on_a_mesh_are_gathered(key):
    layer = LRU(4, 8, key=key)
    mesh = make_mesh(fsdp=8)
    spread = jax.device_put(layer, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    x = jnp.ones((2, 4))
    step = load_step(export_step(spread))
    got = step(x, step.init_state((2,)))
    assert all(len(each.devices()) == 1 for each in jax.tree.leaves(got))
    close(got, layer.step(x, layer.init_state((2,))))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="call it outside"):
        export_step(layer)


def test_what_depends_on_the_weights_only_is_computed_once(key):
    """The program of a step has no matrix exponential and no discretisation."""
    subject = next(each for each in CELLS if each.name == "ExpRNNCell")
    stack = BlockStack(lambda key: S5(3, 8, key=key), 2, make_mixer=Identity, key=key)
    for layer in (RNNEncoder(subject.build(key)), stack, LRU(3, 8, key=key)):
        with zipfile.ZipFile(io.BytesIO(export_step(layer, batch_shape=(2,)))) as file:
            program = jax.export.deserialize(bytearray(file.read("step"))).mlir_module()
        assert "stablehlo.dot_general" in program
        for operation in ("exponential", "custom_call", "cosine", "while", "minimum"):
            assert f"stablehlo.{operation}" not in program


def test_jax_alone_reads_the_file(key, tmp_path):
    layer = RNNEncoder(ElmanRNNCell(3, 4, key=key))
    (tmp_path / "model.step").write_bytes(export_step(layer))
    code = """
import sys, zipfile, jax, jax.export
with zipfile.ZipFile(sys.argv[1]) as file:
    step, init_state = (
        jax.jit(jax.export.deserialize(bytearray(file.read(name))).call)
        for name in ("step", "init_state")
    )
x = jax.numpy.ones((2, 3))
state, y = step(x, init_state(x))
assert not {"rnnscale", "equinox"} & set(sys.modules)
print(y.tolist())
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.step")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    _, expected = layer.step(jnp.ones((2, 3)), layer.init_state((2,)))
    close(np.array(json.loads(run.stdout), np.float32), expected)


def test_models_and_options_that_are_refused(key):
    with pytest.raises(ValueError, match="BidirectionalS5 is not causal"):
        export_step(eqx.filter_eval_shape(lambda key: BidirectionalS5(3, 8, key=key), key))

    def classifier(key):
        def make_layer(key):
            return BidirectionalS5(5, 8, key=key)

        return SequenceClassifier(3, 4, make_layer=make_layer, dim=5, depth=1, key=key)

    model = eqx.filter_eval_shape(classifier, key)
    with pytest.raises(ValueError, match="SequenceClassifier is not causal"):
        export_step(model)
    with pytest.raises(TypeError, match=r"no bare cell; give it RNNEncoder\(ElmanRNNCell"):
        export_step(ElmanRNNCell(3, 4, key=key))
    with pytest.raises(TypeError, match="Linear has no step"):
        export_step(Linear(3, 4, key=key))
    layer = CausalConv(3, 2, key=key)
    with pytest.raises(TypeError, match="platforms must be a list or a tuple; got 'cpu'"):
        export_step(layer, platforms="cpu")
    for platforms in ((), ("gpu",), ("cpu", "metal")):
        with pytest.raises(ValueError, match="platforms must be some of cpu, cuda, rocm, tpu; got"):
            export_step(layer, platforms=platforms)
    wrong: tuple[Any, ...] = ("batch", (0,), ("2*b",), (1.5,))
    for batch_shape in wrong:
        with pytest.raises((ValueError, TypeError), match=r"batch_shape(\[0\])? must be "):
            export_step(layer, batch_shape=batch_shape)
    language: Any = eqx.filter_eval_shape(dict(MODELS)["LanguageModel"], key)
    with pytest.raises(ValueError, match="reads tokens, so dtype must be an integer"):
        export_step(language, dtype=jnp.float32)


def test_files_that_are_refused(key):
    file = export_step(CausalConv(3, 2, key=key))
    with pytest.raises(
        ValueError, match="load_step takes a file that export_step .* wrote; File is"
    ):
        load_step(b"no zip")
    with pytest.raises(ValueError, match="not a zip file|[Bb]ad"):
        load_step(file[: len(file) // 2])

    def load(members: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        load_step(buffer.getvalue())

    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        members: dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    with pytest.raises(ValueError, match="about.json"):
        load({"something": b"else"})
    for about in ("{}", "[]"):
        with pytest.raises(ValueError, match="its about.json has no format"):
            load(members | {"about.json": about})
    about = json.dumps(json.loads(members["about.json"]) | {"format": 2, "rnnscale": "9.0"})
    with pytest.raises(ValueError, match="reads format 1, and this file, of rnnscale 9.0, has"):
        load(members | {"about.json": about})
