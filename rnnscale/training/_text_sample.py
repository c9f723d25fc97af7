"""A text written by the model every few steps, to see what it has learned."""

from collections.abc import Callable, Mapping
from typing import Any

from rnnscale.distributed import process_index
from rnnscale.training._callback import Callback


class TextSample(Callback):
    """Lets the model write a text every few steps, and gives it to each writer, in process 0.

    **Arguments:**

    - `sample`: the text that the model of a state writes, for example by
        `rnnscale.models.generate`. All processes call it.
    - `writers`: functions of step and text, such as `print` or `TensorBoard.write_text`.
    - `every`: steps between two texts, at least 1.

    **Raises:** `ValueError` if `every` is below 1.
    """

    def __init__(
        self, sample: Callable[[Any], str], *writers: Callable[[int, str], Any], every: int
    ):
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self._sample = sample
        self._writers = writers
        self._every = every

    def on_dispatch(self, step: int, state: Any) -> Mapping[str, float] | None:
        if step % self._every:
            return None
        text = self._sample(state)
        if process_index() == 0:
            for write in self._writers:
                write(step, text)
        return {}  # no figures, but the time does not count as training
