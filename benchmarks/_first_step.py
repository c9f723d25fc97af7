"""Times the parts of a contender's first train step, in a process that has done nothing before.

    python -m benchmarks._first_step LIBRARY LAYER BATCH TIME FEATURES UNITS

`compile_time` and `start_up` run it for each contender. It prints seconds as JSON: `import_s` for
what a user imports; `make_s` until the device, the layer and the optimiser's state exist; `trace_s`
and `compile_s` for the step; and `run_s` for its first execution.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

type Row = dict[str, Any]

# What a user of each library imports to train a layer with it.
IMPORTS = {
    "rnnscale": ("jax", "optax", "rnnscale"),
    "textbook": ("jax", "optax"),
    "plain": ("jax", "optax"),
    "equinox": ("jax", "optax", "equinox"),
    "flax": ("jax", "optax", "flax.nnx"),
    "discretax": ("jax", "optax", "discretax.sequence_mixers"),
    "rnn-jax": ("jax", "optax", "rnn_jax.ssm", "rnn_jax.layers"),
    "memax": ("jax", "optax", "memax.equinox.semigroups.lru", "memax.equinox.set_actions.lstm"),
    "torch": ("torch",),
}


FRESH = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


def first_step(library: str, *job: str | int) -> dict[str, float]:
    """The seconds of each part, in a process of its own."""
    module = f"{__package__}._first_step"
    command = [sys.executable, "-m", module, library, *map(str, job)]
    done = subprocess.run(command, env={**os.environ, **FRESH}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{library}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(
    case: dict[str, Any], libraries: Sequence[str], rounds: int, total: Sequence[str]
) -> list[Row]:
    """A row for each library, with the medians of its parts and `seconds`, the sum of those in
    `total`. One that fails has an `error` instead, and the others go on; ours must not."""
    from rnnscale_kernels.testing import failure, orders

    from ._benchmark import OURS
    from ._harness import compared

    parts: dict[str, list[dict[str, float]]] = {name: [] for name in libraries}
    errors: dict[str, RuntimeError] = {}
    for names in orders(list(libraries), rounds):
        for name in names:
            if name in errors:
                continue
            try:
                parts[name].append(first_step(name, *case.values()))
            except RuntimeError as error:
                if name == OURS:
                    raise
                errors[name] = error
    sums = {name: [sum(each[p] for p in total) for each in parts[name]] for name in libraries}
    rows = []
    for name in libraries:
        if name in errors:
            rows.append({**case, "contender": name, **failure(errors[name])})
            continue
        row = {**case, "contender": name, "seconds": statistics.median(sums[name])}
        row |= {p: statistics.median(each[p] for each in parts[name]) for p in parts[name][0]}
        rows.append(row | compared(name, sums))
    return rows


class Clock:
    """Seconds since the last look."""

    def __init__(self):
        self.last = time.perf_counter()

    def __call__(self) -> float:
        before, self.last = self.last, time.perf_counter()
        return self.last - before


def main(library: str, layer: str, batch: int, length: int, features: int, units: int) -> None:
    clock = Clock()
    for module in IMPORTS[library]:
        importlib.import_module(module)
    figures = {"import_s": clock()}
    if library == "torch":
        figures |= with_torch(layer, (batch, length, features), units)
    else:
        figures |= with_jax(library, layer, (batch, length, features), units)
    print(json.dumps(figures))


def with_torch(layer: str, size: tuple[int, int, int], units: int) -> dict[str, float]:
    import torch  # pyright: ignore[reportMissingImports]

    from . import _torch

    inputs, labels = torch.randn(size), torch.randint(_torch.CLASSES, size[:1])
    clock = Clock()
    module = _torch.make(layer, size[-1], units)
    step = _torch.train_step(module, torch.randn(_torch.CLASSES, units), inputs, labels, 1e-3)
    figures = {"make_s": clock()}
    step()
    return figures | {"trace_s": 0.0, "compile_s": 0.0, "run_s": clock()}


def with_jax(library: str, layer: str, size: tuple[int, int, int], units: int) -> dict[str, float]:
    import jax
    import numpy as np

    if library == "rnn-jax":
        # Importing its layers turned it on.
        jax.config.update("jax_debug_nans", False)
    # A user has these imports behind them, or does without.
    from . import _peers
    from ._torch import CLASSES
    from .train_step import start

    forms = {"textbook": _peers.textbook, "plain": _peers.plain}
    maker = _peers.LIBRARIES["rnnscale" if library in forms else library]
    random = np.random.default_rng(0)
    xs = random.standard_normal(size, np.float32)
    labels = random.integers(CLASSES, size=size[:1], dtype=np.int32)
    clock = Clock()
    # The first that JAX is asked for: it looks for devices, which its user waits for too.
    xs, labels = jax.device_put((xs, labels))
    module = maker.make(layer, size[-1], units, jax.random.key(0))
    contender = _peers.Contender(forms.get(library, maker.run), module)
    step, state = start(contender, xs)
    jax.block_until_ready(state)
    figures = {"make_s": clock()}
    lowered = step.lower(state, xs, labels)
    figures["trace_s"] = clock()
    program = lowered.compile()
    figures["compile_s"] = clock()
    jax.block_until_ready(program(state, xs, labels))
    return figures | {"run_s": clock()}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
