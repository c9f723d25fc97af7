"""The key-value store of jax's coordination service, through which processes talk to one another
without a device collective: that would wait for ever for a process that is gone."""

import itertools
import json
import math
from collections.abc import Mapping
from time import monotonic
from typing import Any

import jax
from jax._src import distributed  # the store has no public name

_numbers = itertools.count()


def new_key() -> str:
    """The next key of a sequence that is the same in all processes, if they all ask for keys in the
    same order; only the main thread may."""
    return f"rnnscale/{next(_numbers)}"


def put(key: str, value: Mapping[str, Any]) -> None:
    """Stores a value, which JSON must be able to hold, for all processes to read."""
    client: Any = distributed.global_state.client
    client.key_value_set(key, json.dumps(value), allow_overwrite=True)


def get(key: str, seconds: float) -> dict[str, Any] | None:
    """The value that any process stored under a key. Waits for it for up to `seconds`; None if it
    does not come."""
    client: Any = distributed.global_state.client
    until = monotonic() + seconds
    while (left := until - monotonic()) > 0:
        try:
            # One second at a time, since Python handles no signals during the call.
            return json.loads(client.blocking_key_value_get(key, math.ceil(1000 * min(left, 1.0))))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
    # A value that is there already is found however little time is left.
    try:
        return json.loads(client.key_value_try_get(key))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None
