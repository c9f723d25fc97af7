"""Many processes that run one program: connecting, agreeing, stopping, and noticing a hang."""

from rnnscale.distributed._agree import (
    agree as agree,
    ask as ask,
    decide as decide,
    new_key as new_key,
    on_first as on_first,
    tell as tell,
)
from rnnscale.distributed._connect import (
    connect as connect,
    process_count as process_count,
    process_index as process_index,
)
from rnnscale.distributed._devices import use_cpu_devices as use_cpu_devices
from rnnscale.distributed._event import Event as Event
from rnnscale.distributed._stop import StopSignals as StopSignals
from rnnscale.distributed._watchdog import Watchdog as Watchdog
