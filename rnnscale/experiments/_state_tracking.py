"""State tracking: small tasks with a state, tested on longer sequences than those of the training,
for all layers and cells with about the same number of parameters."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rnnscale import runs
from rnnscale.experiments._experiment import Entry, Experiment, Figure, Result
from rnnscale.experiments._train import QUIET, train
from rnnscale.runs import MODELS, TrainConfig

TRAINED, TESTED = 40, (64, 128, 256, 512)
# The papers that train on 40 steps test on up to 256.
JUDGED = 256

_SHARED: Mapping[str, Any] = MappingProxyType(
    {
        "seq_len": TRAINED,
        "block": "half-glu",
        "weight_decay": 0.0,
        "evaluate_every": 0,
        "sample_bytes": 0,
        **QUIET,
    }
)


def _setting(
    depth: int, parameters: int, steps: int, batch_size: int, rate: float
) -> Mapping[str, Any]:
    return {
        "depth": depth,
        "parameters": parameters,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": rate,
    }


# One layer tracks the state of parity and of a group, or it does not; the others get two.
_TASKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "parity": _setting(1, 22_000, 600, 128, 1e-2),
        "modular-arithmetic": _setting(2, 32_000, 2000, 64, 4e-3),
        "modular-arithmetic-brackets": _setting(2, 32_000, 2000, 64, 4e-3),
        "word-s3": _setting(1, 24_000, 800, 64, 4e-3),
        "word-a5": _setting(1, 32_000, 2000, 64, 4e-3),
        "word-s5": _setting(1, 48_000, 2000, 64, 4e-3),
        "k-hop": _setting(2, 32_000, 1000, 64, 4e-3),
        "recall-small": _setting(2, 32_000, 1000, 64, 4e-3),
        "selective-copy": _setting(2, 32_000, 1000, 64, 4e-3),
    }
)
_WORDS = ("word-s3", "word-a5", "word-s5")
_REGULAR = ("parity", "modular-arithmetic", *_WORDS)

# Models that can't be a causal layer of a residual block with embeddings of any width.
_WITHOUT = ("s5-bidirectional", "urnn", "clockwork")

# As the papers do, without the short convolution, which by itself solves short windows.
_NO_CONV: Mapping[str, Any] = MappingProxyType({"conv_width": None})
_POSITIVE: Mapping[str, Any] = MappingProxyType({"conv_width": None, "beta_max": 1.0})
# The lines of the table of each task: a model, and options of its layer where they differ.
_LINES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        **{name: (name, {}) for name in MODELS if name not in _WITHOUT},
        "mamba2": ("mamba2", {"head_dim": 8}),  # a divisor at every width
        "slstm": ("slstm", {"conv_width": None}),
        "deltanet": ("deltanet", _NO_CONV),
        "deltanet-positive": ("deltanet", _POSITIVE),
        "gated-deltanet": ("gated-deltanet", {**_NO_CONV, "beta_max": 2.0}),
        "gated-deltanet-positive": ("gated-deltanet", _POSITIVE),
        "deltaproduct": ("deltaproduct", _NO_CONV),
        "deltaproduct-positive": ("deltaproduct", _POSITIVE),
        "deltaproduct-4": ("deltaproduct", {**_NO_CONV, "substeps": 4}),
    }
)

_NONLINEAR = ("elman", "lstm", "gru", "slstm")
# Recurrences whose transitions have no negative eigenvalues.
_NOT_NEGATIVE = (
    *("linear-attention", "mingru", "rglru", "griffin", "gla", "mlstm", "mamba", "mamba2"),
    *("deltanet-positive", "gated-deltanet-positive", "deltaproduct-positive"),
)
_GRAZZI = "Grazzi et al. 2025"
_MERRILL = "Merrill et al. 2024"
_SIEMS = "Siems et al. 2025"


def _claim(task: str, line: str) -> Figure | None:
    """What the papers say, by theory or from their runs."""
    if line in _NOT_NEGATIVE and task in _REGULAR:
        return Figure(None, f"not solved, for want of negative eigenvalues: {_GRAZZI}")
    if line in ("lstm", "slstm", "deltanet") and task == "parity":
        return Figure(None, f"solved: {_GRAZZI}")
    if line in _NONLINEAR and task in _WORDS:
        return Figure(None, f"one nonlinear layer is enough: {_MERRILL}")
    if line in ("s4d", "s5", "lru") and task in ("word-a5", "word-s5"):
        return Figure(None, f"not solved at any fixed depth: {_MERRILL}")
    if line in ("deltanet", "deltaproduct") and task == "word-s3":
        outcome = "not solved by one layer" if line == "deltanet" else "solved by one layer"
        return Figure(None, f"{outcome}: {_SIEMS}, the authors' README")
    return None


def _entries() -> Iterator[Entry]:
    for task, setting in _TASKS.items():
        for line, (model, cell) in _LINES.items():
            options = {"task": task, "model": model, **_SHARED, **setting}
            if cell:
                options["cell"] = dict(cell)
            yield Entry(f"{task}-{line}", options, _claim(task, line))


def width(options: Mapping[str, Any], parameters: int) -> int:
    """The width, a multiple of 4, whose number of parameters is nearest to a given one.

    **Arguments:**

    - `options`: those of `TrainConfig`, with the task and without `dim`.
    """
    import jax

    from rnnscale.sharding import make_mesh

    mesh = make_mesh(devices=jax.devices()[:1])
    task = runs.load_task_of(TrainConfig.for_task(**{**options, "out": ""}))

    def count(dim: int) -> int:
        config = TrainConfig.for_task(**{**options, "dim": dim, "out": ""})
        model = runs.set_up(config, task, mesh).abstract_state().model
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))

    widths = range(4, 1025, 4)
    above = bisect_left(widths, parameters, key=count)
    nearest = widths[max(above - 1, 0) : above + 1]
    return min(nearest, key=lambda dim: abs(count(dim) - parameters))


def measure(options: Mapping[str, Any], seed: int, folder: Path) -> Result | None:
    """Trains a model of the size in the option `parameters`, then tests it on longer sequences. The
    figure is the lowest accuracy on those of up to 256 steps."""
    given = dict(options)
    given["dim"] = width(given, given.pop("parameters"))
    result = train("accuracy", given, seed, folder)
    if result is None:
        return None
    saved = runs.load_run(folder, batch_size=256)
    found = {steps: saved.evaluate("test", seq_len=steps)["accuracy"] for steps in TESTED}
    accuracies = {str(steps): x for steps, x in {TRAINED: result.figure, **found}.items()}
    return result._replace(
        figure=min(x for steps, x in found.items() if steps <= JUDGED),
        more={"width": given["dim"], **accuracies},
    )


STATE_TRACKING = Experiment(
    name="state-tracking",
    description="parity, arithmetic, groups, recall: trained on 40 steps, tested on 64 to 512",
    entries=tuple(_entries()),
    measure=measure,
    metric="test accuracy, the lowest of those at 64, 128 and 256 steps",
    better="higher",
    differs=(
        "all models have the same blocks (norm, layer, half GLU, residual). Their widths give them "
        "about the same number of parameters, see the table. They train for 600 to 2000 steps of "
        "64 or 128 sequences of up to 40 steps with AdamW, warm-up and cosine, where the papers "
        "have up to 100,000 steps of 256. Parity and arithmetic are scored at the last step, all "
        "others at each step that asks for something."
    ),
    minutes=650,
    seeds=(0,),
    solved=0.99,
    columns=("width", *(str(steps) for steps in (TRAINED, *TESTED))),
)
