"""Runs: from the options of `rnnscale train` to its summary, and back to the trained model."""

from rnnscale.runs._config import TrainConfig as TrainConfig
from rnnscale.runs._defaults import default_model as default_model
from rnnscale.runs._folder import RunFolder as RunFolder
from rnnscale.runs._load import SavedRun as SavedRun, load_run as load_run
from rnnscale.runs._models import MODELS as MODELS
from rnnscale.runs._run import run as run
from rnnscale.runs._setup import Setup as Setup, check_fits as check_fits, set_up as set_up
