from ._collectives import (
    all_reduce as all_reduce,
    barrier as barrier,
    check_same as check_same,
    on_process_0 as on_process_0,
)
from ._connect import (
    connect as connect,
    end as end,
    process_count as process_count,
    process_index as process_index,
)
from ._devices import use_cpu_devices as use_cpu_devices
from ._event import Event as Event
from ._stop import StopSignals as StopSignals
from ._watchdog import Watchdog as Watchdog
