"""The certificates of Newton's method during training, as figures and a warning."""

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rnnscale._checks import FloatDType, Size, check_arguments
from rnnscale.cells import Certificate
from rnnscale.distributed import process_index
from rnnscale.models import certificates
from rnnscale.training._callback import Callback
from rnnscale.training._loss import Batch

_log = logging.getLogger(__name__)

# Warn if more than this share of the steps was computed one by one.
_TOO_MANY = 0.5


class Certificates(Callback):
    """Measures how well Newton's method converges in the layers of the model that have `parallel`.

    It does so after the first step of a run and then after every `every` steps, with the new
    parameters and the batch of the step, whose rows start from a zero state. Each layer adds four
    figures to the metrics of the step:

    - `parallel_iterations/layer_0`: the number of iterations.
    - `parallel_residual/layer_0`: the largest relative residual when they ended.
    - `parallel_stepped/layer_0`: the share of all time steps that were then computed one by one.
    - `parallel_rows_stepped/layer_0`: the share of rows with such steps.

    It warns once if more than half of the time steps of a layer were computed one by one.

    ```
    report = Certificates(every=100)
    callbacks = [report, Log(print)]
    fit(state, train_step, report.watched(batches), steps=1000, callbacks=callbacks)
    ```

    **Arguments:**

    - `every`: steps between two measurements, at least 1.
    - `dtype`: the dtype in which inputs that are not tokens enter the model; their own if None.
    - `chunk`: the time steps of a chunk, at least 1, if the loss or the model runs in chunks: only
        the first chunk of each row is measured, since more may not fit into memory. None for all
        steps.
    - `accumulation`: number of parts into which a step splits its batch, at least 1: only the rows
        of one part are measured.

    **Raises:** `ValueError` if a number is below 1.
    """

    @check_arguments
    def __init__(
        self,
        *,
        every: Size,
        dtype: FloatDType | None = None,
        chunk: Size | None = None,
        accumulation: Size = 1,
    ):
        self._every = every
        self._measure = eqx.filter_jit(partial(_figures, dtype, chunk, accumulation))
        self._batch: Batch | None = None
        self._warned = False

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, for `fit`. The callback keeps the last one to measure it."""
        for batch in batches:
            self._batch = batch
            yield batch

    def on_dispatch(self, step: int, state: Any) -> Mapping[str, float] | None:
        if step != 1 and step % self._every:
            return None
        if self._batch is None:
            raise ValueError("Certificates has seen no batch: give fit its watched(batches)")
        measured: Any = jax.device_get(self._measure(state.model, self._batch))
        figures = {name: float(value) for name, value in measured.items()}
        self._warn(figures)
        return figures

    def _warn(self, figures: Mapping[str, float]) -> None:
        shares = {n: x for n, x in figures.items() if n.startswith("parallel_stepped/")}
        if self._warned or not shares or process_index() != 0:
            return
        name, share = max(shares.items(), key=lambda each: each[1])
        if share <= _TOO_MANY:
            return
        self._warned = True
        layer = name.partition("/")[2]
        if figures[f"parallel_iterations/{layer}"]:
            _log.warning(
                "Newton's method failed on %.0f %% of the time steps of %s, which were then taken "
                "one by one: the results are right, but parallel costs more than it saves. Leave "
                "it out, or name another Jacobian or shorter chunks",
                100 * share,
                layer.replace("_", " "),
            )
        else:
            _log.warning(
                "%s runs step by step, since parallel='auto' has nothing that suits it: name a "
                "Jacobian, or leave parallel out",
                layer.replace("_", " "),
            )


def _figures(
    dtype: Any, chunk: int | None, accumulation: int, model: Any, batch: Batch
) -> dict[str, Float[Array, ""]]:
    arrays = {name: jnp.asarray(x)[::accumulation] for name, x in batch.items()}
    xs, reset, lengths = (arrays.get(name) for name in ("inputs", "reset", "lengths"))
    assert xs is not None
    xs = xs[:, :chunk]
    if dtype is not None and jnp.issubdtype(xs.dtype, jnp.floating):
        xs = xs.astype(dtype)
    reset = None if reset is None else reset[:, :chunk]
    rows, time = xs.shape[:2]
    lengths = jnp.full(rows, time) if lengths is None else jnp.minimum(lengths, time)
    found = certificates(model, xs, reset=reset, lengths=lengths)
    return {
        f"parallel_{figure}/{name.replace(' ', '_')}": value
        for name, certificate in found.items()
        for figure, value in _summary(certificate, lengths).items()
    }


def _summary(certificate: Certificate, lengths: Array) -> dict[str, Float[Array, ""]]:
    return {
        "iterations": jnp.max(certificate.iterations),
        "residual": jnp.max(certificate.residual),
        "stepped": jnp.sum(certificate.stepped) / jnp.maximum(jnp.sum(lengths), 1),
        "rows_stepped": jnp.mean(certificate.stepped > 0),
    }
