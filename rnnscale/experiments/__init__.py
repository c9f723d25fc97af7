"""Experiments of the papers, with their settings and their figures beside ours."""

from rnnscale.experiments._catalogue import EXPERIMENTS as EXPERIMENTS
from rnnscale.experiments._experiment import (
    Entry as Entry,
    Experiment as Experiment,
    Figure as Figure,
    Result as Result,
)
