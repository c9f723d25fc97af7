"""Many processes that run one program: connecting, collectives on the host, stop signals, and a
watchdog for processes that hang."""

from rnnscale.distributed._collectives import (
    all_reduce as all_reduce,
    barrier as barrier,
    check_same as check_same,
    on_process_0 as on_process_0,
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
