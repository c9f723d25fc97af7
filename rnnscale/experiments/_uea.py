"""The table of the LinOSS paper: six sets of the UEA archive, five random splits."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rnnscale.experiments._experiment import Entry, Experiment, Figure, Result
from rnnscale.experiments._train import QUIET, train
from rnnscale.tasks import LINOSS_SEEDS

# The schedule of the authors: Adam at a constant rate, an evaluation each thousand steps, and the
# end after the eleventh in a row that is not better than all before. The model that is tested is
# that of the last evaluation which is as good as the best.
_SCHEDULE: Mapping[str, Any] = MappingProxyType(
    {
        "task": "uea",
        "steps": 100_000,
        "batch_size": 32,
        "schedule": "constant",
        "warmup": 0,
        "weight_decay": 0.0,
        "clip": 1e9,  # none
        "evaluate_every": 1000,
        "patience": 11,
        "keep_best": True,
        "ties": "last",
        **QUIET,
    }
)


class _Setting(NamedTuple):
    """What was best on the validation split in the authors' search, and what they report."""

    rate: float
    depth: int
    dim: int
    state_dim: int
    time: bool
    options: Mapping[str, Any]
    accuracy: float
    deviation: float


def _im(**more: Any) -> Mapping[str, Any]:
    return {"cell": {"discretisation": "im"}, **more}


def _blocks(number: int) -> Mapping[str, Any]:
    return {"cell": {"blocks": number}}


_IMEX = {"cell": {"discretisation": "imex"}}

# From their configurations of the final runs, `experiment_configs/repeats`, with the mean and the
# standard deviation of their stored outputs over the seeds.
_LINOSS: Mapping[str, _Setting] = {
    "EigenWorms": _Setting(1e-3, 2, 128, 64, True, _im(batch_size=4), 0.950, 0.044),
    "SelfRegulationSCP1": _Setting(1e-4, 6, 128, 256, True, _im(), 0.878, 0.026),
    "SelfRegulationSCP2": _Setting(1e-5, 6, 64, 256, True, _IMEX, 0.589, 0.081),
    "EthanolConcentration": _Setting(1e-5, 4, 16, 16, False, _im(), 0.299, 0.006),
    "Heartbeat": _Setting(1e-3, 6, 16, 16, True, _im(), 0.758, 0.037),
    "MotorImagery": _Setting(1e-5, 2, 128, 16, False, _im(), 0.600, 0.075),
}
_S5: Mapping[str, _Setting] = {
    "EigenWorms": _Setting(1e-3, 2, 128, 256, True, _blocks(8), 0.811, 0.037),
    "SelfRegulationSCP1": _Setting(1e-4, 4, 16, 64, False, _blocks(8), 0.899, 0.046),
    "SelfRegulationSCP2": _Setting(1e-4, 2, 64, 256, True, _blocks(8), 0.505, 0.026),
    "EthanolConcentration": _Setting(1e-3, 6, 16, 16, True, _blocks(2), 0.241, 0.043),
    "Heartbeat": _Setting(1e-4, 2, 64, 16, False, _blocks(4), 0.777, 0.055),
    "MotorImagery": _Setting(1e-4, 4, 128, 256, True, _blocks(4), 0.477, 0.055),
}
_LRU: Mapping[str, _Setting] = {
    "EigenWorms": _Setting(1e-3, 6, 128, 16, True, {}, 0.878, 0.028),
    "SelfRegulationSCP1": _Setting(1e-4, 6, 64, 256, True, {}, 0.826, 0.034),
    "SelfRegulationSCP2": _Setting(1e-3, 6, 128, 64, False, {}, 0.512, 0.036),
    "EthanolConcentration": _Setting(1e-4, 2, 128, 16, False, {}, 0.215, 0.021),
    "Heartbeat": _Setting(1e-4, 6, 128, 256, False, {}, 0.784, 0.067),
    "MotorImagery": _Setting(1e-3, 6, 64, 256, False, {}, 0.484, 0.050),
}
_DROPOUT: Mapping[str, float] = {"lru": 0.1}
_SOURCES: Mapping[str, str] = {
    "linoss": "Rusch and Rus 2025, outputs of tk-rusch/linoss",
    "s5": "Walker et al. 2024, outputs of log-neural-cdes",
    "lru": "Walker et al. 2024, outputs of log-neural-cdes",
}


def _entry(
    data_set: str, model: str, setting: _Setting, options: Mapping[str, Any], *, published: bool
) -> Entry:
    return Entry(
        f"{data_set}-{model}",
        {
            **_SCHEDULE,
            "data_set": data_set,
            "protocol": "linoss-time" if setting.time else "linoss",
            "model": model,
            "depth": setting.depth,
            "dim": setting.dim,
            "state_dim": setting.state_dim,
            "dropout": _DROPOUT.get(model, 0.05),
            "learning_rate": setting.rate,
            "recurrence_rate": setting.rate,
            **options,
        },
        Figure(setting.accuracy, f"{_SOURCES[model]}, ± {setting.deviation:g}")
        if published
        else None,
    )


def _entries() -> Iterator[Entry]:
    for data_set, setting in _LINOSS.items():
        yield _entry(data_set, "linoss", setting, setting.options, published=True)
        # No search was published for these two, so they have the sizes and rates of LinOSS.
        rest = {name: x for name, x in setting.options.items() if name != "cell"}
        for model in ("d-linoss", "s4d"):
            yield _entry(data_set, model, setting, rest, published=False)
        for model, settings in (("s5", _S5), ("lru", _LRU)):
            theirs = settings[data_set]
            yield _entry(data_set, model, theirs, theirs.options, published=True)


def measure(options: Mapping[str, Any], seed: int, folder: Path) -> Result | None:
    """As `train` for the accuracy. The data are in the folder `data_set` of the folder given."""
    given = dict(options)
    data_set = given.pop("data_set")
    place = str(Path(given.pop("folder")) / data_set)
    return train("accuracy", {**given, "folder": place}, seed, folder)


UEA = Experiment(
    name="uea",
    description="the table of LinOSS: six sets of the UEA archive with long series",
    entries=tuple(_entries()),
    measure=measure,
    metric="test accuracy",
    better="higher",
    differs=(
        "splits and hyperparameters are those of the authors, and so is when training ends and "
        "which model is tested. Blocks are ours: layer norm in place of batch norm, one dropout, a "
        "gate on the GELU of the layer's output, and a norm before the head. D-LinOSS and S4D have "
        "the hyperparameters of LinOSS. With 36 to 85 series to test and five seeds, differences "
        "below about three points mean nothing."
    ),
    minutes=0,
    seeds=LINOSS_SEEDS,
    folder=True,
)
