"""How many bytes a device needs."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.stages import Compiled

from rnnscale.plan._share import Share
from rnnscale.runs import Setup


@dataclass(frozen=True)
class Memory:
    """Bytes of one device while it does a step.

    - `parameters`: of the model, whether they are trained or not.
    - `optimiser`: its state, and all else that is carried from step to step.
    - `batch`: of data.
    - `activations`: kept from the forward pass for the backward pass.
    - `temporaries`: all else, gradients among them.
    """

    parameters: int
    optimiser: int
    batch: int
    activations: int
    temporaries: int

    @property
    def total(self) -> int:
        return self.parameters + self.optimiser + self.batch + self.activations + self.temporaries


def estimated_memory(setup: Setup, share: Share) -> Memory:
    r"""$$M = P + O + B + A + T$$

    `P`, `O` and `B` are exact: the sizes of the arrays of the model, of the rest of the state and
    of the batch, each divided by the mesh axes that split it.

    `A` and `T` are traced, from the loss of what one device has: its rows, `batch / (data * fsdp *
    accumulation)`, its steps, `length / seq`, its states, `state_dim / tensor`. `A` are the arrays
    that its forward pass hands to its backward pass. `A + T` is the most that is alive at one time,
    gradients included, with the operations done in order and elementwise chains fused. To it come a
    whole copy of what `fsdp` splits, and with accumulation the sums of the gradients.
    """
    copies = gathered_bytes(setup)
    if setup.config.accumulation > 1:
        copies += gradient_bytes(setup)
    return Memory(
        **_arguments(setup),
        activations=share.saved,
        temporaries=max(0, share.peak - share.saved) + copies,
    )


def compiled_memory(setup: Setup, share: Share, compiled: Compiled) -> Memory:
    """What the compiler says. It knows no difference between activations and other temporaries:
    the former are as estimated."""
    sizes: Any = compiled.memory_analysis()
    exact = _arguments(setup)
    total = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )
    rest = max(0, total - sum(exact.values()))
    activations = min(share.saved, rest)
    return Memory(**exact, activations=activations, temporaries=rest - activations)


def gradient_bytes(setup: Setup) -> int:
    """Of the gradients that a device has before they are added up over devices."""
    return sum(map(_gathered, jax.tree.leaves(setup.abstract_state().model)))


def gathered_bytes(setup: Setup) -> int:
    """Of the parameters that `fsdp` splits, once they are gathered."""
    arrays = jax.tree.leaves(setup.abstract_state().model)
    return sum(_gathered(x) for x in arrays if _gathered(x) > _held(x))


def _arguments(setup: Setup) -> dict[str, int]:
    state = setup.abstract_state()
    parameters = _held(state.model)
    return {
        "parameters": parameters,
        "optimiser": _held(state) - parameters,
        "batch": _held(setup.abstract_batch()),
    }


def _held(tree: Any) -> int:
    """Bytes of a device's parts of the arrays."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _gathered(x: jax.ShapeDtypeStruct) -> int:
    """Bytes of a device's part of an array that is gathered over `fsdp`."""
    sharding: Any = x.sharding
    axes = [(each,) if isinstance(each, str) else each or () for each in sharding.spec]
    return _held(x) * (sharding.mesh.shape["fsdp"] if any("fsdp" in each for each in axes) else 1)
