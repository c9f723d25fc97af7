from ._catalogue import EXPERIMENTS as EXPERIMENTS
from ._experiment import (
    Entry as Entry,
    Experiment as Experiment,
    Figure as Figure,
    Result as Result,
)
