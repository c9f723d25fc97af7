from ._catalogue import EXPERIMENTS as EXPERIMENTS
from ._curves import curves as curves
from ._experiment import (
    Entry as Entry,
    Experiment as Experiment,
    Figure as Figure,
    Result as Result,
)
