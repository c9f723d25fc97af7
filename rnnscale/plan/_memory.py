"""The memory of a device during a step, estimated from a trace or read from the compiler."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.stages import Compiled

from rnnscale.plan._device_cost import DeviceCost
from rnnscale.runs import Setup
from rnnscale.sharding import mesh_axes


@dataclass(frozen=True)
class Memory:
    """Bytes of one device during a step.

    - `parameters`: of the model, trained or not.
    - `optimiser`: the optimiser state, and everything else that is carried from step to step.
    - `batch`: one batch of data.
    - `activations`: arrays that the forward pass keeps for the backward pass.
    - `temporaries`: everything else, such as gradients.
    """

    parameters: int
    optimiser: int
    batch: int
    activations: int
    temporaries: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.parameters + self.optimiser + self.batch + self.activations + self.temporaries


def estimated_memory(setup: Setup, cost: DeviceCost) -> Memory:
    r"""The analytic model

    $$M = P + O + B + A + T$$

    `P`, `O` and `B` (parameters, optimiser, batch) are exact: the sizes of the arrays, divided by
    the mesh axes that split them. `A` and `T` (activations, temporaries) come from the trace of
    `DeviceCost`: `A` are the residuals of the forward pass, and `A + T` is the peak of the gradient
    computation. `T` also includes a gathered copy of the parameters that `fsdp` splits and, with
    gradient accumulation, the sum of the gradients.
    """
    copies = gathered_bytes(setup)
    if setup.config.accumulation > 1:
        copies += gradient_bytes(setup)
    return Memory(
        **_state_and_batch(setup),
        activations=cost.saved_bytes,
        temporaries=max(0, cost.peak_bytes - cost.saved_bytes) + copies,
    )


def compiled_memory(setup: Setup, cost: DeviceCost, compiled: Compiled) -> Memory:
    """The memory of the compiled program. The compiler does not distinguish activations from other
    temporaries, so activations are those of the estimate, at most what the total leaves."""
    sizes: Any = compiled.memory_analysis()
    exact = _state_and_batch(setup)
    total = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )
    rest = max(0, total - sum(exact.values()))
    activations = min(cost.saved_bytes, rest)
    return Memory(**exact, activations=activations, temporaries=rest - activations)


def gradient_bytes(setup: Setup) -> int:
    """Bytes of the gradients on one device before they are summed over devices."""
    return sum(map(_gathered, jax.tree.leaves(setup.abstract_state().model)))


def gathered_bytes(setup: Setup) -> int:
    """Bytes of the parameters that `fsdp` splits, after they are gathered over it."""
    arrays = jax.tree.leaves(setup.abstract_state().model)
    return sum(_gathered(x) for x in arrays if _gathered(x) > _held(x))


def _state_and_batch(setup: Setup) -> dict[str, int]:
    state = setup.abstract_state()
    parameters = _held(state.model)
    return {
        "parameters": parameters,
        "optimiser": _held(state) - parameters,
        "batch": _held(setup.abstract_batch()),
    }


def _held(tree: Any) -> int:
    """Bytes of the arrays that one device holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _gathered(x: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array that one device holds after a gather over `fsdp`."""
    sharding: Any = x.sharding
    split = any("fsdp" in axes for axes in mesh_axes(sharding.spec))
    return _held(x) * (sharding.mesh.shape["fsdp"] if split else 1)
