"""What an experiment is, and how its seeds are run, stored and combined into rows of a table."""

import json
import logging
import math
import os
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rnnscale._errors import DivergedError, UserError
from rnnscale.runs import Ended

_log = logging.getLogger(__name__)

type Row = dict[str, Any]
"""A line of a table of results; see `Experiment.run`."""


class Figure(NamedTuple):
    """A published figure.

    - `value`: in the unit of the experiment's metric; `None` if the publication shows a curve
        without a number.
    - `source`: the publication.
    """

    value: float | None
    source: str


@dataclass(frozen=True)
class Entry:
    """One line of an experiment's table.

    - `name`: the name of the line.
    - `options`: the options of the measurement; for training, those of `TrainConfig`. The option
        `before` makes a curriculum: a list of runs to train first, each given by the options in
        which it differs.
    - `paper`: the published figure, if it can be compared with ours.
    """

    name: str
    options: Mapping[str, Any]
    paper: Figure | None = None


class Result(NamedTuple):
    """The result of one seed.

    - `figure`: the experiment's metric on the test split.
    - `parameters`: the number of parameters, including those that are not trained; for a reservoir,
        those of its readout; 0 for a baseline that has none.
    - `seconds`: the processor time of the training, with that of compiling, unless an earlier seed
        has left its programs.
    - `more`: other figures, by name.
    - `ended`: what ended the training: its last `"steps"`, `"patience"` after evaluations that did
        not improve, or its `"budget"` of processor time. A figure of a training that its budget cut
        short says little about the model. None if nothing was trained.
    - `sample`: a text by the trained model, if it is a model of text.
    """

    figure: float
    parameters: int
    seconds: float
    more: Mapping[str, float]
    ended: Ended | None = None
    sample: str | None = None


type Measure = Callable[[Mapping[str, Any], int, Path], Result | None]


@dataclass(frozen=True)
class Experiment:
    """A published task and the models that are compared on it.

    - `name`, `description`: the description is one line.
    - `entries`: the lines of its table.
    - `measure`: `(options, seed, folder) -> Result`, or `None` if a signal stopped it. Called again
        with the folder of a run that was stopped or killed, it continues that run.
    - `metric`, `better`: the name of the figure, and whether a `"higher"` or a `"lower"` one is
        better.
    - `differs`: in what the setting differs from that of the papers.
    - `minutes`: approximate processor time of everything, over all threads; 0 if it was not
        measured.
    - `seeds`: the seeds of the published table.
    - `solved`: the figure from which on the task counts as solved, if there is one.
    - `folder`: whether the user has to provide the data in a folder.
    - `columns`: the names of further figures to show.
    """

    name: str
    description: str
    entries: Sequence[Entry]
    measure: Measure
    metric: str
    better: Literal["higher", "lower"]
    differs: str
    minutes: float
    seeds: Sequence[int] = (0, 1, 2)
    solved: float | None = None
    folder: bool = False
    columns: Sequence[str] = ()

    def run(
        self,
        out: Path,
        *,
        seeds: Sequence[int] | None = None,
        rows: Sequence[str] | None = None,
        **given: Any,
    ) -> Iterator[Row | None]:
        """Measures each entry with each seed, and yields a row for each entry when it is complete.

        Results are stored in `out`, so a second call with the same options continues where the
        first one was stopped, and costs nothing if everything is there. With a longer budget of
        processor time (`cpu_minutes`), trainings that the shorter one stopped go on, except for
        those of a curriculum.

        **Arguments:**

        - `out`: the folder for the runs, `out/ENTRY/seed-S`.
        - `seeds`: seeds to use in place of the experiment's.
        - `rows`: names of entries, or patterns such as `"parity-*"`; all by default.
        - `given`: options that replace those of all entries.

        **Returns:** rows with `entry`, `options`, `parameters`, `seeds`, the `figures`, `seconds`
        and `ended` of each seed, their `mean` and `spread` (the standard deviation over the seeds;
        `None` for one seed), means of the other figures, and the published figure; for models of
        text also `sample`, a text by the model of the first seed. If a signal stopped it, `None`
        comes last. An entry of which a training diverges has no row.

        **Raises:** `ValueError` if an entry is unknown, there are no seeds, one is negative or
        occurs twice, or `out` is a file or has a run of other options, finished or not, or a result
        of another device or of other versions; `FloatingPointError` at the end, after all other
        rows, if trainings diverged.
        """
        seeds = self.seeds if seeds is None else seeds
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise UserError(
                f"seeds must be different numbers from 0 on, at least one; got {list(seeds)}"
            )
        if files := [each for each in (out, *out.parents) if each.is_file()]:
            raise UserError(f"out={out}: {files[0]} is a file; name a folder")
        diverged = []
        for entry in self._chosen(rows):
            options = {**entry.options, **given}
            results = []
            for seed in seeds:
                folder = folder_of(out, entry.name, seed)
                try:
                    result = _stored_or_measured(self.measure, options, seed, folder)
                except DivergedError as error:
                    diverged.append(f"{entry.name}, seed {seed}: {error}")
                    break
                if result is None:
                    yield None
                    return
                _log.info("%s, seed %d: %s %.4g", entry.name, seed, self.metric, result.figure)
                results.append(result)
            else:
                yield _row(entry, options, seeds, results)
        if diverged:
            raise DivergedError("; ".join(diverged))

    def solves(self, figure: float) -> bool:
        """Whether the task counts as solved with this figure. Never if `solved` is not given."""
        if self.solved is None:
            return False
        return figure <= self.solved if self.better == "lower" else figure >= self.solved

    def _chosen(self, rows: Sequence[str] | None) -> list[Entry]:
        if not rows:
            return list(self.entries)
        found = {each: [x for x in self.entries if fnmatchcase(x.name, each)] for each in rows}
        if unknown := sorted(each for each in rows if not found[each]):
            names = ", ".join(entry.name for entry in self.entries)
            known = textwrap.shorten(names, 1000, placeholder=" ...")
            raise UserError(f"{self.name} has no row {', '.join(unknown)}; it has {known}")
        return [x for x in self.entries if any(x in each for each in found.values())]


def folder_of(out: Path, entry: str, seed: int) -> Path:
    """Where `Experiment.run` keeps the runs of an entry with a seed."""
    return out / entry / f"seed-{seed}"


def _stored_or_measured(
    measure: Measure, options: Mapping[str, Any], seed: int, folder: Path
) -> Result | None:
    """The result in the folder. If there is none, it is measured and stored."""
    from rnnscale_kernels.testing import environment

    file = folder / "result.json"
    options, found = json.loads(json.dumps(options)), environment()
    here = {name: found[name] for name in ("platform", "device", "versions")}
    if file.is_file():
        stored = json.loads(file.read_text())
        check_same_options(folder, stored["options"], options)
        _check_same_environment(folder, stored.get("environment"), here)
        result = Result(**stored["result"])
        if result.ended != "budget" or not has_more_time(stored["options"], options):
            return result
    result = measure(options, seed, folder)
    if result is not None:
        partial = file.with_suffix(".partial")
        folder.mkdir(parents=True, exist_ok=True)
        document = {"options": options, "environment": here, "result": result._asdict()}
        partial.write_text(json.dumps(document) + "\n")
        os.replace(partial, file)
    return result


def _check_same_environment(
    folder: Path, stored: Mapping[str, Any] | None, here: Mapping[str, Any]
) -> None:
    """A table says of all its figures on which device and with which versions they were measured.

    **Raises:** `ValueError` if those of a result are others, or not known.
    """
    if stored is None:
        raise UserError(
            f"{folder} does not say where it was measured; choose another --out or delete it"
        )
    if differ := [name for name in here if stored.get(name) != here[name]]:
        changes = "; ".join(f"{x}: {stored.get(x)}, and here {here[x]}" for x in differ)
        raise UserError(
            f"{folder} was measured with other versions or on another device ({changes}); choose "
            "another --out or delete that folder"
        )


def has_more_time(stored: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether the budget of processor time is longer than the stored one."""
    minutes, before = (each.get("cpu_minutes") or math.inf for each in (given, stored))
    return minutes > before


def check_same_options(
    folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any], *, may_go_on: bool = True
) -> None:
    """Checks the options of a result or a run in the folder. If it may go on, its budget of
    processor time may be longer than before.

    **Raises:** `ValueError` if the options are others.
    """
    names = {n for n in {*stored, *given} if stored.get(n) != given.get(n)}
    if may_go_on and has_more_time(stored, given):
        names.remove("cpu_minutes")
    if names:
        changes = ", ".join(f"{n} was {stored.get(n)} and is {given.get(n)}" for n in sorted(names))
        raise UserError(
            f"{folder} is of other options ({changes}); choose another --out or delete that folder"
        )


def _row(
    entry: Entry, options: Mapping[str, Any], seeds: Sequence[int], results: Sequence[Result]
) -> Row:
    figures = [each.figure for each in results]
    return {
        "entry": entry.name,
        "options": dict(options),
        "parameters": results[0].parameters,
        "seeds": list(seeds),
        "figures": figures,
        "mean": statistics.mean(figures),
        "spread": statistics.stdev(figures) if len(figures) > 1 else None,
        "seconds": [each.seconds for each in results],
        "ended": [each.ended for each in results],
        "more": {
            name: statistics.mean(each.more[name] for each in results) for name in results[0].more
        },
        "paper": None if entry.paper is None else entry.paper._asdict(),
        **({} if results[0].sample is None else {"sample": results[0].sample}),
    }
