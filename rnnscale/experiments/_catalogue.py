"""All experiments by name. A new one is added here."""

from collections.abc import Mapping
from types import MappingProxyType

from rnnscale.experiments._experiment import Experiment
from rnnscale.experiments._language import LANGUAGE
from rnnscale.experiments._long_range import LONG_RANGE
from rnnscale.experiments._memory import MEMORY
from rnnscale.experiments._pixels import PIXELS
from rnnscale.experiments._reservoirs import RESERVOIRS
from rnnscale.experiments._sequences import SEQUENCES
from rnnscale.experiments._state_tracking import STATE_TRACKING
from rnnscale.experiments._uea import UEA

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {
        each.name: each
        for each in (
            *MEMORY,
            *PIXELS,
            *SEQUENCES,
            *LANGUAGE,
            *RESERVOIRS,
            STATE_TRACKING,
            *LONG_RANGE,
            UEA,
        )
    }
)
