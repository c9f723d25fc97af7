"""Imported modules of torch, compared with torch itself if it is installed."""

import equinox as eqx
import jax
import numpy as np
import pytest

from rnnscale import BidirectionalRNNEncoder, RNNEncoder
from rnnscale.interop import (
    elman_cell_from_torch,
    elman_from_torch,
    gru_cell_from_torch,
    gru_from_torch,
    lstm_cell_from_torch,
    lstm_from_torch,
)

torch = pytest.importorskip(
    "torch", reason="torch is not installed; test_golden.py compares with what it gave once"
)

NETWORKS = {"LSTM": lstm_from_torch, "GRU": gru_from_torch, "RNN": elman_from_torch}
CELLS = {
    "LSTMCell": lstm_cell_from_torch,
    "GRUCell": gru_cell_from_torch,
    "RNNCell": elman_cell_from_torch,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def run(layer, xs):
    return eqx.filter_jit(lambda layer, xs: layer(xs)[1])(layer, np.asarray(xs))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_networks(kind, layers, bidirectional, bias):
    module = getattr(torch.nn, kind)(
        3, 5, layers, bidirectional=bidirectional, bias=bias, batch_first=True
    )
    encoder = NETWORKS[kind](module.state_dict())
    if layers == 1:
        assert type(encoder) is (BidirectionalRNNEncoder if bidirectional else RNNEncoder)
    xs = torch.randn(2, 17, 3)
    with torch.no_grad():
        expected = module(xs)[0].numpy()
    np.testing.assert_allclose(run(encoder, xs), expected, atol=1e-5)


@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind):
    module = getattr(torch.nn, kind)(3, 5)
    cell = CELLS[kind](module.state_dict())
    x = torch.randn(2, 3)
    with torch.no_grad():
        out = module(x)
    expected = (out[0] if isinstance(out, tuple) else out).numpy()
    _, h = cell(np.asarray(x), cell.init_state((2,)))
    np.testing.assert_allclose(h, expected, atol=1e-6)


def test_tensors_of_any_kind():
    module = torch.nn.LSTM(3, 5)
    expected = lstm_from_torch(module.state_dict())
    with_gradient = dict(module.named_parameters())
    assert all(tensor.requires_grad for tensor in with_gradient.values())
    assert eqx.tree_equal(lstm_from_torch(with_gradient), expected)
    assert eqx.tree_equal(lstm_from_torch(module.double().state_dict()), expected)
    low = lstm_from_torch(module.bfloat16().state_dict())
    for got, wanted in zip(jax.tree.leaves(low), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2**-7)


def test_relu():
    module = torch.nn.RNN(3, 5, nonlinearity="relu", batch_first=True)
    xs = torch.randn(2, 17, 3)
    with torch.no_grad():
        expected = module(xs)[0].numpy()
    encoder = elman_from_torch(module.state_dict(), nonlinearity=jax.nn.relu)
    np.testing.assert_allclose(run(encoder, xs), expected, atol=1e-5)


def test_projections_are_refused():
    module = torch.nn.LSTM(3, 5, proj_size=2)
    with pytest.raises(ValueError, match="train one without proj_size"):
        lstm_from_torch(module.state_dict())
