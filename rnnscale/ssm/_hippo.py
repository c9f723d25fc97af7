"""The HiPPO-LegS system and its diagonal form, from which S5 starts."""

import numpy as np
from numpy.typing import NDArray


def hippo_legs(state_dim: int) -> NDArray[np.float64]:
    r"""The state matrix that compresses the past onto scaled Legendre polynomials:

    $$A_{nk} = -\begin{cases}\sqrt{(2n+1)(2k+1)} & n > k\\ n + 1 & n = k\\ 0 & n < k\end{cases}$$

    Gu et al., *HiPPO: Recurrent Memory with Optimal Polynomial Projections*, 2020.
    """
    index = np.arange(state_dim, dtype=np.float64)
    root = np.sqrt(2 * index + 1)
    return -np.tril(np.outer(root, root), -1) - np.diag(index + 1)


def hippo_normal(
    state_dim: int,
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    r"""Eigenvalues and orthonormal eigenvectors of HiPPO-N, the normal part of HiPPO-LegS.

    $A_N = A + p p^\top$ with $p_n = \sqrt{n + 1/2}$ is $-\tfrac12 I$ plus a skew-symmetric $S$,
    so $-iS$ is Hermitian: its eigenproblem is well conditioned and gives a unitary $V$ with
    $A_N = V \Lambda V^H$. Solving for the eigenvalues of $A$ itself fails from some 30 states on.

    **Returns:**

    `(eigenvalues, vectors)` of shapes (state,) and (state, state) in double precision, by ascending
    imaginary part: the first half is the one with negative imaginary parts, its conjugates follow
    in reverse order.

    Gu et al., *On the Parameterization and Initialization of Diagonal State Space Models*, 2022.
    """
    p = np.sqrt(np.arange(state_dim) + 0.5)
    normal = hippo_legs(state_dim) + np.outer(p, p)
    real = np.mean(np.diagonal(normal))
    skew = normal - np.diag(np.diagonal(normal))
    imaginary, vectors = np.linalg.eigh(-1j * skew)
    return (real + 1j * imaginary).astype(np.complex128), vectors.astype(np.complex128)
