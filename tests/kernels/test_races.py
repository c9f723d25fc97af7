"""Interpreted kernels have no data race, and the detector finds those that are planted in them.

A kernel joins by an entry in `KERNELS`, and by one in `PLANTED` that takes away what orders its
accesses to memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu, tpu as pltpu

from rnnscale_kernels import (
    block_scan,
    diagonal_ssm,
    elementwise_scan,
    linear_scan,
    persistent_rnn,
)
from rnnscale_kernels.diagonal_ssm import _api, _mosaic_gpu_wide_plan
from rnnscale_kernels.linear_scan import _exchange, _mosaic_tpu_plan
from rnnscale_kernels.linear_scan._mosaic_gpu_plan import Division
from rnnscale_kernels.persistent_rnn import _plan
from rnnscale_kernels.persistent_rnn._mosaic_gpu_exchange import ThroughMemory
from rnnscale_kernels.persistent_rnn._plan import Plan
from rnnscale_kernels.testing import ScanArguments, find_races, to_jax


def run(function: Callable[..., Any], arguments: tuple, *, gradient: bool) -> Any:
    """The results of the function, and with `gradient` those of its backward pass."""
    if not gradient:
        return jax.jit(function)(*arguments)

    def both(*arguments):
        value, pull = jax.vjp(function, *arguments)
        return value, pull(jax.tree.map(jnp.ones_like, value))

    return jax.jit(both)(*arguments)


def scan(implementation: str, *, gradient: bool = True, **options: Any) -> Any:
    spec = ScanArguments(batch=(1,), channels=4, reset=True, **options)
    arrays = spec.arrays()
    a, b, h0 = (to_jax(arrays[name], "float32") for name in ("a", "b", "h0"))
    call = partial(linear_scan, implementation=implementation, reset=jnp.asarray(arrays["reset"]))
    return run(call, (a, b, h0), gradient=gradient)


def scan_in_parts(division: Division, **options: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Division, "of", lambda *_: division)
        return jax.block_until_ready(scan("mosaic_gpu_interpreted", **options))


def blocks(implementation: str, *, gradient: bool = True) -> Any:
    x, row = jnp.ones((1, 20, 4)), (jnp.full(4, 0.5), jnp.full(4, 0.2))
    call = partial(block_scan, implementation=implementation)
    return run(call, ((row, row), (x, x)), gradient=gradient)


def ssm(implementation: str, *, time: int = 130, inputs: int = 8, gradient: bool = True) -> Any:
    u = jnp.ones((1, time, inputs), "bfloat16")
    decay, b, c = jnp.full(20, 0.5), jnp.ones((20, inputs), u.dtype), jnp.ones((8, 20), u.dtype)
    reset = jnp.zeros(u.shape[:2], bool).at[0, 5].set(True)
    call = partial(diagonal_ssm, implementation=implementation, reset=reset)
    return run(call, (u, decay, b, c), gradient=gradient)


def network(implementation: str, *, slots: int, gradient: bool = True) -> Any:
    """A network whose two programs exchange their states, through this number of slots."""

    def elman(before, gates, extras):
        return (jnp.tanh(gates),)

    def with_slots(*arguments, plan_of=Plan.of):
        return plan_of(*arguments)._replace(gather_slots=slots, scatter_slots=slots)

    matrix, drive = jnp.ones((1, 70, 70), "bfloat16"), jnp.ones((1, 3, 1, 70), "bfloat16")
    call = partial(persistent_rnn, elman, implementation=implementation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_plan, "_clusters", lambda blocks: [2])
        patch.setattr(Plan, "of", with_slots)
        return jax.block_until_ready(
            run(call, (matrix, drive, (jnp.ones((1, 70)),)), gradient=gradient)
        )


def elementwise(implementation: str) -> Any:
    def step(weights, h, x):
        return jnp.tanh(weights * h + x)

    call = partial(elementwise_scan, step, implementation=implementation)
    options = {"reset": jnp.zeros((1, 40), bool).at[0, 5].set(True), "lengths": jnp.array([39])}
    arguments = jnp.ones(4), jnp.ones((1, 40, 4)), jnp.ones((1, 4))
    return run(partial(call, **options), arguments, gradient=True)


# A call of each family of kernels, and the platform that they are for.
KERNELS: dict[str, tuple[str, Callable[..., Any]]] = {
    "linear_scan on GPUs": ("cuda", partial(scan, "mosaic_gpu_interpreted", time=70)),
    "linear_scan on GPUs, time split in a program": (
        "cuda",
        partial(scan_in_parts, Division(64, warpgroups=2), time=40),
    ),
    "linear_scan on GPUs, time split in a cluster": (
        "cuda",
        partial(scan_in_parts, Division(64, cluster=2), time=40),
    ),
    "linear_scan on TPUs": ("tpu", partial(scan, "mosaic_tpu_interpreted", time=40)),
    "block_scan on GPUs": ("cuda", partial(blocks, "mosaic_gpu_interpreted")),
    "elementwise_scan on GPUs": ("cuda", partial(elementwise, "mosaic_gpu_interpreted")),
    "diagonal_ssm on GPUs": ("cuda", partial(ssm, "mosaic_gpu_interpreted")),
    "diagonal_ssm on TPUs": ("tpu", partial(ssm, "mosaic_tpu_interpreted", time=200)),
    "diagonal_ssm on GPUs, wide": (
        "cuda",
        partial(ssm, "mosaic_gpu_wide_interpreted", time=100, inputs=70),
    ),
    "persistent_rnn": ("cuda", partial(network, "mosaic_gpu_interpreted", slots=2)),
    "persistent_rnn, one slot": ("cuda", partial(network, "mosaic_gpu_interpreted", slots=1)),
}


@pytest.fixture(autouse=True)
def short_tiles(monkeypatch):
    """Several tiles and segments of time in short sequences."""
    monkeypatch.setattr(_mosaic_tpu_plan, "_VMEM_BYTES", 16 * 8 * 128 * 4 * 12)
    monkeypatch.setattr(_api, "_LONGEST", 64)
    monkeypatch.setattr(_mosaic_gpu_wide_plan, "_MOST_STAGES", 3)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_have_no_race(name):
    platform, call = KERNELS[name]
    assert find_races(call, platform=platform) == []


def skip(function: Callable[..., Any]) -> Callable[..., None]:
    return lambda *_, **__: None


def only_at_the_end(wait: Callable[..., Any]) -> Callable[..., Any]:
    """`wait_smem_to_gmem`, which the interpreter demands before a kernel ends, and nowhere else."""
    return lambda n, **options: None if n else wait(n, **options)


def all_parallel(params: Callable[..., Any]) -> Callable[..., Any]:
    """`CompilerParams` that declare the tiles of time independent of one another."""
    return lambda *, dimension_semantics, **options: params(
        dimension_semantics=["parallel"] * len(dimension_semantics), **options
    )


def as_if_of_two_slots(init: Callable[..., None]) -> Callable[..., None]:
    """An exchange that sends before its one slot has been read."""

    def changed(self: ThroughMemory, *arguments: Any) -> None:
        init(self, *arguments)
        self.slots = 2

    return changed


PLANTED = [
    ("linear_scan on GPUs", plgpu, "commit_smem", skip),
    ("linear_scan on GPUs", plgpu, "wait_smem_to_gmem", only_at_the_end),
    ("linear_scan on GPUs, time split in a program", Division, "within", lambda _: 1),
    ("linear_scan on GPUs, time split in a cluster", _exchange, "_meet", skip),
    ("linear_scan on TPUs", pltpu, "CompilerParams", all_parallel),
    ("block_scan on GPUs", plgpu, "commit_smem", skip),
    ("diagonal_ssm on GPUs", plgpu, "commit_smem", skip),
    ("diagonal_ssm on TPUs", pltpu, "CompilerParams", all_parallel),
    ("diagonal_ssm on GPUs, wide", plgpu, "commit_smem", skip),
    ("persistent_rnn, one slot", ThroughMemory, "__init__", as_if_of_two_slots),
]


@pytest.mark.parametrize(("name", "module", "attribute", "change"), PLANTED)
def test_planted_races_are_found(name, module, attribute, change, monkeypatch):
    monkeypatch.setattr(module, attribute, change(getattr(module, attribute)))
    platform, call = KERNELS[name]
    # Whether two programs of a cluster meet in a race depends on how their threads take turns.
    run = partial(find_races, partial(call, gradient=False), platform=platform)
    assert any(run() for _ in range(10))


def test_platforms_without_an_interpreter_are_an_error():
    with pytest.raises(ValueError, match="'cuda' or 'tpu', got 'cpu'"):
        find_races(lambda: None, platform="cpu")
