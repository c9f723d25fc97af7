"""Batches that double at an equal number of tokens: how far it pays, and at which learning rates.

A language model of two S5 blocks on the bytes of Python's standard library. Every run has the same
tokens, the warm-up and the decay of its rate over all its steps, and larger batches are done in
parts of 32 rows, which is what `accumulation` is for. The rate is that of the smallest batch times
the factor by which the batch grew (`linear`), or the root of that (`sqrt`).

The figure is bits per byte of the same 128 windows of the validation set at the end, and after how
many steps the run was where the smallest batch was at half of its tokens. A run `keeps` up whose
end is within 3 % of that of the smallest batch: beyond the last one that does, more rows a step buy
nothing.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from rnnscale.data import evaluation_batches, stream
from rnnscale.runs import TrainConfig, set_up
from rnnscale.sharding import make_mesh, sharded_init
from rnnscale.tasks import Task, load_task
from rnnscale.training import evaluate, make_eval_step

from ._benchmark import Benchmark, Figure, Row, columns
from ._harness import Rows
from ._plots import legend, lines, styles

RULES = {"sqrt": 0.5, "linear": 1.0}
BASE_RATE = 4e-3
PART = 32
LOOKS = 16
WITHIN = 1.03
SIZES = {
    "tokens": 2**21,
    "batches": [8, 16, 32, 64, 128, 256, 512],
    "seq_len": 256,
    "dim": 64,
    "rows_held_out": 128,
}
QUICK = {"tokens": 2**12, "batches": [4, 64], "seq_len": 32, "dim": 8, "rows_held_out": 16}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, help=f"of each run; default: {SIZES['tokens']}")
    parser.add_argument("--batches", type=int, nargs="+", help="rows a step, doubling")
    parser.add_argument("--text", help="a folder with text, for other bytes")
    parser.add_argument("--seed", type=int, default=0)


def sizes(options: argparse.Namespace) -> dict[str, Any]:
    given = {"tokens": options.tokens, "batches": options.batches}
    given = {name: value for name, value in given.items() if value is not None}
    return (QUICK if options.quick else SIZES) | given


def about(options: argparse.Namespace) -> Row:
    return {**sizes(options), "seed": options.seed, "base_learning_rate": BASE_RATE}


def run(options: argparse.Namespace) -> Iterator[Row]:
    given = sizes(options)
    smallest, *others = sorted(given["batches"])
    task = load_task("bytes", seq_len=given["seq_len"], text=options.text)
    curve, seconds = train(task, given, smallest, BASE_RATE, options.seed)
    _, target = curve[len(curve) // 2 - 1]
    end = curve[-1][1]
    for batch in (smallest, *others):
        for rule, power in RULES.items():
            rate = BASE_RATE * (batch / smallest) ** power
            if batch != smallest:
                curve, seconds = train(task, given, batch, rate, options.seed)
            elif rule != next(iter(RULES)):
                continue
            steps, bits = curve[-1]
            reached = next((step for step, bits in curve if bits <= target), None)
            tokens = batch * given["seq_len"]
            yield {
                "rule": "smallest" if batch == smallest else rule,
                "batch": batch,
                "accumulation": parts(batch),
                "learning_rate": rate,
                "steps": steps,
                "tokens_per_second": (steps - 1) * tokens / seconds if steps > 1 else None,
                "bits_per_byte": bits if math.isfinite(bits) else None,
                "to_smallest": bits / end if math.isfinite(bits) else None,
                "steps_to_target": reached,
                "tokens_to_target": None if reached is None else reached * tokens,
                "keeps": bits <= WITHIN * end,
                "curve": [(step, bits if math.isfinite(bits) else None) for step, bits in curve],
            }


def parts(batch: int) -> int:
    return max(1, batch // PART)


def train(
    task: Task, given: dict[str, Any], batch: int, rate: float, seed: int
) -> tuple[list[tuple[int, float]], float]:
    """Bits per byte after some steps, up to the last; the seconds of all steps but the first."""
    steps = max(1, given["tokens"] // (batch * given["seq_len"]))
    config = TrainConfig.for_task(
        "bytes",
        out="nowhere",
        steps=steps,
        batch_size=batch,
        accumulation=parts(batch),
        seq_len=given["seq_len"],
        dim=given["dim"],
        state_dim=given["dim"],
        depth=2,
        learning_rate=rate,
        seed=seed,
    )
    # One device, so that the result depends on the batch and not on the machine.
    mesh = make_mesh(devices=jax.devices()[:1])
    setup = set_up(config, task, mesh)
    eval_step = make_eval_step(setup.loss)
    count = min(given["rows_held_out"], len(task.validation))
    held_out = Rows(count, task.validation.__getitem__)
    every = max(1, steps // LOOKS)
    curve, seconds = [], 0.0
    with jax.set_mesh(mesh), stream(setup.rows, batch, shardings=setup.layout) as batches:
        state = sharded_init(setup.init, jax.random.key(seed), mesh)
        start = time.perf_counter()
        for step in range(1, steps + 1):
            state, metrics = setup.train_step(state, next(batches))
            if step == 1:
                jax.block_until_ready(metrics)
                start = time.perf_counter()
            if step % every == 0 or step == steps:
                jax.block_until_ready(metrics)
                seconds += time.perf_counter() - start
                with evaluation_batches(held_out, min(PART, len(held_out))) as rows:
                    found = evaluate(eval_step, state.model, rows, metric=task.metric)
                assert found is not None
                curve.append((step, found["bits_per_byte"]))
                start = time.perf_counter()
    return curve, seconds


def plot(rows: Sequence[Row], figure: Figure) -> None:
    # The smallest batch is where both rules begin.
    first = [row for row in rows if row["rule"] == "smallest"]
    rows = [{**row, "rule": rule} for rule in RULES for row in first] + [
        row for row in rows if row["rule"] != "smallest"
    ]
    chosen = styles(RULES)
    figure.set_size_inches(9, 3.6)
    panels = figure.subplots(1, 2)
    lines(panels[0], rows, "batch", "bits_per_byte", chosen, by="rule")
    panels[0].set_title("at equal tokens")
    lines(panels[1], rows, "batch", "steps_to_target", chosen, by="rule")
    panels[1].set_yscale("log", base=2)
    panels[1].set_title("steps to the loss of the smallest batch at half its tokens")
    legend(figure)


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("rule", "batch", "accumulation", "learning_rate", "steps", "tokens_per_second"),
        *("bits_per_byte", "to_smallest", "steps_to_target", "tokens_to_target", "keeps"),
    ),
    plot=plot,
    add_options=add_options,
    about=about,
    rounds=None,
)
