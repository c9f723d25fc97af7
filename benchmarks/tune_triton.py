"""Finds the fastest launch configurations of the Triton kernels on this machine's GPU.

They are written to `_triton_configs.json` in the folder of the kernels, under this kind of device.
A width is the number of channels of all rows together, a power of two. Every case has about twelve
candidates, and compiling one takes about a second. `--quick` measures few cases and writes nothing.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rnnscale_kernels import Planar
from rnnscale_kernels._target import Target, local_platform
from rnnscale_kernels.linear_scan._kernels import Launch
from rnnscale_kernels.linear_scan._triton import Triton
from rnnscale_kernels.linear_scan._triton_config import CONFIGS, Case, Config, tuned_configs
from rnnscale_kernels.testing import take_turns

from ._benchmark import Benchmark, Row, Unavailable, columns

DTYPES, WIDTHS = ("float32", "bfloat16"), (4096, 8192, 32768)
# Numbers in an array: more than the cache of any GPU holds.
SIZE = 2**25
# Shared memory that every GPU since Ampere gives a program.
SHARED_MEMORY = 96 * 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: both")
    parser.add_argument("--widths", nargs="+", type=int, help=f"default: {WIDTHS}")


def run(options: argparse.Namespace) -> Iterator[Row]:
    if local_platform() != "cuda":
        raise Unavailable("it needs an NVIDIA GPU")
    target = Target.of("cuda")
    reason = Triton().unavailable(target)
    if reason is not None:
        raise Unavailable(reason)
    configs = tuned_configs().setdefault(str(target.device_kind), {})
    dtypes, widths = (DTYPES[:1], WIDTHS[:1]) if options.quick else (DTYPES, WIDTHS)
    for case in cases(options.dtypes or dtypes, options.widths or widths):
        name = case.name
        call, arguments = call_of(case, target)
        configs.pop(name, None)
        by_rule = microseconds(call, arguments, options.rounds)
        measured = {}
        for candidate in candidates(case):
            configs[name] = candidate
            measured[candidate] = microseconds(call, arguments, options.rounds)
        best = min(measured, key=measured.__getitem__)
        configs[name] = best
        if not options.quick:
            write()
        config = best._asdict()
        yield {"kernel": name, "us": measured[best], "rule_us": by_rule, "config": config}


def cases(dtypes: Sequence[str], widths: Sequence[int]) -> Iterator[Case]:
    for kernel in ("forward", "totals", "backward"):
        for planar, varying in ((False, True), (False, False), (True, True), (True, False)):
            for dtype in dtypes:
                for width in widths:
                    yield Case(kernel, planar, varying, (dtype, dtype), width)


def candidates(case: Case) -> Iterator[Config]:
    """Configurations to try: those whose pipeline fits into the shared memory of a program."""
    itemsize = jnp.dtype(case.dtypes[0]).itemsize
    for block, rows, stages, warps in itertools.product((32, 64, 128), (4, 8), (4, 6, 8), (1, 2)):
        # From 4 bytes a thread, which asynchronous copies need, to 4 channels a thread.
        fits = 4 // itemsize <= block / (32 * warps) <= 4
        if fits and (stages - 1) * rows * case.arrays * block * itemsize <= SHARED_MEMORY:
            yield Config(block, rows, stages, warps)


def call_of(case: Case, target: Target):
    """The kernel on rows of at most 1024 channels, and its arguments."""
    channels = min(case.width, 1024)
    batch, steps = case.width // channels, SIZE // case.width

    def number(time: int, dtype: Any, low: float = -1.0) -> Any:
        keys = jax.random.split(jax.random.key(0), 1 + case.planar)
        shape = (batch, time, channels)
        planes = [jax.random.uniform(k, shape, minval=low).astype(dtype) for k in keys]
        return Planar(*planes) if case.planar else planes[0]

    decay_dtype, dtype = case.dtypes
    # Magnitudes below one, so that no state overflows.
    a = number(steps if case.varying else 1, decay_dtype, low=0.0)
    a = jax.tree.map(lambda x: 0.7 * x, a)
    x, carry = number(steps, dtype), number(1, jnp.float32)
    launch = Launch(steps, inner=1, descending=case.kernel == "backward", target=target)
    kernels = Triton()
    if case.kernel == "forward":
        return partial(kernels.forward, launch=launch), (a, x, carry, None)
    if case.kernel == "totals":
        return partial(kernels.forward_totals, launch=launch), (a, x, None)
    h0 = jax.tree.map(lambda plane: plane[:, 0], carry)
    run = partial(kernels.backward, launch=launch, da_dtype=jnp.dtype(dtype))
    return run, (a, x, h0, None, x, carry)


def microseconds(run, arguments, rounds: int) -> float:
    """The best time of one call, in the configuration that the table has now."""
    compiled = jax.jit(lambda *arguments: run(*arguments)).lower(*arguments).compile()
    times, errors = take_turns({"": lambda: compiled(*arguments)}, rounds, queue=True)
    if errors:
        raise errors[""]
    return 1e6 * min(times[""])


def write() -> None:
    devices = {
        kind: {name: config._asdict() for name, config in sorted(cases.items())}
        for kind, cases in tuned_configs().items()
    }
    CONFIGS.write_text(json.dumps(devices, indent=1, sort_keys=True) + "\n")


BENCHMARK = Benchmark(
    run=run,
    table=columns("kernel", "us", "rule_us", "config"),
    add_options=add_options,
    rounds=5,
)
