"""What an experiment is, and how its seeds are run, kept and put together."""

import json
import logging
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rnnscale._errors import UserError

_log = logging.getLogger(__name__)

type Row = dict[str, Any]
"""An entry of a table of results; see `Experiment.run`."""


class Figure(NamedTuple):
    """What a publication reports.

    - `value`: in the unit of the experiment's metric; None where a figure shows it, without a
        number.
    - `source`: where it stands.
    """

    value: float | None
    source: str


@dataclass(frozen=True)
class Entry:
    """One line of an experiment's table.

    - `name`: of the line.
    - `options`: what it is run with; for training, options of `TrainConfig`. There `before` makes a
        curriculum: a list of runs that come first, each with the options that are others in it.
    - `paper`: what was published for it, if that can be put beside ours.
    """

    name: str
    options: Mapping[str, Any]
    paper: Figure | None = None


class Result(NamedTuple):
    """Of one seed.

    - `figure`: the experiment's metric, on the test split.
    - `parameters`: how many numbers the model has, those that stay as they are among them; of a
        reservoir those of its readout.
    - `seconds`: of training.
    - `more`: other figures.
    """

    figure: float
    parameters: int
    seconds: float
    more: Mapping[str, float]


type Measure = Callable[[Mapping[str, Any], int, Path], Result | None]


@dataclass(frozen=True)
class Experiment:
    """A task that was published, with the entries that are put beside one another.

    - `name`, `description`: of the experiment; the description is one line.
    - `entries`: the lines of its table.
    - `measure`: `(options, seed, folder) -> Result`, or None where a signal stopped it. Called
        again with the folder of a run that was stopped or killed, it goes on with that.
    - `metric`, `better`: the name of the figure, and which is better: the `"higher"` or the
        `"lower"`.
    - `differs`: where the setting is not that of the papers.
    - `seeds`: those of the published table.
    - `minutes`: about how long all of it takes on two cores.
    - `solved`: the figure from which on the task counts as solved, if there is one.
    - `folder`: whether the data are in a folder of the user's.
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

    def run(
        self,
        out: Path,
        *,
        seeds: Sequence[int] | None = None,
        only: Sequence[str] | None = None,
        **given: Any,
    ) -> Iterator[Row | None]:
        """Runs each entry with each seed, and gives a row for each entry when its seeds are done.

        What was measured before is read from `out`, so that a second call with the same options
        goes on where the first one was stopped, and costs nothing when all is there.

        **Arguments:**

        - `out`: a folder for the runs, `out/ENTRY/seed-S`.
        - `seeds`: instead of the experiment's.
        - `only`: names of entries; all by default.
        - `given`: options that replace those of all entries.

        **Returns:** rows with `entry`, `options`, `parameters`, `seeds`, a figure and the seconds
        of each seed, the `mean`, the `spread` (the standard deviation over the seeds; None for one
        seed), means of the other figures, and what was published. Then None, where a signal stopped
        it.

        **Raises:** `ValueError` for an unknown entry, seeds that are none or come twice, and where
        `out` holds a result of other options.
        """
        seeds = self.seeds if seeds is None else seeds
        if not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"seeds must be different numbers, at least one; got {list(seeds)}")
        names = [entry.name for entry in self.entries]
        if unknown := set(only or ()) - set(names):
            raise UserError(
                f"{self.name} has no entry {', '.join(sorted(unknown))}; it has {', '.join(names)}"
            )
        for entry in self.entries:
            if only and entry.name not in only:
                continue
            options = {**entry.options, **given}
            results = []
            for seed in seeds:
                folder = out / entry.name / f"seed-{seed}"
                result = _kept(self.measure, options, seed, folder)
                if result is None:
                    yield None
                    return
                _log.info("%s, seed %d: %s %.4g", entry.name, seed, self.metric, result.figure)
                results.append(result)
            yield _row(entry, options, seeds, results)


def _kept(measure: Measure, options: Mapping[str, Any], seed: int, folder: Path) -> Result | None:
    """The result in the folder, which is measured first where there is none."""
    file = folder / "result.json"
    options = json.loads(json.dumps(options))
    if file.is_file():
        stored = json.loads(file.read_text())
        if stored["options"] != options:
            raise UserError(
                f"{folder} holds a result of other options "
                f"({_changed(stored['options'], options)}); choose another --out, or delete that "
                "folder"
            )
        return Result(**stored["result"])
    result = measure(options, seed, folder)
    if result is not None:
        partial = file.with_suffix(".partial")
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"options": options, "result": result._asdict()}) + "\n")
        os.replace(partial, file)
    return result


def _changed(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    names = sorted(n for n in {*stored, *asked} if stored.get(n) != asked.get(n))
    return ", ".join(f"{n} was {stored.get(n)} and is {asked.get(n)}" for n in names)


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
        "more": {
            name: statistics.mean(each.more[name] for each in results) for name in results[0].more
        },
        "paper": None if entry.paper is None else entry.paper._asdict(),
    }
