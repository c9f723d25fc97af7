"""The initial parameters of S5: the HiPPO-LegS system, its diagonal form, and maps in its basis."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._checks import Size, check_arguments

type OutputInit = Literal["lecun", "complex_normal"]

_EXACT = jax.lax.Precision.HIGHEST


@check_arguments
def hippo_legs(state_dim: Size) -> NDArray[np.float64]:
    r"""The state matrix that compresses the past onto scaled Legendre polynomials:

    $$A_{nk} = -\begin{cases}\sqrt{(2n+1)(2k+1)} & n > k\\ n + 1 & n = k\\ 0 & n < k\end{cases}$$

    **Raises:** `TypeError` or `ValueError` unless `state_dim` is an integer of at least 1.

    Gu et al., *HiPPO: Recurrent Memory with Optimal Polynomial Projections*, 2020.
    """
    index = np.arange(state_dim, dtype=np.float64)
    root = np.sqrt(2 * index + 1)
    return -np.tril(np.outer(root, root), -1) - np.diag(index + 1)


@check_arguments
def hippo_normal(
    state_dim: Size,
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    r"""Eigenvalues and orthonormal eigenvectors of HiPPO-N, the normal part of HiPPO-LegS.

    $A_N = A + p p^\top$ with $p_n = \sqrt{n + 1/2}$ is $-\tfrac12 I$ plus a skew-symmetric $S$,
    so $-iS$ is Hermitian: its eigenproblem is well conditioned and gives a unitary $V$ with
    $A_N = V \Lambda V^H$. Computing the eigenvalues of $A$ itself fails from about 30 states on.

    **Returns:** `(eigenvalues, vectors)` of shapes (state,) and (state, state) in double precision,
    by ascending imaginary part: the first half has negative imaginary parts, and its conjugates
    follow in reverse order.

    **Raises:** `TypeError` or `ValueError` unless `state_dim` is an integer of at least 1.

    Gu et al., *On the Parameterization and Initialization of Diagonal State Space Models*, 2022.
    """
    p = np.sqrt(np.arange(state_dim) + 0.5)
    normal = hippo_legs(state_dim) + np.outer(p, p)
    real = np.mean(np.diagonal(normal))
    skew = normal - np.diag(np.diagonal(normal))
    imaginary, vectors = np.linalg.eigh(-1j * skew)
    return (real + 1j * imaginary).astype(np.complex128), vectors.astype(np.complex128)


def half_of_hippo(block_dim: int) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Eigenvalues of HiPPO-N with negative imaginary parts, and their vectors as columns."""
    eigenvalues, vectors = hippo_normal(block_dim)
    return eigenvalues[: block_dim // 2], vectors[:, : block_dim // 2]


def input_map(
    key: PRNGKeyArray, idim: int, state_dim: int, vectors: NDArray[np.complex128]
) -> tuple[Float[Array, "state idim"], Float[Array, "state idim"]]:
    """An initial B̃ = Vᴴ B, as two planes, with random real B and block-diagonal V."""
    b = jax.nn.initializers.lecun_normal()(key, (state_dim, idim), jnp.float32)
    blocks = b.reshape(-1, vectors.shape[0], idim)

    def times(v: NDArray[np.floating]) -> Float[Array, "state idim"]:
        product = jnp.einsum("rs,bri->bsi", jnp.asarray(v, jnp.float32), blocks, precision=_EXACT)
        return product.reshape(state_dim // 2, idim)

    return times(vectors.real), times(-vectors.imag)


def output_map(
    key: PRNGKeyArray, odim: int, state_dim: int, vectors: NDArray[np.complex128], init: OutputInit
) -> tuple[Float[Array, "odim state"], Float[Array, "odim state"]]:
    """An initial C̃ = C V, as two planes, with random complex C and block-diagonal V."""
    if init == "complex_normal":
        re, im = jax.random.normal(key, (2, odim, state_dim // 2), jnp.float32) * math.sqrt(0.5)
        return re, im
    # Lecun normal of each row: the variance is one over all of state_dim.
    lecun = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=0)
    re, im = lecun(key, (2, odim, state_dim), jnp.float32)

    def times(c: Float[Array, "odim full"], v: NDArray[np.floating]) -> Float[Array, "odim state"]:
        blocks = c.reshape(odim, -1, v.shape[0])
        product = jnp.einsum("obr,rs->obs", blocks, jnp.asarray(v, jnp.float32), precision=_EXACT)
        return product.reshape(odim, state_dim // 2)

    return (
        times(re, vectors.real) - times(im, vectors.imag),
        times(re, vectors.imag) + times(im, vectors.real),
    )
