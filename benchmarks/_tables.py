"""The tables of figures in the README and the guides, generated from the files in `results/`.

A page has the output of `TABLES[NAME]` between `<!-- figures: NAME -->` and `<!-- end -->`.
`python -m benchmarks readme` writes the tables into the pages, and a test compares, so that no
figure is typed by hand.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from . import _experiments
from ._benchmark import OURS, Row, case_name
from ._curves import FOLDER, picture
from ._headline import headline
from ._markdown import RESULTS, jobs, load, markdown, number

_BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n)(?s:.*?)(<!-- end -->)")


def pages() -> list[Path]:
    """The README and the guides, which may have tables."""
    root = RESULTS.parents[1]
    folders = (root / folder for folder in ("benchmarks", "kernels", "rnnscale"))
    return [root / "README.md", *(page for each in folders for page in each.rglob("*.md"))]


def blocks(text: str) -> list[str]:
    """The names of the tables in a page."""
    return [name for _, name, _ in _BLOCK.findall(text)]


def updated(text: str) -> str:
    """The page with all its tables generated again.

    **Raises:** `ValueError` if a block has a name that is not in `TABLES`.
    """
    if unknown := set(blocks(text)) - TABLES.keys():
        raise ValueError(f"no tables are called {sorted(unknown)}; there are {sorted(TABLES)}")
    return _BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def compared(
    name: str,
    title: Callable[[Row], str],
    key: Sequence[str],
    figure: str,
    unit: str,
    why: str = "",
    chosen: Callable[[Row], bool] = lambda row: True,
) -> str:
    """A line for each job: our figure, and the ratios of the others to it, in bold if below one.
    Below the table stand the reason `why` they take less, and how their jobs differ from ours.

    **Raises:** `ValueError` if somebody takes less and there is no reason.
    """
    ahead = False
    lines: list[tuple[str, str, str]] = []
    notes: dict[str, dict[str, None]] = {}
    for rows in jobs(filter(chosen, load(name)["rows"]), key).values():
        (ours,) = [row for row in rows if row["contender"] == OURS]
        if figure not in ours:  # it took too long or too much memory, and nothing is compared
            lines.append((title(ours), ours["stopped"], ""))
            continue
        others = []
        for row in rows:
            if row is ours:
                continue
            if "note" in row:
                layers = notes.setdefault(f"{row['contender']}: {row['note']}", {})
                layers[row["layer"].removesuffix("Cell")] = None
            if (ratio := row.get("ratio")) is None:
                others.append(f"{row['contender']}: {row.get('stopped') or row['error']}")
            elif row.get("ahead"):
                ahead = True
                others.append(f"**{row['contender']} {ratio:.2f}**")
            else:
                others.append(f"{row['contender']} {number(ratio)}")
        lines.append((title(ours), f"{number(ours[figure])} {unit}", ", ".join(others)))
    if ahead and not why:
        raise ValueError(f"{name}: a contender is ahead, and there is no reason")
    table = markdown(("job", "rnnscale", "time of the others, as a multiple of ours"), lines)
    if ahead:
        table += f"\nWhere others are ahead: {why}\n"
    listed = (f"- {note} ({', '.join(layers)})\n" for note, layers in notes.items())
    return table + ("\nHow the jobs differ:\n\n" + "".join(listed) if notes else "")


_UNROLLED = (
    "our loop over a cell is unrolled by eight steps, forward and backward, which takes longer to "
    "compile and less time to run. The plain loop of an LRU or S5 is the smallest program, and "
    "the slowest to run."
)
_SHAPE = ("layer", "batch", "time", "features", "units")


def shape(row: Row) -> str:
    layer = row["layer"].removesuffix("Cell")
    return f"{layer}, B={row['batch']} L={row['time']:,}, {row['features']} to {row['units']}"


_LAYERS_AHEAD = {
    "forward": (
        "PyTorch's LSTM is oneDNN's, with product and gates in one kernel. MinGRU computes the "
        "gates of all steps before the recurrence, which takes more memory than the plain loop. "
        "We do not know why Wilson-Cowan is behind: alone in a process the two loops take the same "
        "time. Elman and IndRNN are within the spread of the rounds."
    ),
    "gradient": (
        "the backward pass of IndRNN recomputes the pre-activations, which saves memory. The leak "
        "of rnn-jax is a compile-time constant, ours a parameter. Elman is within the spread of "
        "the rounds."
    ),
}


def layers(mode: str) -> str:
    return compared(
        "layers_cpu",
        shape,
        _SHAPE,
        "median_ms",
        "ms",
        _LAYERS_AHEAD[mode],
        chosen=lambda row: row["mode"] == mode,
    )


def curves(experiment: str) -> str:
    """The picture of the curves of an experiment, for a page in this folder; nothing before they
    were measured."""
    file = picture(FOLDER / f"{experiment}.json")
    if not file.is_file():
        return ""
    alt = f"{experiment}: the validation figure of each model over steps and processor time"
    return f"![{alt}]({file.relative_to(RESULTS.parent).as_posix()})\n"


def growth() -> str:
    why = (
        "PyTorch's LSTM is oneDNN's, whose products of a few rows are faster. One row of 1,024 "
        "steps appears in two sweeps: its two lines show the spread of a short job in few rounds."
    )
    return compared("growth_cpu", shape, ("sweep", *_SHAPE), "median_ms", "ms", why)


def parallel_bounds() -> str:
    """The bounds on the loop and on Newton's method by length, a line for each batch."""
    key = ("cell", "jacobian", "iterations", "batch")
    found = jobs(load("parallel_bounds_h100")["rows"], key)
    lengths = sorted({row["length"] for rows in found.values() for row in rows})

    def entry(row: Row) -> str:
        if not row["fits"]:
            return f"{number(row['loop_ms'])}, {row['peak_bytes'] / 1e9:,.0f} GB"
        newton = number(row["newton_ms"])
        return f"{number(row['loop_ms'])}, {f'**{newton}**' if row['ratio'] > 1 else newton}"

    lines = []
    for (cell, jacobian, iterations, batch), rows in found.items():
        entries = {row["length"]: entry(row) for row in rows}
        title = f"{cell}, {jacobian}", str(iterations), str(batch)
        lines.append((*title, *(entries[length] for length in lengths)))
    header = ("cell, Jacobian", "iterations", "rows")
    return markdown((*header, *(f"{length:,} steps" for length in lengths)), lines)


def parallel_time() -> str:
    def title(row: Row) -> str:
        return f"{row['cell']}, B={row['batch']} L={row['length']:,}, {row['mode']}"

    key = ("cell", "batch", "length", "mode")
    return compared("parallel_time_cpu", title, key, "median_ms", "ms")


def latency() -> str:
    def title(row: Row) -> str:
        rows = "1 row" if row["batch"] == 1 else f"{row['batch']} rows"
        return f"{row['layer']}, {rows}, {row['features']} to {row['units']}"

    why = (
        "most of a step is its matrix product. PyTorch's LSTM is faster for one row, its GRU is "
        "not. For 64 rows the two are equal on one core, and PyTorch gains more from two. "
        "`layer.step` of the LSTM is 3 % ahead for 64 rows, and that of the GRU within the spread "
        "of the rounds."
    )
    key = ("layer", "batch", "features", "units")
    return compared("latency_cpu", title, key, "p50_us", "us", why)


def large_batch() -> str:
    rows = [
        (
            row["rule"],
            str(row["batch"]),
            str(row["accumulation"]),
            str(row["steps"]),
            "diverged" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.3f}",
            "not reached" if row["tokens_to_target"] is None else f"{row['tokens_to_target']:,}",
            "yes" if row["keeps"] else "no",
        )
        for row in load("large_batch_cpu")["rows"]
    ]
    header = (
        *("learning rate", "batch", "accumulation", "steps"),
        *("bits per byte", "bytes to target", "keeps up"),
    )
    return markdown(header, rows)


def memory() -> str:
    found = jobs(load("memory_cpu")["rows"], ("layer", "length"))
    layers = dict.fromkeys(layer for layer, _ in found)
    lengths = sorted({length for _, length in found})
    rows = []
    for layer in layers:
        full, chunked = [], []
        for length in lengths:
            for row in found[layer, length]:
                into = full if row["chunk"] is None else chunked
                into.append(f"{row['temp_bytes'] / 1e6:,.1f}")
        rows += [(layer, "full sequence", *full), ("", "in chunks", *chunked)]
    return markdown(("layer", "", *(f"{length:,} steps" for length in lengths)), rows)


def resume() -> str:
    found = jobs(load("resume_cpu")["rows"], ("model",))
    rows = []
    for (model,), sessions in found.items():
        rows.append((model, *(f"{row['cpu_s']:.1f} s" for row in sessions)))
    return markdown(("model", "new run", "resumed run"), rows)


def _accuracy(rows: Sequence[Row]) -> Row:
    """The accuracies of a classifier as a row of an experiment, for `_experiments.Marks`."""
    accuracies = [row["accuracy"] for row in rows]
    return {
        "mean": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "ended": [row["ended"] for row in rows if "ended" in row],
    }


def _mean(accuracies: Sequence[Row], marks: _experiments.Marks) -> str:
    """The mean of such rows, marked if one of them is."""
    ended = [each for row in accuracies for each in row["ended"]]
    mean = statistics.mean(row["mean"] for row in accuracies)
    return f"{mean:.3f}{marks.mark({'ended': ended})}"


def watch() -> str:
    """The accuracy of each classifier on each person, and its mean."""
    rows = load("watch_cpu")["rows"]
    found = {key: _accuracy(each) for key, each in jobs(rows, ("library", "person")).items()}
    libraries, people = (list(dict.fromkeys(key)) for key in zip(*found, strict=True))
    marks = _experiments.Marks(found.values())
    lines = []
    for library in libraries:
        accuracies = [found[library, person] for person in people]
        figures = (marks.figure(each, 3) for each in accuracies)
        lines.append((library, *figures, _mean(accuracies, marks)))
    return marks.explained(markdown(("person left out", *map(str, people), "mean"), lines))


def own_series() -> str:
    """Accuracies of each classifier on data of one's own."""
    rows = [row for row in load("own_data_cpu")["rows"] if "accuracy" in row]
    return _by_data_set(jobs(rows, ("name", "library")))


# The classifiers of aeon that stand beside the layers.
_OTHERS = ("1-NN, DTW", "ROCKET")


def archive() -> str:
    """Accuracies of each layer, and of others on the same data sets."""
    others = [row for row in load("own_data_cpu")["rows"] if row["library"] in _OTHERS]
    layers = load("archive_cpu")["rows"]
    return _by_data_set(jobs(others, ("name", "library")) | jobs(layers, ("name", "layer")))


def _by_data_set(rows: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    """A line for each data set and a column for each classifier, with the mean over the seeds, and
    the mean over the sets in the last line."""
    found = {key: _accuracy(each) for key, each in rows.items()}
    names, columns = (list(dict.fromkeys(each)) for each in zip(*found, strict=True))
    marks = _experiments.Marks(found.values())
    lines = [(f"`{name}`", *(marks.figure(found[name, x], 3) for x in columns)) for name in names]
    lines.append(("mean", *(_mean([found[name, x] for name in names], marks) for x in columns)))
    return marks.explained(markdown(("data set", *columns), lines))


def s4d() -> str:
    """Processor time and memory of each way, and how it compares with ours."""
    rows = load("s4d_cpu")["rows"]
    lines = []
    for (batch, time, features, states, resets), each in jobs(
        rows, ("batch", "time", "features", "state_dim", "resets")
    ).items():
        ways = {row["contender"]: row for row in each}
        cells = (
            f"{way['processor_seconds']:.2f} s, {way['temporary_bytes'] / 1e6:,.0f} MB"
            if (way := ways.get(name))
            else "cannot"
            for name in (OURS, "pieces", "loop", "fft")
        )
        shape = f"{batch} of {time:,}, {features} features, N = {states}"
        lines.append((shape + (", resets" if resets else ""), *cells))
    return markdown(("sequences", OURS, "scan in pieces", "loop in pieces", "FFT"), lines)


def mamba() -> str:
    """Processor time of each contender, and how many times that of ours it is."""
    rows, lines = load("mamba_cpu")["rows"], []
    names = ("plain", "tree", "transformers", "mambapy", "memax")
    for (layer, batch, time, features, states, mode), each in jobs(
        rows, ("layer", "batch", "time", "features", "states", "mode")
    ).items():
        taken = {row["contender"]: row["processor_ms"] for row in each}
        others = (f"{taken[x] / taken[OURS]:.1f}" if x in taken else "" for x in names)
        shape = f"{batch} x {time:,}, {features} features, N = {states}"
        lines.append((layer, shape, mode, f"{taken[OURS]:,.0f} ms", *others))
    columns = ("loop", "tree", "transformers", "mambapy", "S6 of memax")
    return markdown(("layer", "sequences", "pass", OURS, *columns), lines)


def matrix_states() -> str:
    """Time of each contender, and how many times that of ours it is."""
    rows, lines = load("matrix_states_cpu")["rows"], []
    names = ("plain", "discretax", "memax", "transformers")
    for (delta, decay, *sizes, mode), each in jobs(
        rows, ("delta", "decay", "batch", "time", "heads", "key", "value", "mode")
    ).items():
        taken = {row["contender"]: row["median_ms"] for row in each}
        others = (f"{taken[x] / taken[OURS]:.1f}" if x in taken else "" for x in names)
        batch, time, heads, key, value = sizes
        shape = f"{batch} x {time:,}, {heads} heads of {key} x {value}"
        rule = "delta rule" if delta else "sum"
        lines.append((rule, decay, shape, mode, f"{taken[OURS]:.3g} ms", *others))
    columns = ("loop", "discretax", "memax", "transformers")
    return markdown(("update", "decay by", "sequences", "pass", OURS, *columns), lines)


def own_forecast() -> str:
    rows = [row for row in load("own_data_cpu")["rows"] if "nrmse" in row]
    marks = _experiments.Marks({"ended": [row["ended"]]} for row in rows)
    lines = [
        (
            str(row["seed"]),
            f"{row['nrmse']:.3f}{marks.mark({'ended': [row['ended']]})}",
            *(f"{row[name]:.3f}" for name in ("seasonal_nrmse", "persistence_nrmse")),
        )
        for row in rows
    ]
    header = ("seed", OURS, "the last season again", "no change")
    return marks.explained(markdown(header, lines))


def streams() -> str:
    return markdown(
        ("rows x steps in a batch", "batches", "order", "windows from zero", "state carried"),
        [
            (
                f"{row['batch_size']} x {row['seq_len']}",
                f"{row['steps']:,}",
                row["rows"],
                f"{row['bits_per_byte']['each window from zero']:.3f}",
                f"{row['bits_per_byte']['state carried on']:.3f}",
            )
            for row in load("streams_cpu")["rows"]
        ],
    )


def collectives() -> str:
    rows = []
    for row in load("scaling_cpu")["rows"]:
        if row["experiment"] != "length":
            continue
        moved = Counter[str]()
        counts = Counter[str]()
        for each in row["collectives"]:
            moved[each["kind"]] += each["bytes"]
            counts[each["kind"]] += each["count"]
        listed = ", ".join(f"{counts[kind]} {kind}, {moved[kind]:,} bytes" for kind in moved)
        rows.append((f"{row['work']['length']:,}", listed))
    header = "time steps over eight devices", "collectives of a device in a training step"
    return markdown(header, rows)


def one_machine() -> str:
    """A line for each form of the step: what it takes here, and what it would need on H100s."""
    rows = []
    for (model,), forms in jobs(load("one_machine_cpu")["rows"], ("model",)).items():
        alone = forms[0]["planned"]["flops"]
        for row in forms:
            plan = row["planned"]
            devices = math.prod(row["mesh"].values())
            rows.append(
                (
                    model,
                    row["form"],
                    f"{row['memory'] / 1e6:,.1f} MB",
                    f"{row['sent'] / 1e3:,.0f} kB",
                    f"{devices * plan['flops'] / alone:.2f}",
                    f"{row['processor_ms']:,.0f} ms",
                    f"{row['ratio']:.2f}",
                    f"{plan['memory'] / 1e6:,.1f} MB",
                    f"{plan['sent'] / 1e3:,.0f} kB",
                    f"{plan['bound_ms'][plan['bottleneck']]:.2f} ms, {plan['bottleneck']}",
                )
            )
    header = (
        *("model", "step", "memory of a device", "sent by it", "arithmetic of all"),
        *("processor time", "over one device"),
        *("memory of an H100", "sent by it", "lower bound on its time"),
    )
    return markdown(header, rows)


def loading() -> str:
    rows = []
    for row in load("data_cpu")["rows"]:
        if "overhead" not in row:
            continue
        low, median, high = (100 * each for each in row["overhead"])
        rows.append((row["kind"], row["name"], f"{median:+.0f} %", f"{low:+.0f} to {high:+.0f} %"))
    header = "processor time over plain Grain's; with workers, wall time"
    return markdown(("kind", "name", header, "quartiles"), rows)


def parallel_cells() -> str:
    """A line for each cell, before and after training, and each length."""
    lines = []
    for rows in jobs(load("parallel_cells_cpu")["rows"], ("cell", "trained", "time")).values():
        (row,) = [row for row in rows if row["suitable"]]
        found = {each["jacobian"]: each for each in rows}

        def needed(part: str, found: dict[str, Row] = found) -> str:
            """The iterations, in bold for the suitable part; what no row has is a dash."""
            if part not in found:
                return "-"
            each = found[part]
            text = f"{each['iterations']}" + ("*" if each["stepped"] else "")
            return f"**{text}**" if each["suitable"] else text

        errors = [row.get(f"{what}_error{width}") for width in ("", "_64") for what in _WHAT]
        errors.insert(2, row.get("loop_gradient_error"))
        lines.append(
            (
                f"{row['cell']}{', trained' if row['trained'] else ''}, L={row['time']:,}",
                "-inf" if row["lyapunov"] is None else f"{row['lyapunov']:.3f}",
                *map(needed, ("dense", "block", "diagonal")),
                f"{row['residual']:.0e}",
                f"{100 * row['stepped']:.0f} %",
                *("-" if each is None else f"{each:.0e}" for each in errors),
            )
        )
    header = ("job", "exponent", "dense", "block", "diagonal", "residual", "by steps")
    return markdown(
        (*header, "values", "gradient", "loop's gradient", "values, 64", "gradient, 64"), lines
    )


def kernels(device: str) -> str:
    """Every call compiled for a device, as it was and as it is."""
    sizes = ("batch", "time", "channels", "features", "states", "outputs", "units", "planes")
    names = ("operation", "cell", *sizes, "dtype", "numbers", "decay", "named", "mode")
    rows = [dict.fromkeys(names) | row for row in load(f"kernels_{device}")["rows"]]
    lines = []
    for found in jobs((row for row in rows if "bytes" in row), names).values():
        row = found[-1]
        operation = "" if row["cell"] else row["operation"]
        case = case_name({name: value for name, value in row.items() if value is not None})
        with_states = row["minimal_bytes_with_states"]
        on_chip = [kernel["shared_memory"] for kernel in row["kernels"]] or [row["vmem"] or 0]
        lines.append(
            (
                f"{operation} {case}, {row['mode']}".strip(),
                " to ".join(str(each["implementation"]) for each in _changes(found)),
                " to ".join(_figure(each["bytes_ratio"], 2) for each in found),
                "" if with_states == row["minimal_bytes"] else f"{row['bytes'] / with_states:.2f}",
                f"{max(on_chip) >> 10}",
                *_worst(row["kernels"]),
                " to ".join(_figure(each["predicted_us"], 0) for each in found),
                row["limit"],
            )
        )  # fmt: skip
    header = (
        *("call", "runs as", "bytes over the least", "with states", "KB on chip", "registers"),
        *("spills", "blocks a core", "waves", "predicted us", "limit"),
    )
    return markdown(header, lines)


def _worst(kernels: Sequence[Row]) -> tuple[str, ...]:
    """The most registers, all spills, the fewest blocks and the most waves of all kernels."""
    if not kernels:
        return ("",) * 4
    of_all = {name: [kernel[name] for kernel in kernels] for name in kernels[0]}
    figures = max(of_all["registers"]), sum(of_all["spills"])
    return tuple(map(str, (*figures, min(of_all["blocks_per_core"]), max(of_all["waves"]))))


def _changes(rows: Sequence[Row]) -> list[Row]:
    """The rows without those that run as the row before does."""
    return [
        row
        for before, row in zip([None, *rows], rows, strict=False)
        if before is None or row["implementation"] != before["implementation"]
    ]


def _figure(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f}"


_WHAT = ("value", "gradient")

TABLES: Mapping[str, Callable[[], str]] = {
    **_experiments.TABLES,
    **{
        f"curves-{name}": partial(curves, name)
        for name in ("digits", "digits-permuted", "mnist5k", "mnist5k-permuted", "bytes")
    },
    "headline": headline,
    "train-step": partial(compared, "train_step_cpu", shape, _SHAPE, "median_ms", "ms"),
    "layers-gradient": partial(layers, "gradient"),
    "layers-forward": partial(layers, "forward"),
    "growth": growth,
    "parallel-cells": parallel_cells,
    "compile-time": partial(compared, "compile_time_cpu", shape, _SHAPE, "seconds", "s", _UNROLLED),
    "kernels-h100": partial(kernels, "h100"),
    "kernels-v5e": partial(kernels, "v5e"),
    "start-up": partial(compared, "start_up_cpu", shape, _SHAPE, "seconds", "s", _UNROLLED),
    "parallel-bounds": parallel_bounds,
    "parallel-time": parallel_time,
    "latency": latency,
    "large-batch": large_batch,
    "memory": memory,
    "resume": resume,
    "watch": watch,
    "own-series": own_series,
    "archive": archive,
    "s4d": s4d,
    "mamba": mamba,
    "matrix-states": matrix_states,
    "own-forecast": own_forecast,
    "streams": streams,
    "collectives": collectives,
    "one-machine": one_machine,
    "loading": loading,
}
