"""What one device does in a step, traced without a device.

A device has its rows, its steps of time and its states. Its share is the same loss on arrays of
these sizes, so that tracing it says what it computes and what it keeps.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import Jaxpr, Var
from jax.sharding import AbstractMesh

from rnnscale._fields import trainable
from rnnscale.plan._walk import Recurrence, flops, peak, recurrences, size
from rnnscale.runs import Setup, TrainConfig, set_up
from rnnscale.sharding import make_mesh
from rnnscale.tasks import Task


@dataclass(frozen=True)
class Share:
    """What one device does for one of the parts that a step does its batch in.

    - `flops`: of its matrix products and recurrences, forward and backward.
    - `saved`: bytes that it keeps from the forward pass for the backward pass.
    - `peak`: the most bytes that it needs at one time, besides state and batch.
    - `recurrences`: its calls of our kernels.
    """

    flops: float
    saved: int
    peak: int
    recurrences: tuple[Recurrence, ...]


class Shares:
    """The shares of one run's devices on any mesh."""

    def __init__(self, config: TrainConfig, task: Task):
        self._config, self._task = config, task
        self._setups: dict[int, Setup] = {}
        self._traced: dict[Any, Share] = {}

    def setup(self, mesh: AbstractMesh) -> Setup:
        """The parts of the run on a mesh without devices."""
        return self._setup(1).on(mesh)

    def of(self, mesh: AbstractMesh) -> Share:
        """The share of a device of the mesh."""
        batch = {
            name: self._part(x.sharding.shard_shape(x.shape), x.dtype)
            for name, x in self.setup(mesh).abstract_batch().items()
        }
        states = mesh.shape["tensor"]
        key = states, tuple(sorted((name, x.shape) for name, x in batch.items()))
        if key not in self._traced:
            self._traced[key] = _share(self._setup(states), batch)
        return self._traced[key]

    def _part(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        rows, *others = shape
        return jax.ShapeDtypeStruct((rows // self._config.accumulation, *others), dtype)

    def _setup(self, parts: int) -> Setup:
        """The run on one device, with a part of the states."""
        if parts not in self._setups:
            states = max(1, self._config.state_dim // parts)
            config = dataclasses.replace(self._config, state_dim=states)
            one = make_mesh(devices=jax.devices("cpu")[:1])
            self._setups[parts] = set_up(config, self._task, one)
        return self._setups[parts]


def _share(setup: Setup, batch: dict[str, jax.ShapeDtypeStruct]) -> Share:
    model = jax.eval_shape(setup.init, jax.random.key(0)).model
    rows = batch["inputs"].shape[0]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))

    def total(params, fixed, batch, keys):
        _, totals = setup.loss(eqx.combine(params, fixed), batch, keys)
        return totals["loss"]

    def kept(model, batch, keys):
        params, fixed = eqx.partition(model, trainable(model))
        return jax.vjp(lambda params: total(params, fixed, batch, keys), params)[1]

    def differentiate(model, batch, keys):
        params, fixed = eqx.partition(model, trainable(model))
        return jax.grad(total)(params, fixed, batch, keys)

    def traced(function) -> Jaxpr:
        return jax.make_jaxpr(function)(model, batch, keys).jaxpr

    forward, whole = traced(kept), traced(differentiate)
    arguments = {*forward.invars, *forward.constvars}
    handed_over = (each for each in forward.outvars if isinstance(each, Var))
    saved = size(each for each in handed_over if each not in arguments)
    return Share(flops(whole), saved, peak(whole), tuple(recurrences(whole)))
