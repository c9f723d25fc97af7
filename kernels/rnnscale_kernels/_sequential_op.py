"""What an op whose steps run one after another exports to code that runs it on several devices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._operation import Operation


@dataclass(frozen=True)
class SequentialOp:
    """A recurrence that splits over rows and perhaps over channels, but not over time.

    - `canonical(*arguments, **options)`: `(primals, static)`, the primals and the static values of
        `operation`, from the arguments of the public function; raises that function's errors.
    - `operation`: the differentiable operation. Its public outputs are those of the function.
    """

    canonical: Callable[..., tuple[tuple, dict[str, Any]]]
    operation: Operation
