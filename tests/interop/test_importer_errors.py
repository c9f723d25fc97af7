"""Every importer names the weight that is wrong and says what was expected."""

import re
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.interop import (
    damped_linoss_from_boyer,
    gru_cell_from_torch,
    gru_from_torch,
    linoss_from_rusch,
    lrcssm_cell_from_farsang,
    lru_classifier_from_minimal,
    lru_from_minimal,
    lru_layers_from_minimal,
    lstm_from_torch,
    s4d_from_state_spaces,
    s4d_mixer_from_state_spaces,
    s5_classifier_from_lindermanlab,
    s5_from_lindermanlab,
    unicornn_from_rusch,
)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


LSTM = {
    "weight_ih_l0": zeros(20, 3),
    "weight_hh_l0": zeros(20, 5),
    "bias_ih_l0": zeros(20),
    "bias_hh_l0": zeros(20),
}
S5 = {
    "Lambda_re": zeros(4) - 1,
    "Lambda_im": zeros(4),
    "log_step": zeros(4, 1),
    "B": zeros(4, 3, 2),
    "C": zeros(3, 4, 2),
    "D": zeros(3),
}
S4D = {
    "D": zeros(3),
    "kernel.C": zeros(3, 4, 2),
    "kernel.log_dt": zeros(3),
    "kernel.log_A_real": zeros(3, 4),
    "kernel.A_imag": zeros(3, 4),
    "output_linear.0.weight": zeros(6, 3, 1),
    "output_linear.0.bias": zeros(6),
}
LRU = {
    **dict.fromkeys(("nu_log", "theta_log", "gamma_log"), zeros(4)),
    **dict.fromkeys(("B_re", "B_im"), zeros(4, 3)),
    **dict.fromkeys(("C_re", "C_im"), zeros(3, 4)),
    "D": zeros(3),
}
LINOSS = {
    **dict.fromkeys(("A_diag", "steps"), zeros(4)),
    "B": zeros(4, 3, 2),
    "C": zeros(3, 4, 2),
    "D": zeros(3),
}


UNICORNN = {
    "DIs.0.fc.weight": zeros(4, 3),
    "DIs.0.fc.bias": zeros(4),
    "RNNs.0.weight_hh": zeros(4),
    "RNNs.0.c_": zeros(4),
    "classifier.weight": zeros(2, 4),
    "classifier.bias": zeros(2),
}
read_unicornn = partial(unicornn_from_rusch, dt=0.1, alpha=0.0)
read_lru_classifier = partial(lru_classifier_from_minimal, norm="layer")


def dense(*shape: int) -> dict[str, np.ndarray]:
    return {"kernel": zeros(*shape), "bias": zeros(shape[-1])}


def model(**changes) -> dict:
    block = {
        "seq": LRU,
        "out1": dense(3, 3),
        "out2": dense(3, 3),
        "normalization": {"scale": zeros(3), "bias": zeros(3)},
    }
    block |= {name: value for name, value in changes.items() if value is not None}
    block = {name: value for name, value in block.items() if changes.get(name, 0) is not None}
    encoder = {"encoder": dense(2, 3), "layers_0": block}
    return {"params": {"encoder": encoder, "decoder": dense(3, 7)}}


def without(tree: dict, name: str) -> dict:
    return {key: value for key, value in tree.items() if key != name}


@pytest.mark.parametrize(
    ("read", "weights", "message"),
    [
        (lstm_from_torch, LSTM | {"bias_ih_l0": zeros(19)}, "bias_ih_l0 .*4.units.* units=5; got"),
        (lstm_from_torch, without(LSTM, "bias_hh_l0"), "there is no bias_hh_l0"),
        (lstm_from_torch, LSTM | {"head.weight": zeros(2)}, "there is besides head.weight"),
        (lstm_from_torch, LSTM | {"weight_ih_l1": zeros(20, 5)}, "there is no weight_hh_l1"),
        (lstm_from_torch, LSTM | {"weight_hr_l0": zeros(2, 5)}, "weight_hr_l0.*without proj_size"),
        (lstm_from_torch, {f"rnn.{key}": value for key, value in LSTM.items()}, "say with prefix"),
        (lstm_from_torch, {}, "weights called weight_hh...; got none"),
        (lstm_from_torch, [1], "state_dict must be a collections.abc.Mapping; got"),
        (lstm_from_torch, LSTM | {"bias_hh_l0": np.zeros(20, int)}, "bias_hh_l0 must hold real"),
        (lstm_from_torch, LSTM | {"bias_hh_l0": {"a": 1}}, "bias_hh_l0 must be an array"),
        (gru_from_torch, LSTM, r"GRU: weight_hh_l0 .* \(3\*units, units\); got \(20, 5\)"),
        (gru_cell_from_torch, LSTM, "there is no weight_hh, weight_ih"),
        (read_unicornn, without(UNICORNN, "RNNs.0.c_"), "UnICORNN is .*there is no RNNs.0.c_"),
        (read_unicornn, UNICORNN | {"RNNs.1.weight_hh": zeros(4)}, "there is no DIs.1.fc.weight"),
        (read_unicornn, UNICORNN | {"embedding.weight": zeros(9, 3)}, "besides embedding.weight"),
        (read_unicornn, UNICORNN | {"classifier.weight": zeros(2, 5)}, "units=4.*got"),
        (partial(read_unicornn, dt=[0.1, 0.2]), UNICORNN, "dt must be one number .* 1 layers"),
        (lrcssm_cell_from_farsang, {"weight_mu": zeros(4)}, "LRCU is .*there is no weight_sens"),
        (s5_from_lindermanlab, without(S5, "D"), "S5SSM is .*there is no D"),
        (s5_from_lindermanlab, S5 | {"C1": zeros(3, 4, 2)}, "there is no C2 and .* besides C"),
        (s5_from_lindermanlab, S5 | {"C": zeros(3, 5, 2)}, "C must have .*states=4; got"),
        (s5_from_lindermanlab, S5 | {"log_step": zeros(4)}, r"log_step .*\(states, 1\)"),
        (s5_from_lindermanlab, S5 | {"B": zeros(4, 3)}, r"B must have .*\(states, features, 2\)"),
        (s4d_from_state_spaces, without(S4D, "kernel.A_imag"), "there is no kernel.A_imag"),
        (s4d_from_state_spaces, S4D | {"kernel.B": zeros(3)}, "there is besides kernel.B"),
        (s4d_from_state_spaces, S4D | {"D": zeros(4)}, "kernel.C must have .*features=4; got"),
        (
            s4d_mixer_from_state_spaces,
            S4D | {"output_linear.0.weight": zeros(3, 3, 1)},
            r"0.weight must have the shape \(2\*features, features, 1\)",
        ),
        (
            lru_from_minimal,
            LRU | {"C_im": zeros(3, 5)},
            r"C_im .*states=4, features=3; got \(3, 5\)",
        ),
        (linoss_from_rusch, LINOSS | {"dt": zeros(4)}, "there is besides dt"),
        (linoss_from_rusch, LINOSS | {"B": zeros(4, 3)}, r"B must have .*features, 2\)"),
        (damped_linoss_from_boyer, LINOSS, "there is no G_diag, dt and there is besides steps"),
        (lru_layers_from_minimal, {"encoder": {"seq": S5}}, "no layer with nu_log.*encoder"),
        (read_lru_classifier, model(out2=None), "layers_0 must hold .*out2"),
        (read_lru_classifier, model(seq=S5), "layers_0.seq .*there is no nu_log"),
        (read_lru_classifier, model(out1=dense(3, 4)), "out1: kernel .*features=3; got"),
        (read_lru_classifier, {"params": {}}, "params must hold decoder, encoder"),
        (read_lru_classifier, LRU, "there is no params"),
        (lru_classifier_from_minimal, model(), "no batch_stats: .* norm='layer' for a model"),
        (read_lru_classifier, model() | {"batch_stats": {}}, "variables must hold params; it"),
        (
            lru_classifier_from_minimal,
            model() | {"batch_stats": {"encoder": {}}},
            "there is no batch_stats.encoder.layers_0",
        ),
    ],
)
def test_the_wrong_weight_is_named(read, weights, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        read(weights)
    assert "\n" not in str(error.value)


def test_options_are_checked():
    with pytest.raises(ValueError, match="discretisation must be one of zoh, bilinear"):
        s5_from_lindermanlab(S5, discretisation="euler")  # pyright: ignore
    with pytest.raises(ValueError, match="discretisation must be one of im, imex; got 'ex'"):
        linoss_from_rusch(LINOSS, discretisation="ex")  # pyright: ignore
    with pytest.raises(
        ValueError, match=re.escape("activation must be one of full_glu, half_glu1")
    ):
        s5_classifier_from_lindermanlab(model(), activation="relu")  # pyright: ignore
    with pytest.raises(ValueError, match="pool must be one of"):
        lru_classifier_from_minimal(model(), norm="layer", pool="first")  # pyright: ignore
    with pytest.raises(ValueError, match="norm must be one of batch, layer; got 'group'"):
        lru_classifier_from_minimal(model(), norm="group")  # pyright: ignore


def test_layers_of_different_sizes_are_refused():
    tree = model()
    other = model(seq=LRU | {name: np.zeros_like(a)[:2] for name, a in LRU.items() if "B" in name})
    tree["params"]["encoder"]["layers_1"] = other["params"]["encoder"]["layers_0"]
    with pytest.raises(ValueError, match="layers_1.seq: B_re"):
        read_lru_classifier(tree)
    few = {name: array[:2] if array.shape[0] == 4 else array for name, array in LRU.items()}
    few |= {name: few[name][:, :2] for name in ("C_re", "C_im")}
    tree["params"]["encoder"]["layers_1"] = model(seq=few)["params"]["encoder"]["layers_0"]
    with pytest.raises(ValueError, match="layers_1 has other sizes than layers_0"):
        read_lru_classifier(tree)
    with pytest.raises(ValueError, match="params.encoder.encoder gives 3"):
        narrow = {name: array[..., :2] if "B" in name else array for name, array in LRU.items()}
        narrow |= {name: narrow[name][:2] for name in ("C_re", "C_im", "D")}
        read_lru_classifier(model(seq=narrow))


def test_bfloat16_is_accepted():
    low = {name: jnp.asarray(array + 0.3, jnp.bfloat16) for name, array in LRU.items()}
    layer = lru_from_minimal(low)
    assert layer.nu_log.dtype == jnp.float32
    assert float(layer.nu_log[0]) == float(jnp.bfloat16(0.3))


class Tensor:
    """A stand-in for a torch tensor, which NumPy accepts only if detached and on the CPU."""

    def __init__(self, array: np.ndarray, ready: frozenset[str] = frozenset()):
        self.array, self.ready = array, ready

    def detach(self) -> "Tensor":
        return Tensor(self.array, self.ready | {"detached"})

    def cpu(self) -> "Tensor":
        return Tensor(self.array, self.ready | {"on the CPU"})

    def is_floating_point(self) -> bool:
        return jnp.issubdtype(self.array.dtype, jnp.floating)

    def float(self) -> "Tensor":
        return Tensor(self.array.astype(np.float32), self.ready)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        assert self.ready == {"detached", "on the CPU"} and self.array.dtype.kind in "fiuc"
        return self.array.astype(dtype or self.array.dtype)


def test_tensors_of_real_numbers_only():
    low = {name: jnp.asarray(array + 0.3, jnp.bfloat16) for name, array in LSTM.items()}
    tensors = {name: Tensor(np.asarray(array)) for name, array in low.items()}
    assert eqx.tree_equal(lstm_from_torch(tensors), lstm_from_torch(low))
    for kind in (np.int8, np.complex64):
        quantised = tensors | {"weight_hh_l0": Tensor(np.ones((20, 5), kind))}
        with pytest.raises(ValueError, match=f"must hold real numbers; got {np.dtype(kind)}"):
            lstm_from_torch(quantised)
