"""What several processes agree on, through the key-value store of jax's coordination service.

A device collective would do too, but would wait for ever for a process that is gone. All processes
have to do these things in the same order.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from time import monotonic
from typing import Any

import jax
from jax._src import distributed  # the store has no public name

from rnnscale._errors import ProcessMissingError, UserError
from rnnscale.distributed._connect import process_count, process_index

_PACKAGES = ("rnnscale", "jax", "jaxlib", "equinox", "optax", "grain", "orbax-checkpoint")
# The errors that users are told of in one line.
_PASSED_ON = {"ValueError": ValueError, "TimeoutError": TimeoutError}

_numbers = itertools.count()


def on_first[T](action: Callable[[], T], *, minutes: float = 60.0, key: str | None = None) -> T:
    """Does something in process 0 only. Its result, or its error, is that of all processes.

    **Arguments:**

    - `action`: what to do; gives something that JSON can hold.
    - `minutes`: how long the others wait.
    - `key`: under which it is told. By default a new one, which only the main thread may take: it
        has to be the same in all processes.

    **Raises:** what `action` raises. In the other processes that is a `ValueError` or
    `TimeoutError` with the same message, and for any other error a `RuntimeError`.
    """
    if process_count() == 1:
        return action()
    key = key or new_key()
    if process_index() == 0:
        try:
            result = action()
        except Exception as error:
            tell(key, {"error": str(error), "type": type(error).__name__})
            raise
        tell(key, {"result": result})
        return result
    told = ask(key, 60 * minutes)
    if told is None:
        raise ProcessMissingError(
            f"process {process_index()} waited {minutes:g} minutes for process 0, in vain"
        )
    if "result" in told:
        return told["result"]
    if told["type"] in _PASSED_ON:
        raise _PASSED_ON[told["type"]](told["error"])
    raise RuntimeError(f"process 0 failed with {told['type']}: {told['error']}")


def decide[T](
    value: Any,
    decision: Callable[[list[Any]], T],
    *,
    minutes: float = 5.0,
    key: str | None = None,
) -> T:
    """Waits until all processes are here; then process 0 decides for them.

    **Arguments:**

    - `value`: what this process has to say; anything that JSON can hold.
    - `decision`: from the values of all processes, in their order, to the result. See `on_first`.
    - `minutes`: how long to wait for all to come.
    - `key`: see `on_first`.

    **Raises:** what `decision` raises, as in `on_first`; and `TimeoutError`, naming the processes
    that did not come.
    """
    if process_count() == 1:
        return decision([value])
    key = key or new_key()
    tell(f"{key}/{process_index()}", {"value": value})

    def gather() -> T:
        until = monotonic() + 60 * minutes
        told = [ask(f"{key}/{i}", until - monotonic()) for i in range(process_count())]
        missing = [str(i) for i, each in enumerate(told) if each is None]
        if missing:
            raise ProcessMissingError(
                f"of {process_count()} processes, these did not come within {minutes:g} minutes: "
                f"{', '.join(missing)}"
            )
        return decision([each["value"] for each in told if each is not None])

    return on_first(gather, minutes=minutes + 1, key=f"{key}/decision")


def agree(options: Mapping[str, Any]) -> None:
    """Checks that all processes were started with the same options and versions of packages.

    **Raises:** `ValueError`, in all of them, naming the first that differs and both values.
    """

    def compare(of_all: list[dict[str, Any]]) -> None:
        ours = of_all[0]
        for process, theirs in enumerate(of_all):
            for name in {**ours, **theirs}:
                if ours.get(name) != theirs.get(name):
                    raise UserError(
                        f"the processes disagree on {name}: process 0 has {ours.get(name)!r}, "
                        f"process {process} has {theirs.get(name)!r}; start them all alike"
                    )

    if process_count() > 1:
        versions = {f"the version of {name}": version(name) for name in _PACKAGES}
        decide({**versions, **options}, compare)


def new_key() -> str:
    """The same in all processes, and another one each time."""
    return f"rnnscale/{next(_numbers)}"


def tell(key: str, value: Mapping[str, Any]) -> None:
    """Makes a value known to all processes."""
    client: Any = distributed.global_state.client
    client.key_value_set(key, json.dumps(value), allow_overwrite=True)


def ask(key: str, seconds: float) -> dict[str, Any] | None:
    """What some process told under this key; None if none did within so many seconds."""
    client: Any = distributed.global_state.client
    until = monotonic() + seconds
    while (left := until - monotonic()) > 0:
        try:
            # A second at a time: Python handles no signal in between.
            return json.loads(client.blocking_key_value_get(key, math.ceil(1000 * min(left, 1.0))))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
    # What is there already is found however little time is left.
    try:
        return json.loads(client.key_value_try_get(key))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None
