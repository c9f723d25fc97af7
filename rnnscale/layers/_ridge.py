"""Ridge regression in double precision, from sums that add up over batches and devices."""

import logging
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import NDArray

from rnnscale import sharding
from rnnscale._checks import NonNegative, Size, check_arguments

_logger = logging.getLogger(__name__)

_PLATFORMS_WITHOUT_FLOAT64 = {"tpu"}


@dataclass(frozen=True, eq=False)
class RidgeSums:
    r"""The sums over data from which a ridge regression is solved. They add up over batches.

    Samples are pairs of features $h$ and targets $y$. With $a = (1, h, y)$ all sums are in
    $\sum a a^T$: the number of samples, their means, $H^T H$ and $H^T Y$.

    ```python
    from rnnscale.layers import RidgeSums, ridge_sums

    sums = RidgeSums.zeros(features=3, targets=1)
    for batch in (jnp.ones((5, 3)), jnp.zeros((4, 3))):
        sums = sums + ridge_sums(batch, batch[:, :1])
    weight, bias = sums.solve(ridge=1e-6)
    ```

    The sums are NumPy arrays, because JAX rounds its arrays to float32 outside `jax.enable_x64`. In
    float32 they would be useless: the usual ridges are below its rounding.

    **Attributes:**

    - `moments`: $\sum a a^T$, float64.
    - `features`: the number of features.

    **Raises:** `TypeError` if the sums are not float64.
    """

    moments: NDArray[np.float64]
    features: int

    def __post_init__(self):
        if not isinstance(self.moments, np.ndarray) or self.moments.dtype != np.float64:
            kind = np.asarray(self.moments).dtype
            raise TypeError(
                "RidgeSums are NumPy arrays of float64, because a regression on sums of lower "
                f"precision is dominated by rounding; got {kind}. Make them by ridge_sums."
            )

    @classmethod
    @check_arguments
    def zeros(cls, features: Size, targets: Size) -> "RidgeSums":
        """The sums over no samples."""
        size = 1 + features + targets
        return cls(np.zeros((size, size)), features)

    @property
    def count(self) -> int:
        """The number of samples."""
        return int(self.moments[0, 0])

    def __add__(self, other: "RidgeSums") -> "RidgeSums":
        """The sums over the samples of both."""
        if self.moments.shape != other.moments.shape or self.features != other.features:
            raise ValueError(f"RidgeSums of {self._sizes()} and of {other._sizes()} do not add up.")
        return RidgeSums(self.moments + other.moments, self.features)

    @check_arguments
    def solve(self, ridge: NonNegative) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        r"""The weight and the bias that minimise
        $\sum |W h + b - y|^2 + \mathrm{ridge} \, |W|^2$.

        **Arguments:**

        - `ridge`: at least 0. It is not multiplied by the number of samples, so with more samples
            it has less influence.

        **Returns:** `(weight, bias)`, of shapes `(targets, features)` and `(targets,)`.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if `ridge` is
        negative, there is no sample, or the sums are not finite or, with that ridge, singular in
        float64.
        """
        # Not imported with `rnnscale`, because it takes as long as all the rest.
        import scipy.linalg

        if self.count < 1:
            raise ValueError(
                "RidgeSums.solve: there is no sample to fit. Are all steps within the washout?"
            )
        if not np.isfinite(self.moments).all():
            raise ValueError("RidgeSums.solve: features or targets that count are not finite.")
        means = self.moments[0, 1:] / self.count
        # Centred, so that the ridge does not penalise the bias.
        centred = self.moments[1:, 1:] - self.count * np.outer(means, means)
        n = self.features
        system = centred[:n, :n] + ridge * np.eye(n)
        try:
            factor = scipy.linalg.cho_factor(system)
            smallest = np.min(np.diag(factor[0])) ** 2
        except scipy.linalg.LinAlgError:
            smallest = 0.0
        # The rounding error of the sums and the factors.
        rounding = n * np.finfo(np.float64).eps * np.max(np.diag(self.moments)[1 : n + 1])
        if smallest <= rounding:
            raise ValueError(
                f"the regression of {self._sizes()} on {self.count} samples is singular in float64 "
                f"with ridge={ridge}: make it larger than {rounding:.1g}."
            )
        weight = scipy.linalg.cho_solve(factor, centred[:n, n:]).T
        return weight, means[n:] - weight @ means[:n]

    def _sizes(self) -> str:
        return f"{self.features} features and {len(self.moments) - 1 - self.features} targets"


@check_arguments
def ridge_sums(
    features: Float[Array, "*axes features"],
    targets: Float[Array, "*axes targets"] | NDArray[np.floating],
    counted: Bool[Array, "*axes"] | None = None,
) -> RidgeSums:
    """The sums over a batch, multiplied and added in float64.

    It takes concrete arrays, not traced ones, because it switches JAX to double precision. Over the
    mesh that `jax.set_mesh` has set, each device sums its own rows, and one all-reduce sums over
    devices.

    A TPU has no float64. Features on a TPU are copied to the host and multiplied there, with one
    warning.

    **Arguments:**

    - `features`, `targets`: any leading axes. NumPy targets of float64 keep their precision.
    - `counted`: which samples count. Default all. The others may hold anything, including NaN.

    **Raises:** `TypeError` if an argument has another kind, `ValueError` if the leading axes
    differ.
    """
    axes = features.shape[:-1]
    counted = jnp.ones(axes, bool) if counted is None else counted
    if targets.shape[:-1] != axes or counted.shape != axes:
        raise ValueError(
            f"features of shape {features.shape} take targets with the same leading axes; got "
            f"shape {targets.shape}, and {counted.shape} for `counted`."
        )
    if _platform(features) in _PLATFORMS_WITHOUT_FLOAT64:
        _warn_that_sums_are_on_the_host()
        rows = _rows(np, np.asarray(features), np.asarray(targets), np.asarray(counted))
        rows = rows.reshape(-1, rows.shape[-1])
        return RidgeSums(rows.T @ rows, features.shape[-1])
    with jax.enable_x64(True):
        moments = _moments(jnp.asarray(features), jnp.asarray(targets), counted)
        return RidgeSums(np.asarray(moments), features.shape[-1])


@jax.jit
def _moments(
    features: Float[Array, "*axes features"],
    targets: Float[Array, "*axes targets"],
    counted: Bool[Array, "*axes"],
) -> Float[Array, "size size"]:
    rows = _rows(jnp, features, targets, counted)
    rows = sharding.constrain(rows, "batch", *(None,) * (rows.ndim - 1))
    axes = tuple(range(rows.ndim - 1))
    moments = jax.lax.dot_general(rows, rows, ((axes, axes), ((), ())))
    return sharding.constrain(moments, None, None)


def _rows(np_or_jnp, features, targets, counted):
    """`(1, h, y)` in float64, zero for samples that do not count."""
    ones = np_or_jnp.ones((*features.shape[:-1], 1))
    parts = (each.astype(np.float64) for each in (ones, features, targets))
    rows = np_or_jnp.concatenate(list(parts), axis=-1)
    return np_or_jnp.where(counted[..., None], rows, 0)


def _platform(x: Array) -> str:
    on_host = isinstance(x, np.ndarray)
    return jax.default_backend() if on_host else next(iter(x.devices())).platform


@cache
def _warn_that_sums_are_on_the_host() -> None:
    _logger.warning(
        "TPUs have no float64: features of a ridge regression are brought to the host, and their "
        "products are computed there"
    )
