"""Experiments of papers: their settings, our figures and the published ones."""

from rnnscale.experiments._catalogue import EXPERIMENTS as EXPERIMENTS
from rnnscale.experiments._experiment import (
    Entry as Entry,
    Experiment as Experiment,
    Figure as Figure,
    Result as Result,
)
