"""The cost of a step for one device, found by tracing the loss on that device's part of the arrays.

A device has its own rows, time steps and states. Tracing the loss on arrays of these sizes tells
what the device computes and keeps, without a device and without compiling.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import Jaxpr, Var
from jax.sharding import AbstractMesh, AxisType

from rnnscale._fields import trainable
from rnnscale.plan._jaxpr import KernelCall, flops, kernel_calls, peak_bytes, total_bytes
from rnnscale.plan._kernels import kernels
from rnnscale.runs import Setup, TrainConfig, set_up
from rnnscale.sharding import AXES, make_mesh
from rnnscale.tasks import Task


@dataclass(frozen=True)
class DeviceCost:
    """The cost of one micro-batch for one device: a step has `accumulation` of them.

    - `flops`: operations of matrix products and recurrences, forward and backward.
    - `saved_bytes`: arrays that the forward pass keeps for the backward pass.
    - `peak_bytes`: the most that is alive at one time, training state and batch excluded.
    - `kernel_calls`: the calls of the recurrences.
    - `chain`, `iterated_bytes`: see `Kernels`.
    """

    flops: int
    saved_bytes: int
    peak_bytes: int
    kernel_calls: tuple[KernelCall, ...]
    chain: int
    iterated_bytes: int


class CostModel:
    """The per-device costs of one run on any mesh. Meshes that give a device the same arrays share
    one trace. `iterations` are those of Newton's method, if the run uses it."""

    def __init__(self, config: TrainConfig, task: Task, iterations: int | None):
        self._config, self._task, self._iterations = config, task, iterations
        self._setups: dict[int, Setup] = {}
        self._costs: dict[Any, DeviceCost] = {}
        self._counted: dict[int, float] = {}

    def setup(self, mesh: AbstractMesh) -> Setup:
        """The parts of the run on a mesh without devices."""
        return self._one_device_setup(1).on(mesh)

    def device_cost(self, mesh: AbstractMesh) -> DeviceCost:
        """The cost of a step for one device of the mesh."""
        batch = {}
        for name, x in self.setup(mesh).abstract_batch().items():
            rows, *others = x.sharding.shard_shape(x.shape)
            shape = rows // self._config.accumulation, *others
            batch[name] = jax.ShapeDtypeStruct(shape, x.dtype)
        tensor = mesh.shape["tensor"]
        key = tensor, tuple(sorted((name, x.shape) for name, x in batch.items()))
        if key not in self._costs:
            setup = self._one_device_setup(tensor)
            self._costs[key] = _traced_cost(setup, batch, self._iterations)
        return self._costs[key]

    def counted_parameters(self, tensor: int) -> float:
        """The parameters of the traced model, as a multiple of those that a device holds after the
        axis `tensor` has divided them. Not 1 if it divides other things than states or heads."""
        if tensor not in self._counted:
            held = self.setup(abstract_mesh({"tensor": tensor})).abstract_state().model
            traced = self._one_device_setup(tensor).abstract_state().model
            self._counted[tensor] = _parameters_of_a_device(traced) / _parameters_of_a_device(held)
        return self._counted[tensor]

    def _one_device_setup(self, tensor: int) -> Setup:
        """The run on one device, with `1 / tensor` of the states."""
        if tensor not in self._setups:
            config = self._config.with_part_of_states(tensor)
            mesh = make_mesh(devices=jax.devices("cpu")[:1])
            self._setups[tensor] = set_up(config, self._task, mesh)
        return self._setups[tensor]


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """The mesh of these sizes, without devices."""
    counts = tuple(sizes.get(axis, 1) for axis in AXES)
    return AbstractMesh(counts, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _parameters_of_a_device(model: Any) -> int:
    leaves = jax.tree.leaves(eqx.filter(model, trainable(model)))
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)


def _traced_cost(
    setup: Setup, batch: dict[str, jax.ShapeDtypeStruct], iterations: int | None
) -> DeviceCost:
    model = jax.eval_shape(setup.init, jax.random.key(0)).model
    rows = batch["inputs"].shape[0]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))

    def loss(params, fixed, batch, keys):
        _, totals = setup.loss(eqx.combine(params, fixed), batch, keys)
        return totals["loss"]

    def residuals(model, batch, keys):
        params, fixed = eqx.partition(model, trainable(model))
        return jax.vjp(lambda params: loss(params, fixed, batch, keys), params)[1]

    def gradient(model, batch, keys):
        params, fixed = eqx.partition(model, trainable(model))
        return jax.grad(loss)(params, fixed, batch, keys)

    def traced(function) -> Jaxpr:
        return jax.make_jaxpr(function)(model, batch, keys).jaxpr

    forward, step = traced(residuals), traced(gradient)
    arguments = {*forward.invars, *forward.constvars}
    saved = (x for x in forward.outvars if isinstance(x, Var) and x not in arguments)
    found = kernels(step, iterations)
    return DeviceCost(
        flops(step, iterations),
        total_bytes(saved),
        peak_bytes(step),
        tuple(kernel_calls(step, iterations)),
        found.chain,
        found.iterated_bytes,
    )
