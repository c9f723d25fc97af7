"""PyTorch's recurrent layers with the weights of our cells, and its parallel scan in mambapy.

Nothing here imports jax, so that a process in which only PyTorch runs has only PyTorch.
"""
# pyright: reportMissingImports=false

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

MODULES = {
    "ElmanRNNCell": "RNN",
    "LongShortTermMemoryCell": "LSTM",
    "GatedRecurrentUnitCell": "GRU",
}

CLASSES = 10

type Thunk = Callable[[], Any]


def here() -> bool:
    return importlib.util.find_spec("torch") is not None


def make(kind: str, idim: int, hdim: int) -> Any:
    """The layer as PyTorch initialises it. It runs on as many threads as PyTorch chooses."""
    import torch

    return getattr(torch.nn, MODULES[kind])(idim, hdim, batch_first=True)


def with_weights(module: Any, ours: Any) -> Any:
    """The layer with the weights of our cell, which has the same gates in the same order.

    PyTorch has a second vector of biases, which adds to the first but for the candidate of the GRU.
    """
    import torch

    bias = np.asarray(ours.bias).reshape(-1)
    second = np.zeros_like(bias)
    if isinstance(module, torch.nn.GRU):
        second[-ours.hdim :] = ours.candidate_bias
    new = {
        "weight_ih_l0": np.asarray(ours.input).reshape(-1, ours.idim),
        "weight_hh_l0": np.asarray(ours.recurrent).reshape(-1, ours.hdim),
        "bias_ih_l0": bias,
        "bias_hh_l0": second,
    }
    module.load_state_dict({name: torch.tensor(value) for name, value in new.items()})
    return module


def outputs(module: Any, xs: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return module(torch.tensor(np.asarray(xs)))[0].numpy()


def thunks(module: Any, xs: Any) -> dict[str, Thunk]:
    """The forward pass, and the gradient of a weighted sum of the outputs by the input and all
    parameters."""
    import torch

    inputs = torch.tensor(np.asarray(xs), requires_grad=True)
    weights = torch.randn(*xs.shape[:2], module.hidden_size)
    parameters = [inputs, *module.parameters()]

    def forward():
        with torch.no_grad():
            module(inputs)

    def gradient():
        torch.autograd.grad((module(inputs)[0] * weights).sum(), parameters)

    return {"forward": forward, "gradient": gradient}


def train_step(module: Any, readout: Any, xs: Any, labels: Any, rate: float) -> Callable[[], float]:
    """A step of Adam on the cross-entropy of a linear readout of the mean over time: `step()` does
    one and gives the loss before it. `readout`: the weights, classes by units."""
    import torch

    linear = torch.nn.Linear(module.hidden_size, len(readout))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(np.asarray(readout)))
        linear.bias.zero_()
    # One pass over each parameter, as XLA makes of optax; by default it takes several.
    learned = [*module.parameters(), *linear.parameters()]
    optimiser = torch.optim.Adam(learned, lr=rate, fused=True)
    inputs = torch.tensor(np.asarray(xs))
    targets = torch.tensor(np.asarray(labels), dtype=torch.int64)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(linear(module(inputs)[0].mean(1)), targets)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def scan_thunks(a: Any, b: Any) -> tuple[np.ndarray, dict[str, Thunk]]:
    """mambapy's parallel scan of h = a h + b over the second of three axes: its result, and what
    does it, forward and with the gradient by both."""
    import torch
    from mambapy.pscan import pscan

    # Its states have an axis more. The channels come last, which takes two thirds of the time that
    # a last axis of one does.
    a, b = (torch.tensor(np.asarray(x)[:, :, None], requires_grad=True) for x in (a, b))
    weights = torch.randn(*b.shape)

    def forward():
        with torch.no_grad():
            return pscan(a, b)

    def gradient():
        torch.autograd.grad((pscan(a, b) * weights).sum(), (a, b))

    return forward()[:, :, 0].numpy(), {"forward": forward, "gradient": gradient}
